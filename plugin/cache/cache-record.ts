/** A cache as the control plane keeps it, its translation to and from database rows, and the form in which it is shown. Ours. */
import assert from 'node:assert';
import { z } from 'zod';
import type { CacheImageRow, CacheRow } from '../../db/cache-store.ts';
import type { Digest } from '../base/digest.ts';
import { formatReference, formatRepository, parseReference } from '../registry/reference.ts';
import { isServing, isWorking } from './cache-states.ts';
import type { ResolvedImage } from './image-store.ts';
import { expiryUs, type RetentionRules } from './retention.ts';
import type { CacheEvent, CacheImage, ImageCache } from './types.ts';

/** An image of a cache. */
export interface HeldImage {
  /** As it was asked for. */
  readonly reference: string;
  /** `docker.io/library/nginx:1.27`; by digest when the reference has one. */
  readonly canonicalReference: string;
  /** Null: not looked up yet. */
  readonly resolved: ResolvedImage | null;
}

export interface PinnedImage extends HeldImage {
  readonly resolved: ResolvedImage;
}

/** What nothing is looked up by. */
export type CacheSettings = Pick<
  ImageCache,
  'autoMatchImageCache' | 'flash' | 'tags' | 'plainHttpRegistry' | 'insecureRegistry' | 'cpuArch' | 'osType' | 'resourceGroupId' | 'cloud'
>;

export interface CacheRecord extends Omit<CacheRow, 'settings' | 'deletedUs'> {
  readonly settings: CacheSettings;
  readonly images: readonly HeldImage[];
  readonly pending: readonly HeldImage[] | null;
}

export function heldImage(reference: string, resolved: ResolvedImage | null = null): HeldImage {
  return { reference, canonicalReference: formatReference(parseReference(reference)), resolved };
}

/** `docker.io/library/nginx`. */
export function repositoryOf(reference: string): string {
  return formatRepository(parseReference(reference));
}

export function isPinned(image: HeldImage): image is PinnedImage {
  return image.resolved !== null;
}

export function pinnedOf(images: readonly HeldImage[]): ResolvedImage[] {
  return images.filter(isPinned).map((image) => image.resolved);
}

/** The images that the present work is about. */
export function targetOf(record: CacheRecord): readonly HeldImage[] {
  return record.pending ?? record.images;
}

/** GiB that the target may take. */
export function targetSizeOf(record: CacheRecord): number {
  return record.pendingSizeGib ?? record.sizeGib;
}

/** The images whose bytes the cache has or will have: a failed update has none but the former ones. */
export function countedImages({ status, images, pending }: CacheRecord): readonly HeldImage[] {
  if (status === 'Failed') return [];
  return status === 'Updating' ? [...images, ...(pending ?? [])] : images;
}

/** True when the creation queue has something to do for it. */
export function hasWork(record: CacheRecord): boolean {
  return isWorking(record.status) || (record.status === 'Ready' && !record.isWhole);
}

const digestSchema = z.string().regex(/^sha256:[0-9a-f]{64}$/) as unknown as z.ZodType<Digest>;
const resolvedSchema = z.object({
  reference: z.string(),
  digest: digestSchema,
  platformDigest: digestSchema,
  configDigest: digestSchema,
  form: z.enum(['full', 'index-only', 'ordinary']),
  layers: z.array(
    z.object({
      digest: digestSchema,
      sizeBytes: z.int().min(0),
      chainId: digestSchema,
      source: z.object({ digest: digestSchema, sizeBytes: z.int().min(0) }).exactOptional(),
    }),
  ),
  sizeBytes: z.int().min(0),
  held: z.array(z.object({ name: z.string(), bytes: z.int().min(0) })).exactOptional(),
});

/** Checks a resolution, from the port or from the database. Throws ZodError: it is ours, whatever registries say. */
export function parseResolved(value: unknown): ResolvedImage {
  return resolvedSchema.parse(value);
}

