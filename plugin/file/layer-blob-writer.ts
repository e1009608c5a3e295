/**
 * Writes registry blobs to a local file: LSMT bytes go through ZFile compression into the tar wrapper. Head and ZFile header hold sizes
 * that are known only at the end, so they are written last; the digest is then computed over the finished file.
 */
import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import type { Digest } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import { CommittedLayerWriter } from '../image/lsmt/committed-writer.ts';
import type { LsmtIdentity } from '../image/lsmt/header.ts';
import { encodePaxHead, encodeTail, PAX_HEAD_BYTES } from '../image/overlaybd-tar/wrapper.ts';
import type { BlockCodec } from '../image/zfile/codec.ts';
import type { ZFileParameters } from '../image/zfile/header.ts';
import { ZFileWriter } from '../image/zfile/writer.ts';

const HASH_CHUNK_BYTES = 1024 * 1024;

export interface WrittenBlob {
  digest: Digest;
  sizeBytes: number;
}

export interface BlobForm {
  compression: ZFileParameters;
  /** `pax`: registry blob; `none`: the bare ZFile. */
  wrapper: 'pax' | 'none';
}

/** Use: create, write the LSMT file in order, finish. Dispose in any case; an unfinished file is left for the caller to remove. */
export class LayerBlobWriter {
  private readonly file: FileHandle;
  private readonly zfile: ZFileWriter;
  private readonly headBytes: number;
  private endBytes: number;

  private constructor(file: FileHandle, form: BlobForm, codec: BlockCodec) {
    this.file = file;
    this.zfile = new ZFileWriter(form.compression, codec);
    this.headBytes = form.wrapper === 'pax' ? PAX_HEAD_BYTES : 0;
    this.endBytes = this.headBytes;
  }

  /** Creates or truncates `path`. */
  static async create(path: string, form: BlobForm, codec: BlockCodec): Promise<LayerBlobWriter> {
    const file = await open(path, 'w+', 0o600);
    const writer = new LayerBlobWriter(file, form, codec);
    try {
      await writer.append(writer.zfile.header());
    } catch (error) {
      await file.close();
      throw error;
    }
    return writer;
  }

  /** Appends LSMT bytes; `bytes` may be reused once the promise settles. */
  async write(bytes: Uint8Array): Promise<void> {
    await this.append(this.zfile.write(bytes));
  }

  /** Completes the file, makes it durable and hashes it. */
  async finish(signal?: AbortSignal): Promise<WrittenBlob> {
    const end = this.zfile.finish();
    await this.append(end.bytes);
    const payloadBytes = this.endBytes - this.headBytes;
    if (this.headBytes > 0) {
      await this.append(encodeTail(payloadBytes));
      await this.writeAt(encodePaxHead(payloadBytes), 0);
    }
    await this.writeAt(end.finalHeader, this.headBytes);
    await this.file.sync();
    return { digest: await this.hash(signal), sizeBytes: this.endBytes };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file.close();
  }

  private async append(bytes: Uint8Array): Promise<void> {
    await this.writeAt(bytes, this.endBytes);
    this.endBytes += bytes.length;
  }

  private async writeAt(bytes: Uint8Array, position: number): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      done += (await this.file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
    }
  }

  private async hash(signal?: AbortSignal): Promise<Digest> {
    const hash = createHash('sha256');
    const chunk = Buffer.allocUnsafeSlow(HASH_CHUNK_BYTES);
    for (let position = 0; position < this.endBytes; ) {
      signal?.throwIfAborted();
      const { bytesRead } = await this.file.read(chunk, 0, Math.min(chunk.length, this.endBytes - position), position);
      if (bytesRead === 0)
        throw new AppError('DataLoss', { op: 'hash', subject: 'layer blob', what: `ends at ${position} of ${this.endBytes}` });
      hash.update(chunk.subarray(0, bytesRead));
      position += bytesRead;
    }
    return `sha256:${hash.digest('hex')}`;
  }
}

/** Content of a device range. Offset and length are multiples of 512. */
export interface DeviceSegment {
  offsetBytes: number;
  bytes: Uint8Array;
}

/**
 * Writes a layer that holds `segments` (ascending, not overlapping; what they leave out shows the layers below, or zeros) as a blob at
 * `path`. Throws InvalidArgument on segments out of order or not in sectors; on any failure the file is incomplete.
 */
export async function writeLayerBlob(
  path: string,
  segments: AsyncIterable<DeviceSegment> | Iterable<DeviceSegment>,
  options: { identity: LsmtIdentity; form: BlobForm; codec: BlockCodec; signal?: AbortSignal },
): Promise<WrittenBlob> {
  await using blob = await LayerBlobWriter.create(path, options.form, options.codec);
  const layer = new CommittedLayerWriter(options.identity);
  await blob.write(layer.header());
  let previousEnd = 0;
  for await (const { offsetBytes, bytes } of segments) {
    options.signal?.throwIfAborted();
    if (offsetBytes < previousEnd || offsetBytes % SECTOR_BYTES !== 0 || bytes.length % SECTOR_BYTES !== 0) {
      const what = `segment of ${bytes.length} bytes at ${offsetBytes}: whole sectors from ${previousEnd} on are expected`;
      throw new AppError('InvalidArgument', { op: 'write layer', subject: path, what });
    }
    previousEnd = offsetBytes + bytes.length;
    if (bytes.length === 0) continue;
    layer.addData(offsetBytes / SECTOR_BYTES, bytes.length / SECTOR_BYTES);
    await blob.write(bytes);
  }
  await blob.write(layer.finish());
  return await blob.finish(options.signal);
}
