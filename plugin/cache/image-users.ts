/** Which caches hold an image, by every name that containerd and CRI know it by. Kept up with every change. Ours. */
import { type Digest, isDigest } from '../base/digest.ts';
import { isAppError } from '../base/errors.ts';
import { formatReference, parseReference } from '../registry/reference.ts';
import { type HeldImage, isPinned, repositoryOf } from './cache-record.ts';

/** The image's own names: tag, index, manifest and id, alone and with the repository. */
function namesOf(image: HeldImage): string[] {
  if (!isPinned(image)) return [];
  const { digest, platformDigest, configDigest } = image.resolved;
  const repository = repositoryOf(image.reference);
  const { host, repository: path, tag } = parseReference(image.reference);
  const tagged = tag === undefined ? [] : [formatReference({ host, repository: path, tag })];
  return [...tagged, `${repository}@${digest}`, `${repository}@${platformDigest}`, digest, platformDigest, configDigest];
}

/** What a question is looked up by; undefined: it names no image. */
function keyOf(referenceOrDigest: string): string | undefined {
  if (isDigest(referenceOrDigest)) return referenceOrDigest;
  const asId = `sha256:${referenceOrDigest}`;
  if (isDigest(asId)) return asId satisfies Digest;
  try {
    return formatReference(parseReference(referenceOrDigest));
  } catch (error) {
    if (isAppError(error, 'InvalidArgument')) return undefined;
    throw error;
  }
}

export class ImageUsers {
  private readonly users = new Map<string, Set<string>>();
  private readonly ofCache = new Map<string, ReadonlySet<string>>();

  /** What the cache holds or builds from now on; none: it is forgotten. */
  set(cacheId: string, images: readonly HeldImage[]): void {
    const names = new Set(images.flatMap(namesOf));
    for (const name of this.ofCache.get(cacheId) ?? []) {
      if (!names.has(name)) this.drop(name, cacheId);
    }
    for (const name of names) {
      const users = this.users.get(name);
      if (users === undefined) this.users.set(name, new Set([cacheId]));
      else users.add(cacheId);
    }
    if (names.size === 0) this.ofCache.delete(cacheId);
    else this.ofCache.set(cacheId, names);
  }

  /** Ids of the caches that hold the image of this reference, index, manifest or config digest. */
  of(referenceOrDigest: string): readonly string[] {
    const key = keyOf(referenceOrDigest);
    return key === undefined ? [] : [...(this.users.get(key) ?? [])];
  }

  private drop(name: string, cacheId: string): void {
    const users = this.users.get(name)!;
    users.delete(cacheId);
    if (users.size === 0) this.users.delete(name);
  }
}