function heldImages(rows: readonly CacheImageRow[]): HeldImage[] {
  return [...rows]
    .sort((a, b) => a.position - b.position)
    .map(({ reference, resolved }) => heldImage(reference, resolved === null ? null : parseResolved(JSON.parse(resolved))));
}

export function recordOf(row: CacheRow, rows: readonly CacheImageRow[]): CacheRecord {
  const { settings, deletedUs, ...rest } = row;
  assert(deletedUs === null, `${row.id} is deleted`);
  const pending = rows.filter((image) => image.list === 'pending');
  return {
    ...rest,
    settings: JSON.parse(settings) as CacheSettings,
    images: heldImages(rows.filter((image) => image.list === 'current')),
    pending: pending.length === 0 ? null : heldImages(pending),
  };
}

export function rowOf(record: CacheRecord): CacheRow {
  const { settings, images: _images, pending: _pending, ...rest } = record;
  return { ...rest, settings: JSON.stringify(settings), deletedUs: null };
}

export function imageRowsOf(record: CacheRecord): CacheImageRow[] {
  const rows = (list: 'current' | 'pending', images: readonly HeldImage[]): CacheImageRow[] =>
    images.map(({ reference, resolved }, position) => ({
      ...{ cacheId: record.id, list, position, reference },
      resolved: resolved === null ? null : JSON.stringify(resolved),
    }));
  return [...rows('current', record.images), ...rows('pending', record.pending ?? [])];
}

export function isoOfUs(us: number): string {
  return new Date(us / 1000).toISOString();
}

function imageView({ reference, canonicalReference, resolved }: HeldImage): CacheImage {
  return {
    reference,
    canonicalReference,
    digest: resolved?.digest ?? null,
    platformDigest: resolved?.platformDigest ?? null,
    configDigest: resolved?.configDigest ?? null,
    form: resolved?.form ?? null,
    sizeBytes: resolved?.sizeBytes ?? null,
  };
}

const suffixOf = (id: string): string => id.slice('imc-'.length);

/** The name of the process that builds a cache. */
export function workerNameOf(id: string): string {
  return `eci-${suffixOf(id)}`;
}

/** `s-…`: the set that backs it. */
export function snapshotIdOf({ id, status, isWhole }: Pick<CacheRecord, 'id' | 'status' | 'isWhole'>): string | null {
  return isServing(status) && isWhole ? `s-${suffixOf(id)}` : null;
}

function flashSnapshotIdOf({ id, status, isWhole }: CacheRecord): string | null {
  return isServing(status) && !isWhole ? `f-${suffixOf(id)}` : null;
}

/** What is shown of a cache: everything but its credentials. */
export function viewOf(record: CacheRecord, events: readonly CacheEvent[], rules: RetentionRules): ImageCache {
  const { settings } = record;
  const expires = expiryUs(record, rules);
  return {
    imageCacheId: record.id,
    imageCacheName: record.name,
    owner: record.owner,
    sandboxId: record.sandboxId,
    status: record.status,
    progress: record.progress,
    flashProgress: record.flashProgress,
    images: record.images.map(imageView),
    pendingImages: record.pending?.map(imageView) ?? null,
    imageCacheSize: record.sizeGib,
    retentionDays: record.retentionDays,
    eliminationStrategy: record.isLru ? 'LRU' : null,
    ...settings,
    creationTime: isoOfUs(record.createdUs),
    lastUpdatedTime: isoOfUs(record.updatedUs),
    expireDateTime: expires === null ? null : isoOfUs(expires),
    lastMatchedTime: record.matchedUs === null ? null : isoOfUs(record.matchedUs),
    matchCount: record.matchCount,
    snapshotId: snapshotIdOf(record),
    flashSnapshotId: flashSnapshotIdOf(record),
    containerGroupId: workerNameOf(record.id),
    version: record.version,
    failure: record.failure,
    events,
  };
}
