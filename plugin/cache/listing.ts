/** Filters and pages of DescribeImageCaches (R129). Pure over the catalogue. Ours. */
import { type CacheRecord, heldImage, snapshotIdOf } from './cache-record.ts';
import { explainMatch } from './match.ts';
import { candidateOf, parseQuery } from './match-query.ts';
import type { CacheFilter } from './types.ts';
import { cacheError } from './validation.ts';

const MAX_PAGE = 100;
const DEFAULT_PAGE = 50;
/** No cache is too large for a question that is about no pod. */
const ANY_SIZE_GIB = Number.MAX_SAFE_INTEGER;

export interface Page {
  readonly records: readonly CacheRecord[];
  readonly next: string | null;
  readonly totalCount: number;
}

function passes(record: CacheRecord, filter: CacheFilter, image: string | undefined): boolean {
  const { imageCacheIds, imageCacheName, snapshotId, tags, resourceGroupId, status, owner } = filter;
  const hasTag = ({ key, value }: { key: string; value?: string }): boolean =>
    record.settings.tags.some((tag) => tag.key === key && (value === undefined || tag.value === value));
  return (
    (imageCacheIds === undefined || imageCacheIds.includes(record.id)) &&
    (imageCacheName === undefined || record.name === imageCacheName) &&
    (snapshotId === undefined || snapshotIdOf(record) === snapshotId) &&
    (image === undefined || record.images.some((held) => held.canonicalReference === image)) &&
    (tags ?? []).every(hasTag) &&
    (resourceGroupId === undefined || record.settings.resourceGroupId === resourceGroupId) &&
    (status === undefined || record.status === status) &&
    (owner === undefined || record.owner === owner)
  );
}

/** Those that the matcher would take, best first. */
function matching(records: readonly CacheRecord[], filter: CacheFilter): CacheRecord[] {
  const { matchImages = [], imageFullMatch: perfectMatch = false, imageMatchCountRequest } = filter;
  const query = parseQuery(
    {
      images: matchImages.map((reference) => ({ reference })),
      perfectMatch,
      ...(imageMatchCountRequest === undefined ? {} : { matchCountRequest: imageMatchCountRequest }),
    },
    0,
  );
  const byId = new Map(records.map((record) => [record.id, record]));
  const { candidates } = explainMatch({ ...query, ephemeralStorage: ANY_SIZE_GIB }, records.map(candidateOf));
  return candidates.flatMap(({ rank, imageCacheId }) => (rank === null ? [] : byId.get(imageCacheId)!));
}

/** `records`: newest first. Throws InvalidParameter. */
export function pageOf(records: readonly CacheRecord[], filter: CacheFilter, page: { limit?: number; after?: string }): Page {
  const limit = page.limit ?? DEFAULT_PAGE;
  if (!Number.isSafeInteger(limit) || limit < 1 || limit > MAX_PAGE) throw refuse('limit', `${limit} is not 1 to ${MAX_PAGE}`);
  const image = filter.image === undefined ? undefined : heldImage(filter.image).canonicalReference;
  const passed = records.filter((record) => passes(record, filter, image));
  const isMatch = filter.matchImages !== undefined && filter.matchImages.length > 0;
  const found = isMatch ? matching(passed, filter) : passed;
  const start = page.after === undefined ? 0 : startAfter(found, page.after, isMatch);
  const shown = found.slice(start, start + limit);
  const last = shown.at(-1);
  const hasMore = last !== undefined && start + limit < found.length;
  return { records: shown, totalCount: found.length, next: hasMore ? cursorOf(isMatch ? { rank: start + limit } : last) : null };
}

/** By creation the cursor survives that caches come and go; by match it is a place in the order. */
function cursorOf(place: { rank: number } | CacheRecord): string {
  const text = 'rank' in place ? `r${place.rank}` : `c${place.createdUs}.${place.id}`;
  return Buffer.from(text).toString('base64url');
}

function startAfter(found: readonly CacheRecord[], cursor: string, isMatch: boolean): number {
  const text = cursor.length > 200 ? '' : Buffer.from(cursor, 'base64url').toString();
  const rank = /^r(\d{1,9})$/.exec(text);
  const place = /^c(\d{1,17})\.(imc-[a-z0-9]{20})$/.exec(text);
  if (isMatch && rank !== null) return Number(rank[1]);
  if (isMatch || place === null) throw refuse('after', 'is not what an earlier page gave for the same filters');
  const createdUs = Number(place[1]);
  const index = found.findIndex((record) => record.createdUs < createdUs || (record.createdUs === createdUs && record.id > place[2]!));
  return index === -1 ? found.length : index;
}

function refuse(field: string, what: string): Error {
  return cacheError('InvalidParameter', { op: 'list image caches', subject: 'request', what: `${field}: ${what}`, details: { field } });
}
