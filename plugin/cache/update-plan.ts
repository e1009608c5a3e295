/** What an update changes: at once, or by building anew. Pure. Ours. */
import { isDeepStrictEqual } from 'node:util';
import { type CacheRecord, type HeldImage, heldImage } from './cache-record.ts';
import type { Change } from './catalogue.ts';
import type { ImageRegistryCredential, UpdateCacheRequest } from './types.ts';

export interface UpdatePlan {
  /** Takes effect at once; empty: nothing does. */
  readonly change: Change;
  /** Undefined: nothing is built. */
  readonly rebuild: { readonly pending: readonly HeldImage[]; readonly pendingSizeGib: number | null } | undefined;
  /** The images are named again as they are: only the registry knows whether they have moved. */
  readonly mayHaveMoved: boolean;
  /** New credentials, to be sealed; undefined: they stay. */
  readonly credentials: readonly ImageRegistryCredential[] | undefined;
}

function namesOf(images: readonly HeldImage[]): string[] {
  return images.map((image) => image.canonicalReference).sort();
}

/** Compares the normalised request with what is (R123). `credentials`: the present ones. */
export function planUpdate(record: CacheRecord, patch: UpdateCacheRequest, credentials: readonly ImageRegistryCredential[]): UpdatePlan {
  const change: { -readonly [K in keyof Change]: Change[K] } = {};
  if (patch.imageCacheName !== undefined && patch.imageCacheName !== record.name) change.name = patch.imageCacheName;
  if (patch.retentionDays !== undefined && patch.retentionDays !== record.retentionDays) change.retentionDays = patch.retentionDays;
  const isLru = patch.eliminationStrategy === undefined ? record.isLru : patch.eliminationStrategy === 'LRU';
  if (isLru !== record.isLru) change.isLru = isLru;
  const settings = settingsAfter(record, patch);
  if (!isDeepStrictEqual(settings, record.settings)) change.settings = settings;
  if (settings.flash !== record.settings.flash) change.flashProgress = settings.flash ? 100 : null;
  const isNewSize = patch.imageCacheSize !== undefined && patch.imageCacheSize !== record.sizeGib;
  const pendingSizeGib = isNewSize ? patch.imageCacheSize! : null;
  const named = patch.images?.map((reference) => heldImage(reference));
  // After a failed update the former images are a change too: back to Ready.
  const isBack = record.status === 'UpdateFailed';
  const hasOthers = named !== undefined && (isBack || !isDeepStrictEqual(namesOf(named), namesOf(record.images)));
  const isRebuilt = hasOthers || isNewSize;
  const given = patch.imageRegistryCredentials;
  return {
    change,
    rebuild: isRebuilt ? { pending: named ?? record.images, pendingSizeGib } : undefined,
    mayHaveMoved: named !== undefined && !hasOthers,
    credentials: given === undefined || isDeepStrictEqual(given, credentials) ? undefined : given,
  };
}

function settingsAfter({ settings }: CacheRecord, patch: UpdateCacheRequest): CacheRecord['settings'] {
  return {
    ...settings,
    autoMatchImageCache: patch.autoMatchImageCache ?? settings.autoMatchImageCache,
    flash: patch.flash ?? settings.flash,
    tags: patch.tags ?? settings.tags,
    plainHttpRegistry: patch.plainHttpRegistry ?? settings.plainHttpRegistry,
    insecureRegistry: patch.insecureRegistry ?? settings.insecureRegistry,
    resourceGroupId: patch.resourceGroupId ?? settings.resourceGroupId,
  };
}
