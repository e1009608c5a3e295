/** Image caches as text for people. */
import { formatBytes } from '../plugin/base/units.ts';
import type { CacheView, ExplanationView, UsageView } from './cache-schemas.ts';
import { printable, table } from './render.ts';

type Event = CacheView['events'][number];

const heldBytes = (cache: CacheView): number => cache.images.reduce((sum, image) => sum + (image.sizeBytes ?? 0), 0);
export const stateOf = ({ status, progress }: CacheView): string => (status === 'Ready' ? status : `${status} ${Math.floor(progress)} %`);

export function renderCaches(caches: readonly CacheView[]): string {
  const rows = caches.map((cache) => [
    cache.imageCacheId,
    cache.imageCacheName,
    stateOf(cache),
    String(cache.images.length),
    `${formatBytes(heldBytes(cache))} of ${cache.imageCacheSize} GiB`,
    cache.owner,
    cache.lastMatchedTime ?? 'never',
    cache.expireDateTime ?? 'never',
  ]);
  return table(['ID', 'NAME', 'STATUS', 'IMAGES', 'SIZE', 'OWNER', 'LAST MATCHED', 'EXPIRES'], rows);
}

export function renderCache(cache: CacheView): string {
  const rows = [
    ['name', cache.imageCacheName],
    ['status', cache.failure === null ? stateOf(cache) : `${stateOf(cache)}: ${cache.failure}`],
    ['size', `${formatBytes(heldBytes(cache))} of ${cache.imageCacheSize} GiB`],
    ['made', `${cache.creationTime} by ${cache.owner}`],
    ['matched', cache.matchCount === 0 ? 'never' : `${cache.matchCount} times, last ${cache.lastMatchedTime ?? ''}`],
    ['expires', cache.expireDateTime ?? 'never'],
    ['gives way', cache.eliminationStrategy === 'LRU' ? 'when there are too many caches' : 'never'],
    ['tags', cache.tags.map(({ key, value }) => (value === '' ? key : `${key}=${value}`)).join(', ') || '-'],
    ['version', String(cache.version)],
  ];
  const images = cache.images.map((image) => [
    image.reference,
    image.form ?? '-',
    image.sizeBytes === null ? '-' : formatBytes(image.sizeBytes),
    image.digest ?? '-',
  ]);
  return `${table([cache.imageCacheId, ''], rows)}\n${table(['IMAGE', 'FORM', 'SIZE', 'DIGEST'], images)}\n${renderCacheEvents(cache.events)}`;
}

const eventRow = (event: Event): string[] => [event.lastTimestamp, event.type, event.reason, String(event.count), event.message];

export function renderCacheEvents(events: readonly Event[]): string {
  return table(['LAST', 'TYPE', 'REASON', 'COUNT', 'MESSAGE'], events.map(eventRow));
}

/** What is new of a cache, a line each; the last one says what state that led to. */
export function renderChange(cache: CacheView, fresh: readonly Event[]): string {
  const state = (index: number): string => (index === fresh.length - 1 ? `${stateOf(cache)}  ` : '');
  const lines = fresh.map(({ lastTimestamp, reason, message }, index) => `${lastTimestamp}  ${state(index)}${reason}: ${message}`);
  return lines.map((line) => `${printable(line)}\n`).join('');
}

export function renderExplanation({ outcome, imageCacheId, reason, ephemeralStorage, candidates }: ExplanationView): string {
  const head = `${outcome}${imageCacheId === null ? '' : ` ${imageCacheId}`}: ${reason} (caches of up to ${ephemeralStorage} GiB fit)`;
  const rows = candidates.map(({ rank, imageCacheId: id, imageCacheName, degree, coveredImages, images, lostBecause }) => [
    rank === null ? '-' : String(rank),
    id,
    imageCacheName,
    `${coveredImages} of ${images.length}`,
    `${degree.sameDigest}/${degree.sameReference}/${degree.sameRepository}`,
    formatBytes(degree.sharedLayerBytes),
    lostBecause ?? 'chosen',
  ]);
  return `${printable(head)}\n${table(['RANK', 'ID', 'NAME', 'WHOLE', 'DIGEST/REF/REPO', 'LAYERS', 'WHY'], rows)}`;
}

export function renderUsage(usage: UsageView): string {
  return table(
    ['USAGE', 'USED', 'OF'],
    [
      ['manual caches', String(usage.usedImageCacheCount), String(usage.maxImageCacheCount)],
      ['automatic caches', String(usage.usedAutoImageCacheCount), String(usage.maxAutoImageCacheCount)],
      ['bytes', formatBytes(usage.committedBytes), formatBytes(usage.budgetBytes)],
      ['being made', String(usage.creating), `${usage.waiting} wait`],
    ],
  );
}
