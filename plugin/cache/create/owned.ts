/**
 * What each cache owns in the world, on disk: one JSON file a cache (`image-caches/<id>.json`), written before the first thing is made and
 * removed after the last is gone. A kill leaves at most a file that names things that are not there. Ours.
 *
 *   making ──prepare done──► ready ──release──► leaving ──nobody uses the image──► gone
 */
import fs from 'node:fs/promises';
import path from 'node:path';
import pLimit from 'p-limit';
import { z } from 'zod';
import { type Digest, isDigest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { MAX_LAYERS } from '../../base/limits.ts';
import type { Logger } from '../../base/log.ts';
import { blobSourceSchema } from '../../file/device-spec.ts';
import { removeDurably, writeDurably } from '../../file/durable-file.ts';
import type { HeldPart } from '../image-store.ts';
import type { Made } from './protocol.ts';

/** Names of a cache's resources everywhere: pins, lease, worker. */
const CACHE_ID = /^[a-z0-9][a-z0-9-]{0,63}$/;

/** Twenty images, and as many that an update lets go while the new ones are made. */
const MAX_IMAGES = 1000;

const digest = z.custom<Digest>(isDigest, 'not a digest');

const ownedImageSchema = z.object({
  /** As it was asked for. */
  reference: z.string().max(512),
  /** Names of its records in containerd: reference, repository and digest, image id. */
  names: z.array(z.string().min(1).max(512)).min(1).max(4),
  target: z.object({ digest, mediaType: z.string().max(255), sizeBytes: z.int().min(0) }),
  platformDigest: digest,
  configDigest: digest,
  /** Of all its layers: the name of its top snapshot. */
  chainId: digest,
  /** Every blob that it is read from. */
  blobs: z.array(blobSourceSchema).max(4 * MAX_LAYERS),
});
export type OwnedImage = z.infer<typeof ownedImageSchema>;

const ownedCacheSchema = z.object({
  version: z.literal(1),
  cacheId: z.string().regex(CACHE_ID),
  /** Being made: which images they are is known when they are done. */
  making: z.boolean(),
  ready: z.array(ownedImageSchema).max(MAX_IMAGES),
  leaving: z.array(ownedImageSchema).max(MAX_IMAGES),
});
export type OwnedCache = Omit<z.infer<typeof ownedCacheSchema>, 'version'>;

const FILE_NAME = /^(.+)\.json$/;

/** Equal for the same image under the same name. */
export function imageKeyOf(image: { reference: string; platformDigest: string }): string {
  return `${image.reference} ${image.platformDigest}`;
}

/** What an image takes: its documents, the blobs that it is read from, and what is unpacked of it. */
export function heldBy({ platformDigest, blobs }: OwnedImage, { unpacked, documentBytes }: Made): HeldPart[] {
  return [
    { name: platformDigest, bytes: documentBytes },
    ...[...new Map(blobs.map(({ digest, sizeBytes: bytes }) => [digest, bytes]))].map(([name, bytes]) => ({ name, bytes })),
    ...unpacked.map(({ chainId, bytes }) => ({ name: `snapshot ${chainId}`, bytes })),
  ];
}

export class OwnedCaches {
  private readonly directory: string;
  private readonly log: Logger;
  private readonly caches = new Map<string, OwnedCache>();
  private readonly one = pLimit(1);

  private constructor(directory: string, log: Logger) {
    this.directory = directory;
    this.log = log;
  }

  /** Reads what an earlier process wrote. Rejects with system errors of the directory; a damaged file is logged and left alone. */
  static async open(directory: string, log: Logger): Promise<OwnedCaches> {
    const owned = new OwnedCaches(directory, log);
    await fs.mkdir(directory, { recursive: true, mode: 0o700 });
    for (const name of await fs.readdir(directory)) {
      const cacheId = FILE_NAME.exec(name)?.[1];
      if (cacheId !== undefined) await owned.load(cacheId);
    }
    return owned;
  }

  private async load(cacheId: string): Promise<void> {
    try {
      const { version: _, ...cache } = ownedCacheSchema.parse(JSON.parse(await fs.readFile(this.pathOf(cacheId), 'utf8')));
      this.caches.set(cacheId, cache);
    } catch (err) {
      this.log.error({ err, cacheId }, 'what a cache owns cannot be read; it is made again');
      this.caches.set(cacheId, { cacheId, making: true, ready: [], leaving: [] });
    }
  }

  get(cacheId: string): OwnedCache | undefined {
    return this.caches.get(cacheId);
  }

  all(): OwnedCache[] {
    return [...this.caches.values()];
  }

  /** Changes what a cache owns and answers that. Durable when it resolves; a cache that owns nothing is forgotten. Errors: InvalidArgument. */
  change(cacheId: string, next: (cache: OwnedCache) => OwnedCache): Promise<OwnedCache> {
    return this.one(async () => {
      if (!CACHE_ID.test(cacheId)) {
        throw new AppError('InvalidArgument', { op: 'keep images for', subject: cacheId.slice(0, 100), what: 'is not a cache id' });
      }
      const cache = next(this.caches.get(cacheId) ?? { cacheId, making: false, ready: [], leaving: [] });
      if (cache.making || cache.ready.length > 0 || cache.leaving.length > 0) {
        await writeDurably(this.pathOf(cacheId), JSON.stringify({ version: 1, ...cache }));
        this.caches.set(cacheId, cache);
      } else {
        await removeDurably(this.pathOf(cacheId));
        this.caches.delete(cacheId);
      }
      return cache;
    });
  }

  private pathOf(cacheId: string): string {
    return path.join(this.directory, `${cacheId}.json`);
  }
}
