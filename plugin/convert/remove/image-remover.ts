/**
 * Deletes an image from its registry, if nothing on this node suffers. Sources: R17–R19 and C3 of requirements.md.
 *
 *   deleted                             refused while used on this node are
 *   converted image                     itself
 *   original                            its index-only twins and those for containerd alone (`_containerd_accelerated`)
 *                                       but not its full copies for Docker and containerd (`_accelerated`), which stand alone
 *
 * Nothing is refused when the manifest stays because other tags name it: then only the tag goes.
 */
import type { Digest } from '../../base/digest.ts';
import { AppError, isAppError } from '../../base/errors.ts';
import type { RegistryClient } from '../../registry/client.ts';
import { formatRepository, parseReference, type Repository } from '../../registry/reference.ts';
import { isResultTag, type Runtime, runtimeOfTag, twinTags } from '../publish/tag-names.ts';
import { convertedMembers, type Family, ImageFamilies, type ImageKind } from './image-family.ts';

/** A snapshot, container or cache that cannot be read without a manifest. */
export interface ImageUser {
  kind: string;
  key: string;
}

export interface RemovedImage {
  /** `registry.example/team/app` */
  repository: string;
  digest: Digest;
  kind: ImageKind;
  /** Tags that are gone. */
  tags: string[];
  /** Manifests that are gone; none when other tags name the image. */
  manifests: Digest[];
}

export interface RemoverParts {
  client: RegistryClient;
  /** Users on this node, at most `limit`. */
  usersOf(digest: string, limit: number): readonly ImageUser[];
  /** What a conversion of this node made the digest for; undefined: it did not make it. */
  runtimeOf(repository: Repository, digest: Digest): Runtime | undefined;
}

/** Users of one manifest that are looked at. */
const MAX_USERS = 1_000;
/** Users that a refusal names. */
const MAX_NAMED = 20;

/**
 * Deletes what a reference names: by tag the image, or only the tag when others name the same; by digest the image with all its tags.
 * Throws FailedPrecondition naming the users, or because the registry does not allow deletion; Conflict when tag and digest disagree;
 * NotFound; and as any request. Repeating what was interrupted finishes it.
 */
export async function removeImage(reference: string, parts: RemoverParts, signal: AbortSignal): Promise<RemovedImage> {
  const { host, repository, tag, digest } = parseReference(reference);
  const removal = new Removal(reference, { host, repository }, parts, signal);
  return digest === undefined ? removal.run(tag ?? 'latest', tag ?? 'latest') : removal.run(tag, digest);
}

class Removal {
  private readonly reference: string;
  private readonly repository: Repository;
  private readonly parts: RemoverParts;
  private readonly signal: AbortSignal;
  private readonly families: ImageFamilies;

  constructor(reference: string, repository: Repository, parts: RemoverParts, signal: AbortSignal) {
    this.reference = reference;
    this.repository = repository;
    this.parts = parts;
    this.signal = signal;
    this.families = new ImageFamilies(parts.client, repository, signal);
  }

  async run(tag: string | undefined, object: string): Promise<RemovedImage> {
    const family = await this.families.read(object);
    const { digest } = family.root;
    const tags = await this.families.tags();
    if (tag !== undefined && tags.get(tag) !== digest) {
      throw new AppError('Conflict', { op: 'delete', subject: this.reference, what: `the tag names ${tags.get(tag) ?? 'nothing'}` });
    }
    const own = [...tags].filter(([, named]) => named === digest).map(([name]) => name);
    const common = { repository: formatRepository(this.repository), digest, kind: family.kind };
    if (tag !== undefined && own.length > 1) {
      await this.removeTag(tag, own);
      return { ...common, tags: [tag], manifests: [] };
    }
    const users = family.kind === 'original' ? await this.usersOfOriginal(family, tags, own) : this.usersOf(digestsOf(family));
    if (users.length > 0) throw this.inUse(family.kind, users);
    const manifests = family.kind === 'original' ? [digest] : await this.removeConverted(family, tags);
    if (family.kind === 'original') await this.remove(digest);
    return { ...common, tags: own, manifests };
  }

