/**
 * The image records of cached images in containerd. They are named and labelled as CRI names and labels its own, so that IfNotPresent finds
 * them; whoever removes one (ctr, RemoveImage, a collector) gets it back as long as a cache is Ready, from content that the cache's lease
 * keeps. Source of names and labels: containerd's pkg/cri/labels and CRI image store (1.6, 2.1).
 */
import type { ImageClient, ImageRecord } from '../../snapshotter/containerd/image-client.ts';
import type { OwnedCaches, OwnedImage } from './owned.ts';

const LABEL_MANAGED = 'io.cri-containerd.image';
const LABEL_PINNED = 'io.cri-containerd.pinned';

/** Ours: `made` on records that caches made, `found` on those that were there. A pull by somebody else takes it away, and with it our claim. */
const LABEL_OURS = 'io.overlaybd-sidecar.image-cache';

/** containerd knows the pinned label from here on. */
const PINNED_SINCE = [1, 7] as const;

/** Whether images can be pinned in this containerd, from its version (`v1.7.24`, `1.6.20~ds1`). */
export function knowsPinned(version: string): boolean {
  const match = /^v?(\d{1,4})\.(\d{1,4})/.exec(version);
  if (match === null) return false;
  const [major, minor] = [Number(match[1]), Number(match[2])];
  return major > PINNED_SINCE[0] || (major === PINNED_SINCE[0] && minor >= PINNED_SINCE[1]);
}

/** What there is to do about one record. */
interface Change {
  name: string;
  put?: ImageRecord;
  /** There was none: one that somebody has made meanwhile stays. */
  isNew?: boolean;
  /** Labels to change, an empty value to take one away. */
  label?: ImageRecord;
  isDeleted?: boolean;
}

function newRecord(name: string, image: OwnedImage, canPin: boolean): ImageRecord {
  const labels = { [LABEL_MANAGED]: 'managed', [LABEL_OURS]: 'made', ...(canPin ? { [LABEL_PINNED]: 'pinned' } : {}) };
  return { name, target: image.target, labels };
}

/** Makes every name of the image point to it, also one that names something else now. For an image that has just been resolved. */
export function changesToMake(image: OwnedImage, records: ReadonlyMap<string, ImageRecord>, canPin: boolean): Change[] {
  return image.names.flatMap((name) => {
    const record = records.get(name);
    if (record === undefined || record.target.digest !== image.target.digest) return [{ name, put: newRecord(name, image, canPin) }];
    return changesOfFound(name, record, canPin);
  });
}

/** Gives back the names that are missing. One that names something else by now was moved by somebody who pulled: it stays. */
export function changesToKeep(image: OwnedImage, records: ReadonlyMap<string, ImageRecord>, canPin: boolean): Change[] {
  return image.names.flatMap((name) => {
    const record = records.get(name);
    if (record === undefined) return [{ name, put: newRecord(name, image, canPin), isNew: true }];
    return record.target.digest === image.target.digest ? changesOfFound(name, record, canPin) : [];
  });
}

function changesOfFound(name: string, record: ImageRecord, canPin: boolean): Change[] {
  const label: Record<string, string> = {};
  if (record.labels[LABEL_MANAGED] !== 'managed') label[LABEL_MANAGED] = 'managed';
  if (canPin && record.labels[LABEL_PINNED] !== 'pinned') {
    label[LABEL_PINNED] = 'pinned';
    // What others pinned is theirs to unpin.
    if (record.labels[LABEL_OURS] === undefined) label[LABEL_OURS] = 'found';
  }
  return Object.keys(label).length === 0 ? [] : [{ name, label: { ...record, labels: label } }];
}

/**
 * Lets go of an image's names: those that caches made are deleted, those that were there are as they were before, and those that another
 * cached image has as well are that one's again.
 */
export function changesToLeave(
  image: OwnedImage,
  records: ReadonlyMap<string, ImageRecord>,
  wanted: ReadonlyMap<string, OwnedImage>,
  canPin: boolean,
): Change[] {
  return image.names.flatMap((name): Change[] => {
    const record = records.get(name);
    if (record === undefined) return [];
    const mark = record.labels[LABEL_OURS];
    const isTarget = record.target.digest === image.target.digest;
    const other = wanted.get(name);
    if (other !== undefined) {
      return isTarget && other.target.digest !== image.target.digest ? [{ name, put: newRecord(name, other, canPin) }] : [];
    }
    if (mark === 'made' && isTarget) return [{ name, isDeleted: true }];
    return mark === undefined ? [] : [{ name, label: { ...record, labels: { [LABEL_OURS]: '', [LABEL_PINNED]: '' } } }];
  });
}

/** Makes the changes; when names were deleted, what they alone kept is collected. */
export async function apply(client: ImageClient, namespace: string, changes: readonly Change[], signal: AbortSignal): Promise<void> {
  const lastDeleted = changes.findLastIndex(({ isDeleted }) => isDeleted === true);
  for (const [index, { name, put, isNew, label, isDeleted }] of changes.entries()) {
    if (put !== undefined && isNew === true) await client.createImage(namespace, put, signal);
    else if (put !== undefined) await client.putImage(namespace, put, signal);
    else if (label !== undefined) await client.labelImage(namespace, label, signal);
    else if (isDeleted === true) await client.deleteImage(namespace, name, index === lastDeleted, signal);
  }
}

/**
 * What containers use, as names of records and as digests of what they name: CRI notes any of the names that an image has, also one that no
 * cache knows.
 */
export function usedBy(containers: readonly { image: string }[], records: ReadonlyMap<string, ImageRecord>): ReadonlySet<string> {
  return new Set(containers.flatMap(({ image }) => [image, records.get(image)?.target.digest ?? image]));
}

/** All records of the namespace by name. */
export async function recordsOf(client: ImageClient, namespace: string, signal: AbortSignal): Promise<Map<string, ImageRecord>> {
  return new Map((await client.images(namespace, signal)).map((record) => [record.name, record]));
}

/** The cached images that are not on their way out, by each of their names. */
export function wantedNames(owned: OwnedCaches): Map<string, OwnedImage> {
  const images = owned.all().flatMap(({ ready }) => ready);
  return new Map(images.flatMap((image) => image.names.map((name): [string, OwnedImage] => [name, image])));
}
