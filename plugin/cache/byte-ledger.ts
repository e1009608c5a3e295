/**
 * How many bytes the images of all caches take together: what several share counts once, since the store keeps it once. Kept up with every
 * change, so that room can be looked for before anything is fetched. Ours.
 */
import type { ResolvedImage } from './image-store.ts';

/** What an image takes: what is on the disk of it; before it is here, its blobs, the layers that they stand for, and metadata. */
function partsOf(image: ResolvedImage): Map<string, number> {
  if (image.held !== undefined) return new Map(image.held.map(({ name, bytes }) => [name, bytes]));
  const parts = new Map<string, number>();
  for (const { digest, sizeBytes, source } of image.layers) {
    parts.set(digest, sizeBytes);
    if (source !== undefined) parts.set(source.digest, source.sizeBytes);
  }
  parts.set(`rest of ${image.platformDigest}`, Math.max(0, image.sizeBytes - sumOf(parts)));
  return parts;
}

function sumOf(parts: ReadonlyMap<string, number>): number {
  let sum = 0;
  for (const bytes of parts.values()) sum += bytes;
  return sum;
}

function partsOfAll(images: readonly ResolvedImage[]): Map<string, number> {
  return new Map(images.flatMap((image) => [...partsOf(image)]));
}

/** Bytes that the images take together when nobody else has any of them. */
export function sizeOfImages(images: readonly ResolvedImage[]): number {
  return sumOf(partsOfAll(images));
}

export class ByteLedger {
  private readonly parts = new Map<string, { bytes: number; count: number }>();
  private readonly ofCache = new Map<string, ReadonlyMap<string, number>>();
  private sum = 0;

  /** Of all caches. */
  get totalBytes(): number {
    return this.sum;
  }

  /** What the cache holds or builds from now on; none: it is forgotten. */
  set(cacheId: string, images: readonly ResolvedImage[]): void {
    const former = this.ofCache.get(cacheId) ?? new Map<string, number>();
    const parts = partsOfAll(images);
    for (const [name, bytes] of parts) this.add(name, bytes);
    for (const name of former.keys()) this.drop(name);
    if (parts.size === 0) this.ofCache.delete(cacheId);
    else this.ofCache.set(cacheId, parts);
  }

  /** Bytes that would go if the cache went. */
  freedBy(cacheId: string): number {
    let freed = 0;
    for (const name of this.ofCache.get(cacheId)?.keys() ?? []) {
      const part = this.parts.get(name)!;
      if (part.count === 1) freed += part.bytes;
    }
    return freed;
  }

  private add(name: string, bytes: number): void {
    const part = this.parts.get(name);
    if (part === undefined) {
      this.parts.set(name, { bytes, count: 1 });
      this.sum += bytes;
    } else part.count += 1;
  }

  private drop(name: string): void {
    const part = this.parts.get(name)!;
    part.count -= 1;
    if (part.count > 0) return;
    this.parts.delete(name);
    this.sum -= part.bytes;
  }
}
