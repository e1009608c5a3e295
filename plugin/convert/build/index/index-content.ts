/**
 * Content of one index-only layer: what is written to the sink is stored in the layer, everything else is mapped into the tar, sector by
 * sector up to the end of the file and never to the end of its block (the rest of the block reads as zeros: nothing lies below). Ours.
 */
import assert from 'node:assert';
import { roundUp, SECTOR_BYTES } from '../../../base/units.ts';
import type { TarEntry } from '../../../image/tar/entry.ts';
import { FileBlocks } from '../file-blocks.ts';
import type { ContentSink } from '../layer-applier.ts';
import type { Spool } from '../spool.ts';
import { type MappedRun, mappedRuns } from './mapped-runs.ts';

/** Stored in the layer: a position in the spool; or mapped: a position in the tar. Device and lengths in sectors. */
interface Extents {
  lba: number[];
  sectors: number[];
  /** Bytes in the spool, or -1 - sectors in the tar. */
  from: number[];
}

/** Takes mappings in device order: CommittedLayerWriter. All numbers are sectors. */
export interface MappingSink {
  addData(lbaSectors: number, lengthSectors: number): void;
  addRemote(lbaSectors: number, lengthSectors: number, targetSectors: number): void;
}

export class IndexContent implements ContentSink {
  readonly inlineLimitBytes: number;
  private readonly files: Spool;
  private readonly blocks: FileBlocks;
  private readonly extents: Extents = { lba: [], sectors: [], from: [] };
  private base = 0;
  private runs: MappedRun[] | undefined;
  /** Bytes of a mapped file that are stored all the same: one piece that begins at a sector. */
  private storedAt = 0;
  private storedEnd = 0;
  private stored: Buffer[] = [];

  constructor(files: Spool, inlineLimitBytes: number) {
    this.files = files;
    this.inlineLimitBytes = inlineLimitBytes;
    this.blocks = new FileBlocks({ append: (deviceOffset, bytes) => this.store(deviceOffset, bytes) });
  }

  spool(bytes: Buffer): number {
    return this.files.append(bytes);
  }

  begin(entry: TarEntry, deviceOffset: number): void {
    this.base = deviceOffset;
    this.stored = [];
    // The target of a link is not content of the tar.
    this.runs = entry.type === 'file' ? mappedRuns(entry) : undefined;
    if (this.runs === undefined) this.blocks.begin(deviceOffset);
  }

  write(bytes: Buffer, fileOffset: number): void {
    if (this.runs === undefined) {
      this.blocks.write(bytes, fileOffset);
      return;
    }
    if (this.stored.length === 0) this.storedAt = fileOffset;
    // A hole in a small file.
    else if (fileOffset > this.storedEnd) this.stored.push(Buffer.alloc(fileOffset - this.storedEnd));
    this.stored.push(bytes);
    this.storedEnd = fileOffset + bytes.length;
  }

  end(sizeBytes: number): void {
    if (this.runs === undefined) {
      this.blocks.end(sizeBytes);
      return;
    }
    const piece = Buffer.concat(this.stored);
    const storedFrom = piece.length > 0 ? this.storedAt : Number.POSITIVE_INFINITY;
    for (const { fileOffset, lengthBytes, tarOffset } of this.runs) {
      const end = Math.min(fileOffset + roundUp(lengthBytes, SECTOR_BYTES), storedFrom);
      if (end > fileOffset) this.add(this.base + fileOffset, end - fileOffset, -1 - tarOffset / SECTOR_BYTES);
    }
    if (piece.length === 0) return;
    const padded = Buffer.alloc(roundUp(piece.length, SECTOR_BYTES));
    piece.copy(padded);
    this.store(this.base + storedFrom, padded);
  }

  /** Hands all extents to the layer in device order; yields the bytes that it stores, which follow each other in its file. */
  *emit(layer: MappingSink): Generator<Buffer> {
    const { lba, sectors, from } = this.extents;
    for (let i = 0; i < lba.length; i += 1) {
      if (from[i]! < 0) layer.addRemote(lba[i]!, sectors[i]!, -1 - from[i]!);
      else {
        layer.addData(lba[i]!, sectors[i]!);
        yield this.files.read(from[i]!, sectors[i]! * SECTOR_BYTES);
      }
    }
  }

  private store(deviceOffset: number, bytes: Uint8Array): void {
    this.add(deviceOffset, bytes.length, this.files.append(bytes));
  }

  private add(deviceOffset: number, lengthBytes: number, from: number): void {
    const { extents } = this;
    const last = extents.lba.length - 1;
    assert(last < 0 || deviceOffset / SECTOR_BYTES >= extents.lba[last]! + extents.sectors[last]!, 'content comes in device order');
    extents.lba.push(deviceOffset / SECTOR_BYTES);
    extents.sectors.push(lengthBytes / SECTOR_BYTES);
    extents.from.push(from);
  }
}
