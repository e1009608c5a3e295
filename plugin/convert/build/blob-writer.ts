/**
 * Writes a registry blob to a staging file while the layer is being built: bytes of the LSMT layer in, compressed blocks out in order,
 * then what is known only at the end (jump table, trailer, final header, tar head), then the list of chunk digests. Formats:
 * overlaybd-formats.md 2, 3.
 *
 *   0 tar head │ 1536 ZFile header │ blocks … │ jump table │ trailer ║ chunk list (seal-worker.ts)
 */
import assert from 'node:assert';
import { type FileHandle, open, rm } from 'node:fs/promises';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import type { Digest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import { roundUp, SECTOR_BYTES } from '../../base/units.ts';
import { encodePaxHead, PAX_HEAD_BYTES } from '../../image/overlaybd-tar/wrapper.ts';
import { CRC_SEED, crc32c } from '../../image/zfile/crc32c.ts';
import { encodeZFileBlock, ZFILE_BLOCK_BYTES } from '../../image/zfile/header.ts';
import { type Compression, type CompressPool, JOB_BYTES, type Job } from './compress-pool.ts';
import { type CompressRequest, type CompressResult, FILLER_BYTES } from './compress-worker.ts';
import type { ByteSink, SettledData } from './layer-stream.ts';
import type { SealAnswer, SealRequest, SealResult } from './seal-worker.ts';
import { stagingError } from './spool.ts';

const WORKER = path.join(import.meta.dirname, `seal-worker${path.extname(import.meta.filename)}`);

/** Each chunk has its own SHA-256, so that a lazy read is checked before it is served; equal to what one miss fetches. */
export const CHUNK_BYTES = FETCH_UNIT_BYTES;

export interface WrittenBlob {
  path: string;
  digest: Digest;
  sizeBytes: number;
  /** Where in the blob the SHA-256 of each chunk before it lie, 32 bytes each, in order; the last chunk may be short. */
  chunkList: { digest: Digest; offsetBytes: number; sizeBytes: number; chunkBytes: number };
}

export class BlobWriter implements ByteSink {
  private readonly path: string;
  private readonly file: FileHandle;
  private readonly pool: CompressPool;
  private readonly compression: Compression;
  private job: Job | undefined;
  private filled = 0;
  private submittedBytes = 0;
  /** Bytes that arrived while no buffer was free; at most what one push of the tar reader brings. */
  private overflow: Buffer[] = [];
  /** `skippable` until {@link settle}. */
  private content: CompressRequest['content'] = 'skippable';
  private readonly shifts: { writtenAt: number; shiftBytes: number }[] = [{ writtenAt: 0, shiftBytes: 0 }];
  /** Of the layer file, as far as its blocks are in the blob. */
  private layerBytes = 0;
  private position = PAX_HEAD_BYTES + ZFILE_BLOCK_BYTES;
  private sizes: Uint32Array[] = [];
  /** Ends when everything handed to the pool so far is in the file. */
  private written: Promise<void> = Promise.resolve();
  private failure: { error: unknown } | undefined;
  private isClosed = false;

  private constructor(file: FileHandle, filePath: string, pool: CompressPool, compression: Compression) {
    this.file = file;
    this.path = filePath;
    this.pool = pool;
    this.compression = compression;
  }

  /** Creates the staging file, which must not exist. */
  static async create(filePath: string, pool: CompressPool, compression: Compression): Promise<BlobWriter> {
    return new BlobWriter(await open(filePath, 'wx+', 0o600), filePath, pool, compression);
  }

  /** Takes bytes of the layer. Never waits: call {@link ready} between writes of at most some MiB. */
  write(bytes: Uint8Array): void {
    if (this.overflow.length > 0) this.overflow.push(Buffer.from(bytes));
    else this.fill(bytes);
  }

  /** Waits until there is room again. Rejects with the first error of compressing or writing. */
  async ready(): Promise<void> {
    while (this.overflow.length > 0) {
      this.throwFailure();
      this.job ??= await this.pool.take();
      const pending = this.overflow;
      this.overflow = [];
      for (const bytes of pending) {
        if (this.overflow.length > 0) this.overflow.push(bytes);
        else this.fill(bytes);
      }
    }
    this.throwFailure();
  }

  /** See {@link ByteSink}. Rejects with the first error of compressing or writing. */
  async settle(): Promise<SettledData> {
    await this.ready();
    if (this.job !== undefined) this.submit();
    await this.written;
    this.throwFailure();
    this.content = 'exact';
    return { shifts: this.shifts, endBytes: this.layerBytes };
  }

  /** Completes the blob and computes its digest. The file stays; nothing else may be called afterwards. */
  async finish(): Promise<WrittenBlob> {
    await this.ready();
    if (this.job !== undefined) this.submit();
    await this.written;
    this.throwFailure();
    const table = Buffer.concat(this.sizes.map((sizes) => Buffer.from(sizes.buffer, sizes.byteOffset, sizes.byteLength)));
    const values = {
      indexOffsetBytes: this.position - PAX_HEAD_BYTES,
      blockCount: table.length / 4,
      originalSizeBytes: this.layerBytes,
      indexCrc: crc32c(CRC_SEED, table),
    };
    assert.equal(values.blockCount, Math.ceil(this.layerBytes / this.compression.blockSizeBytes));
    const payloadBytes = values.indexOffsetBytes + table.length + ZFILE_BLOCK_BYTES;
    const end = Buffer.concat([
      table,
      encodeZFileBlock('trailer', this.compression, values),
      Buffer.alloc(roundUp(payloadBytes, SECTOR_BYTES) - payloadBytes),
    ]);
    try {
      await writeAll(this.file, end, this.position);
      const head = Buffer.concat([encodePaxHead(payloadBytes), encodeZFileBlock('final-header', this.compression, values)]);
      await writeAll(this.file, head, 0);
      await this.close();
    } catch (cause) {
      throw stagingError(cause, this.path);
    }
    const { sha256, sizeBytes, list } = await sealFile({ path: this.path, chunkBytes: CHUNK_BYTES });
    const chunkList = {
      digest: `sha256:${list.sha256}` as const,
      offsetBytes: list.offsetBytes,
      sizeBytes: list.sizeBytes,
      chunkBytes: CHUNK_BYTES,
    };
    return { path: this.path, digest: `sha256:${sha256}`, sizeBytes, chunkList };
  }

  /** Gives up, also after a failed {@link finish}: closes and removes the file. */
  async discard(): Promise<void> {
    await this.written;
    await this.close();
    await rm(this.path, { force: true });
  }

  private async close(): Promise<void> {
    if (this.isClosed) return;
    this.isClosed = true;
    await this.file.close();
  }

  private fill(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      this.job ??= this.pool.tryTake();
      if (this.job === undefined) {
        this.overflow.push(Buffer.from(bytes.subarray(done)));
        return;
      }
      const take = Math.min(bytes.length - done, JOB_BYTES - this.filled);
      this.job.raw.set(bytes.subarray(done, done + take), this.filled);
      this.filled += take;
      done += take;
      if (this.filled === JOB_BYTES) this.submit();
    }
  }

  private submit(): void {
    const job = this.job!;
    const rawBytes = this.filled;
    this.job = undefined;
    this.filled = 0;
    this.written = this.store(this.pool.run(job, rawBytes, this.content), rawBytes, this.submittedBytes, this.content, this.written);
    this.submittedBytes += rawBytes;
  }

  private async store(
    result: Promise<CompressResult>,
    rawBytes: number,
    writtenAt: number,
    content: CompressRequest['content'],
    before: Promise<void>,
  ): Promise<void> {
    try {
      const done = await result;
      try {
        await before;
        if (this.failure !== undefined) return;
        await writeAll(this.file, done.out.subarray(0, done.outBytes), this.position);
        this.position += done.outBytes;
        this.sizes.push(done.sizes);
        this.noteShifts(done, writtenAt);
        this.layerBytes += content === 'exact' ? rawBytes : done.sizes.length * this.compression.blockSizeBytes;
      } finally {
        // Also after a failure: other layers of the conversion may be waiting for buffers.
        this.pool.release({ raw: done.raw, out: done.out });
      }
    } catch (error) {
      this.failure ??= { error: stagingError(error, this.path) };
    }
  }

  /** Keeps in the books where the bytes of a job came to lie, before `layerBytes` moves on. */
  private noteShifts({ fillers }: CompressResult, writtenAt: number): void {
    let shiftBytes = this.layerBytes - writtenAt;
    const note = (at: number): void => {
      if (this.shifts.at(-1)!.shiftBytes !== shiftBytes) this.shifts.push({ writtenAt: at, shiftBytes });
    };
    note(writtenAt);
    for (const filler of fillers) {
      shiftBytes += FILLER_BYTES;
      note(writtenAt + filler);
    }
  }

  private throwFailure(): void {
    if (this.failure !== undefined) throw this.failure.error;
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, position + done);
    done += bytesWritten;
  }
}

function sealFile(request: SealRequest): Promise<SealResult> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(WORKER, { workerData: request, execArgv: [] });
    worker.once('message', (answer: SealAnswer) => {
      if ('result' in answer) resolve(answer.result);
      else reject(AppError.fromJSON(answer.error, { op: 'seal blob', subject: request.path }));
    });
    worker.once('error', reject);
    worker.once('exit', (code) => {
      if (code !== 0)
        reject(new AppError('Internal', { op: 'seal blob', subject: request.path, what: `its worker ended with code ${code}` }));
    });
  });
}
