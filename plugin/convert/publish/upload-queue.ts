/** Uploads of converted layers while the next ones are built: few at once, each verified before it counts, the first failure ends all. */
import { type FileHandle, open, rm } from 'node:fs/promises';
import { AppError } from '../../base/errors.ts';
import type { BlobIdentity } from '../../registry/blobs.ts';
import type { RegistryClient } from '../../registry/client.ts';
import type { Repository } from '../../registry/reference.ts';
import type { ReadAt, UploadOutcome } from '../../registry/upload.ts';

/** Each keeps its blob in the staging directory; two keep a link busy while one waits for the registry's answer. */
const MAX_UPLOADS = 2;

export class UploadQueue {
  private readonly running = new Set<Promise<void>>();
  private failure: { error: unknown } | undefined;
  private readonly onFailure: (error: unknown) => void;

  /** `onFailure` is called once, with the first error, so that building can stop. */
  constructor(onFailure: (error: unknown) => void) {
    this.onFailure = onFailure;
  }

  /** Starts an upload when there is room; rejects with the first failure of any. */
  async add(upload: () => Promise<void>): Promise<void> {
    while (this.running.size >= MAX_UPLOADS && this.failure === undefined) await Promise.race(this.running);
    this.throwFailure();
    const job: Promise<void> = upload()
      .catch((error: unknown) => {
        if (this.failure !== undefined) return;
        this.failure = { error };
        this.onFailure(error);
      })
      .finally(() => this.running.delete(job));
    this.running.add(job);
  }

  /** Waits for all; rejects with the first failure. */
  async finish(): Promise<void> {
    await Promise.all(this.running);
    this.throwFailure();
  }

  /** Waits until nothing runs any more, whatever the outcome. */
  async settle(): Promise<void> {
    await Promise.all(this.running);
  }

  private throwFailure(): void {
    if (this.failure !== undefined) throw this.failure.error;
  }
}

/** Uploads a file and removes it. `onProgress` gets the bytes that are new at the registry. */
export async function uploadFile(
  client: RegistryClient,
  repository: Repository,
  blob: BlobIdentity & { path: string },
  options: { signal: AbortSignal; mountFrom: readonly string[]; onProgress: (newBytes: number) => void },
): Promise<UploadOutcome> {
  const file = await open(blob.path, 'r');
  try {
    let told = 0;
    const outcome = await client.uploadBlob(repository, blob, readerOf(file, blob.path), {
      signal: options.signal,
      mountFrom: options.mountFrom,
      onProgress: (confirmed) => {
        if (confirmed > told) options.onProgress(confirmed - told);
        told = Math.max(told, confirmed);
      },
    });
    await verifyBlob(client, repository, blob, options.signal);
    return outcome;
  } finally {
    await file.close();
    await rm(blob.path, { force: true });
  }
}

/** Uploads bytes in memory: configurations. */
export async function uploadBytes(
  client: RegistryClient,
  repository: Repository,
  blob: BlobIdentity,
  bytes: Uint8Array,
  signal: AbortSignal,
): Promise<void> {
  await client.uploadBlob(repository, blob, async (offset, length) => bytes.subarray(offset, offset + length), { signal });
  await verifyBlob(client, repository, blob, signal);
}

/** Throws DataLoss unless the repository has the blob in its full size. The registry has checked the digest when it took it. */
export async function verifyBlob(client: RegistryClient, repository: Repository, blob: BlobIdentity, signal: AbortSignal): Promise<void> {
  const sizeBytes = await client.statBlob(repository, blob.digest, { signal, isCurrent: true });
  if (sizeBytes === blob.sizeBytes) return;
  const what =
    sizeBytes === undefined ? 'the registry does not have it' : `the registry has ${sizeBytes} bytes instead of ${blob.sizeBytes}`;
  throw new AppError('DataLoss', { op: 'verify blob', subject: blob.digest, what });
}

function readerOf(file: FileHandle, path: string): ReadAt {
  return async (offset, lengthBytes) => {
    const target = Buffer.allocUnsafe(lengthBytes);
    for (let done = 0; done < lengthBytes; ) {
      const { bytesRead } = await file.read(target, done, lengthBytes - done, offset + done);
      if (bytesRead === 0) throw new AppError('DataLoss', { op: 'read for upload', subject: path, what: `ends at ${offset + done}` });
      done += bytesRead;
    }
    return target;
  };
}