  /** Those who read from a twin that needs the original, or that is guarded like one. */
  private async usersOfOriginal(original: Family, tags: ReadonlyMap<string, Digest>, own: readonly string[]): Promise<ImageUser[]> {
    const subjects = digestsOf(original);
    const twins = await this.families.referring(subjects);
    for (const tag of own.flatMap(twinTags)) if (tags.has(tag)) twins.add(tags.get(tag)!);
    const tagsOf = (digest: Digest): string[] => [...tags].filter(([, named]) => named === digest).map(([tag]) => tag);
    // By manifest: true for a copy that stands alone. What an index holds is what the index is.
    const standsAlone = new Map<Digest, boolean>();
    const classify = (twin: Digest, isForBoth: boolean): Promise<void> => this.classify(twin, isForBoth, new Set(subjects), standsAlone);
    const unknown: Digest[] = [];
    for (const twin of twins) {
      const runtimes = tagsOf(twin).map(runtimeOfTag);
      const made = this.parts.runtimeOf(this.repository, twin);
      if (made !== undefined) runtimes.push(made);
      if (runtimes.length === 0) unknown.push(twin);
      else
        await classify(
          twin,
          runtimes.every((runtime) => runtime === 'docker-and-containerd'),
        );
    }
    for (const twin of unknown) if (!standsAlone.has(twin)) await classify(twin, false);
    const copies = [...standsAlone].filter(([, alone]) => alone).map(([digest]) => digest);
    const guarded = [...standsAlone].filter(([, alone]) => !alone).map(([digest]) => digest);
    const unaffected = new Set(this.usersOf(copies).map((user) => user.key));
    return this.usersOf([...digestsOf(original), ...guarded]).filter((user) => !unaffected.has(user.key));
  }

  private async classify(
    twin: Digest,
    isForBoth: boolean,
    subjects: ReadonlySet<Digest>,
    standsAlone: Map<Digest, boolean>,
  ): Promise<void> {
    const family = await this.families.readIfThere(twin);
    const members = family === undefined ? undefined : convertedMembers(family);
    // The tag of a twin may still name that of an earlier image.
    const isOther = members?.every(({ document: { subject } }) => subject !== undefined && !subjects.has(subject.digest));
    if (isOther === true) return;
    const alone = isForBoth && family?.kind === 'full';
    // Listed, but deleted: whoever still reads from it is a user all the same.
    for (const digest of members?.map((member) => member.digest) ?? [twin]) {
      standsAlone.set(digest, alone && standsAlone.get(digest) !== false);
    }
  }

  private usersOf(digests: readonly Digest[]): ImageUser[] {
    const users = new Map<string, ImageUser>();
    for (const digest of digests) for (const user of this.parts.usersOf(digest, MAX_USERS)) users.set(user.key, user);
    return [...users.values()];
  }

  /** Images of an index go first, so that what was interrupted can be repeated; those that another index shares stay. */
  private async removeConverted(family: Family, tags: ReadonlyMap<string, Digest>): Promise<Digest[]> {
    const shared = new Set<Digest>();
    const others = new Set(
      [...tags].filter(([tag, digest]) => isResultTag(tag) && digest !== family.root.digest).map(([, digest]) => digest),
    );
    if (family.children.length > 0) {
      for (const other of others) for (const digest of digestsOf(await this.families.readIfThere(other))) shared.add(digest);
    }
    const removed: Digest[] = [];
    for (const { digest, document } of convertedMembers(family)) {
      if (shared.has(digest)) continue;
      await this.remove(digest);
      removed.push(digest);
      if (document.subject === undefined) continue;
      await this.parts.client.leaveReferrers(this.repository, document.subject.digest, digest, { signal: this.signal });
    }
    return removed;
  }

  private async remove(digest: Digest): Promise<void> {
    try {
      await this.parts.client.deleteManifest(this.repository, digest, { signal: this.signal });
    } catch (error) {
      // Gone since it was read, or by an attempt whose answer was lost.
      if (isAppError(error, 'NotFound')) return;
      if (!isAppError(error, 'Unimplemented')) throw error;
      const what = 'the registry does not allow deletion (docker-registry: storage.delete.enabled)';
      throw new AppError('FailedPrecondition', { op: 'delete', subject: this.reference, what, cause: error });
    }
  }

  private async removeTag(tag: string, own: readonly string[]): Promise<void> {
    try {
      await this.parts.client.deleteManifest(this.repository, tag, { signal: this.signal });
    } catch (error) {
      // Registries of the time before tags could be deleted alone take the tag for a malformed digest, or know no such request.
      if (!isAppError(error, 'Unimplemented', 'InvalidArgument', 'NotFound')) throw error;
      const others = own.filter((name) => name !== tag).slice(0, MAX_NAMED);
      const what = `${others.join(', ')} ${others.length === 1 ? 'names' : 'name'} the same image, and the registry deletes no tag alone; name the digest to delete all`;
      throw new AppError('FailedPrecondition', { op: 'delete', subject: this.reference, what, cause: error });
    }
  }

  private inUse(kind: ImageKind, users: readonly ImageUser[]): AppError {
    const named = users.slice(0, MAX_NAMED).map((user) => `${user.kind} ${user.key}`);
    const more = users.length > named.length ? ` and ${users.length - named.length} more` : '';
    const what = `${kind === 'original' ? 'its accelerated image is' : 'it is'} in use by ${named.join(', ')}${more}`;
    return new AppError('FailedPrecondition', { op: 'delete', subject: this.reference, what, details: { users: users.length } });
  }
}

function digestsOf(family: Family | undefined): Digest[] {
  return family === undefined ? [] : [family.root, ...family.children].map((member) => member.digest);
}
