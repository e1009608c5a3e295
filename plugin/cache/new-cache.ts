/** A cache as it begins. Ours. */
import { randomBytes } from 'node:crypto';
import type { z } from 'zod';
import { type CacheRecord, heldImage } from './cache-record.ts';
import { AUTOMATIC_PREFIX, type createCacheRequestSchema } from './requests.ts';
import type { AutoCreateRequest } from './types.ts';
import { cacheError } from './validation.ts';

/** A checked request, defaults filled in. */
export type CheckedCreate = z.output<typeof createCacheRequestSchema>;

/** `imc-` and 20 of a-z 0-9; never used twice. */
function newId(): string {
  return `imc-${randomBytes(10).toString('hex')}`;
}

type Begun = Pick<
  CacheRecord,
  'name' | 'owner' | 'sandboxId' | 'images' | 'sizeGib' | 'retentionDays' | 'isLru' | 'settings' | 'credentials'
>;

function begin(given: Begun, nowUs: number): CacheRecord {
  return {
    ...given,
    id: newId(),
    status: 'Preparing',
    isWhole: false,
    pending: null,
    pendingSizeGib: null,
    progress: 0,
    flashProgress: given.settings.flash ? 0 : null,
    version: 1,
    failure: null,
    attempts: 0,
    workSinceUs: nowUs,
    matchCount: 0,
    createdUs: nowUs,
    updatedUs: nowUs,
    servedUs: null,
    matchedUs: null,
    failedUs: null,
  };
}

/** A cache of a user. */
export function userCache(request: CheckedCreate, defaultSizeGib: number, credentials: Buffer | null, nowUs: number): CacheRecord {
  return begin(
    {
      name: request.imageCacheName,
      owner: 'user',
      sandboxId: null,
      images: request.images.map((reference) => heldImage(reference)),
      sizeGib: request.imageCacheSize ?? defaultSizeGib,
      retentionDays: request.retentionDays,
      isLru: request.eliminationStrategy === 'LRU',
      settings: {
        autoMatchImageCache: request.autoMatchImageCache,
        flash: request.flash,
        tags: request.tags,
        plainHttpRegistry: request.plainHttpRegistry,
        insecureRegistry: request.insecureRegistry,
        cpuArch: request.cpuArch ?? null,
        osType: request.osType ?? null,
        resourceGroupId: request.resourceGroupId ?? null,
        cloud: request.cloud,
      },
      credentials,
    },
    nowUs,
  );
}

/** The cache of a pod that matched nothing. */
export function automaticCache(request: AutoCreateRequest, sizeGib: number, credentials: Buffer | null, nowUs: number): CacheRecord {
  const { sandboxId, images, plainHttpRegistry = [], insecureRegistry = [] } = request;
  return begin(
    {
      name: AUTOMATIC_PREFIX + sandboxId,
      owner: 'system',
      sandboxId,
      images: images.map((reference) => heldImage(reference)),
      sizeGib,
      retentionDays: null,
      isLru: true,
      settings: {
        ...{ autoMatchImageCache: true, flash: false, tags: [], plainHttpRegistry, insecureRegistry },
        ...{ cpuArch: null, osType: null, resourceGroupId: null, cloud: {} },
      },
      credentials,
    },
    nowUs,
  );
}

/** References that look different may name the same. Throws InvalidParameter. */
export function refuseSameImages(references: readonly string[], op: string): void {
  const seen = new Map<string, string>();
  for (const reference of references) {
    const { canonicalReference } = heldImage(reference);
    const former = seen.get(canonicalReference);
    if (former !== undefined) {
      throw cacheError('InvalidParameter', {
        ...{ op, subject: 'request', what: `images: ${former} and ${reference} are the same image`, details: { field: 'images' } },
      });
    }
    seen.set(canonicalReference, reference);
  }
}

/** Names of automatic caches are the system's (R94). Throws InvalidParameter. */
export function refuseReservedName(name: string, op: string): void {
  if (!name.startsWith(AUTOMATIC_PREFIX)) return;
  throw cacheError('InvalidParameter', {
    ...{ op, subject: name, what: `names that begin with ${AUTOMATIC_PREFIX} are those of automatic caches` },
    details: { field: 'imageCacheName' },
  });
}
