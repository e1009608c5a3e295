/** Makes blobs whole in the data plane's store, and follows how far it is. Ours. */
import { createHmac, randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import pLimit from 'p-limit';
import { AppError, describeError, isAppError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { BlobSource } from '../../file/device-spec.ts';
import type { ImageAccess, PrepareProgress } from '../image-store.ts';
import type { BlobKeeper } from './ports.ts';

/** Blobs at once: while one is checked the others come. The scheduler of the data plane bounds requests. */
const BLOBS_AT_ONCE = 3;

/** How often progress is asked for; a bar that moves. */
const LOOK_MS = 300;

/** Grants last a minute. */
const RENEW_MS = 20_000;

/** Secret access is told apart by a fingerprint that says nothing outside this process. */
const FINGERPRINT_KEY = randomBytes(32);

/** Bytes of an image that are here, by part; the sum never falls and never passes the total. */
export class ImageProgress {
  private readonly totalBytes: number;
  private readonly tell: (progress: PrepareProgress) => void;
  private readonly parts = new Map<string, number>();
  private doneBytes = 0;

  constructor(totalBytes: number, tell: (progress: PrepareProgress) => void) {
    this.totalBytes = totalBytes;
    this.tell = tell;
  }

  set(part: string, bytes: number): void {
    this.parts.set(part, Math.max(bytes, this.parts.get(part) ?? 0));
    this.raise([...this.parts.values()].reduce((sum, one) => sum + one, 0));
  }

  finish(): void {
    this.raise(this.totalBytes);
  }

  private raise(bytes: number): void {
    const doneBytes = Math.min(this.totalBytes, bytes);
    if (doneBytes <= this.doneBytes) return;
    this.doneBytes = doneBytes;
    this.tell({ doneBytes, totalBytes: this.totalBytes });
  }
}

/** How the data plane reaches the registry for one cache while work goes on. */
export interface Access {
  /** Says it again: a data plane that was replaced has forgotten it. */
  renew(): Promise<void>;
}

export interface FillRequest {
  owner: string;
  blobs: readonly BlobSource[];
  /** Digests of those that others brought, to be read from the disk and checked anew. */
  checkedAgain: ReadonlySet<string>;
  access: Access;
  signal: AbortSignal;
  onBytes(digest: string, bytes: number): void;
}

export interface FilledBlob {
  path: string;
  fetchedBytes: number;
}

/** Fills pinned blobs, in their order. Rejects with the first failure, when all others have stopped. */
export async function fillBlobs(keeper: BlobKeeper, request: FillRequest, log: Logger): Promise<FilledBlob[]> {
  const { blobs, signal } = request;
  const failed = new AbortController();
  const done = new AbortController();
  const limited = AbortSignal.any([signal, failed.signal]);
  const limit = pLimit(BLOBS_AT_ONCE);
  const watching = watchFill(keeper, request, done.signal, log);
  try {
    const filled = await Promise.allSettled(
      blobs.map((blob) =>
        limit(async () => {
          try {
            return await fillOne(keeper, request, blob, limited);
          } catch (error) {
            failed.abort(error);
            throw error;
          }
        }),
      ),
    );
    limited.throwIfAborted();
    return filled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
  } finally {
    done.abort();
    await watching;
  }
}

async function fillOne(keeper: BlobKeeper, request: FillRequest, blob: BlobSource, signal: AbortSignal): Promise<FilledBlob> {
  const { owner, access, onBytes, checkedAgain } = request;
  const options = { isCheckedAgain: checkedAgain.has(blob.digest) };
  signal.throwIfAborted();
  let filled: FilledBlob;
  try {
    filled = await keeper.fillPinned(owner, blob, signal, options);
  } catch (error) {
    if (!isAppError(error, 'Unauthenticated', 'PermissionDenied')) throw error;
    await access.renew();
    filled = await keeper.fillPinned(owner, blob, signal, options);
  }
  onBytes(blob.digest, blob.sizeBytes);
  return filled;
}

async function watchFill(keeper: BlobKeeper, { owner, blobs, onBytes }: FillRequest, until: AbortSignal, log: Logger): Promise<void> {
  const wanted = new Set<string>(blobs.map(({ digest }) => digest));
  while (!until.aborted) {
    try {
      await delay(LOOK_MS, undefined, { signal: until, ref: false });
      for (const [digest, bytes] of Object.entries(await keeper.filledBytes(owner, until))) if (wanted.has(digest)) onBytes(digest, bytes);
    } catch (error) {
      if (until.aborted) return;
      if (!isAppError(error)) throw error;
      log.debug({ owner, reason: describeError(error) }, 'progress is not known for a moment');
    }
  }
}

/** True when a cache reaches registries as the node does. */
export function isPlain(access: ImageAccess): boolean {
  return access.credentials.length + access.plainHttp.length + access.insecure.length === 0;
}

/** Does work while the data plane may reach a repository as `access` says. */
export async function withAccess<T>(
  parts: { blobs: BlobKeeper; logger: Logger },
  repository: { host: string; repository: string },
  access: ImageAccess,
  signal: AbortSignal,
  work: (granted: Access) => Promise<T>,
): Promise<T> {
  if (isPlain(access)) return work({ renew: async () => {} });
  const place = { host: repository.host, repository: repository.repository };
  const owner = `access-${createHmac('sha256', FINGERPRINT_KEY)
    .update(JSON.stringify([place, access]))
    .digest('hex')
    .slice(0, 32)}`;
  const renew = (): Promise<void> => parts.blobs.grant(owner, [place], access, signal);
  await renew();
  const renewing = setInterval(() => {
    renew().catch((error: unknown) => parts.logger.debug({ reason: describeError(error) }, 'access is not renewed; the next time is soon'));
  }, RENEW_MS);
  renewing.unref();
  try {
    return await work({ renew });
  } finally {
    clearInterval(renewing);
  }
}

/** The refusal that both numbers belong to. */
export function tooLarge(reference: string, neededBytes: number, limitBytes: number): AppError {
  const what = `it takes ${neededBytes} bytes, ${limitBytes} are reserved for it`;
  return new AppError('ResourceExhausted', { op: 'cache image', subject: reference, what, details: { neededBytes, limitBytes } });
}
