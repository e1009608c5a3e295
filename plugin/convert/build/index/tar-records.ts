/**
 * What a layer's tar says, without the content that stays in the tar: written by the thread that reads the layer, read back when its
 * turn comes. Batches of V8's serialization behind their length; a staging file of one conversion, read by the same program. Ours.
 */
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { deserialize, serialize } from 'node:v8';
import { KIB } from '../../../base/units.ts';
import type { TarEntry } from '../../../image/tar/entry.ts';
import { readFully, stagingError } from '../spool.ts';

/** An object; content that is to be stored; the end of an object. In the order of a TarHandler's calls. */
export type TarRecord = TarEntry | { fileOffset: number; bytes: Uint8Array } | null;

/** Of a batch: some milliseconds of work when it is applied. */
const BATCH_RECORDS = 512;
const BATCH_CONTENT_BYTES = 256 * KIB;

export class RecordWriter {
  private readonly path: string;
  private readonly fd: number;
  private batch: TarRecord[] = [];
  private contentBytes = 0;
  private isClosed = false;

  constructor(path: string) {
    this.path = path;
    this.fd = openSync(path, 'wx', 0o600);
  }

  /** `bytes` of a content record must stay as they are. Throws ResourceExhausted when the disk is full. */
  push(record: TarRecord): void {
    this.batch.push(record);
    this.contentBytes += weightOf(record);
    if (this.batch.length === BATCH_RECORDS || this.contentBytes >= BATCH_CONTENT_BYTES) this.flush();
  }

  /** Writes the rest and closes the file. */
  end(): void {
    this.flush();
    this.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  private flush(): void {
    if (this.batch.length === 0) return;
    const body = serialize(this.batch);
    const head = Buffer.alloc(4);
    head.writeUInt32LE(body.length);
    try {
      for (const bytes of [head, body]) for (let done = 0; done < bytes.length; ) done += writeSync(this.fd, bytes, done);
    } catch (cause) {
      throw stagingError(cause, this.path);
    }
    this.batch = [];
    this.contentBytes = 0;
  }

  private close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    closeSync(this.fd);
  }
}

/** Bytes of a record that are no mere fields: an entry may bring a MiB of attributes. */
function weightOf(record: TarRecord): number {
  if (record === null) return 0;
  if ('bytes' in record) return record.bytes.length;
  let bytes = 0;
  for (const value of record.xattrs?.values() ?? []) bytes += value.length;
  return bytes;
}

/** Reads the batches of a finished file in order. */
export function* readRecords(path: string): Generator<TarRecord[]> {
  const fd = openSync(path, 'r');
  try {
    const head = Buffer.alloc(4);
    for (let at = 0; readSync(fd, head, 0, 4, at) === 4; ) {
      const body = Buffer.allocUnsafe(head.readUInt32LE());
      readFully(fd, body, at + 4);
      at += 4 + body.length;
      yield deserialize(body) as TarRecord[];
    }
  } finally {
    closeSync(fd);
  }
}
