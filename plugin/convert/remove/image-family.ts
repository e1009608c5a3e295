/**
 * What belongs to an image in its repository: the manifests of an index, the tags that name it, the twins that were made of it. Read before
 * something is deleted. Ours; kinds are told by the documents, never by tags (C1 of requirements.md).
 */
import pLimit from 'p-limit';
import type { Digest } from '../../base/digest.ts';
import { AppError, isAppError } from '../../base/errors.ts';
import { ANNOTATION } from '../../image/oci/annotations.ts';
import { type Index, type Manifest, parseManifestOrIndex } from '../../image/oci/manifest.ts';
import { ARTIFACT_TYPE, isManifestType } from '../../image/oci/media-types.ts';
import type { RegistryClient } from '../../registry/client.ts';
import type { Repository } from '../../registry/reference.ts';
import { isConverted } from '../publish/classify.ts';

/** Requests at once. */
const MAX_LOOKUPS = 8;
/** Manifests of one index that are looked at, as many as a conversion makes. */
const MAX_MEMBERS = 64;
/** Tags of a repository that are looked at: at 5 ms each some seconds. */
const MAX_TAGS = 5_000;

export type ImageKind = 'original' | 'full' | 'index-only';

export interface Member {
  digest: Digest;
  document: Manifest | Index;
}

/** A manifest, or an index with its manifests. */
export interface Family {
  root: Member;
  /** Of an index; those that the repository does not have are left out. */
  children: readonly Member[];
  kind: ImageKind;
}

const OUTPUT_TYPES: ReadonlySet<string | undefined> = new Set(Object.values(ARTIFACT_TYPE));

export class ImageFamilies {
  private readonly client: RegistryClient;
  private readonly repository: Repository;
  private readonly signal: AbortSignal;

  constructor(client: RegistryClient, repository: Repository, signal: AbortSignal) {
    this.client = client;
    this.repository = repository;
    this.signal = signal;
  }

  /** Throws NotFound, InvalidArgument for what is no image, ResourceExhausted for an index of too many, and as any request. */
  async read(tagOrDigest: string): Promise<Family> {
    const root = await this.member(tagOrDigest);
    const { document } = root;
    const entries = document.kind === 'index' ? document.manifests.filter((entry) => isManifestType(entry.mediaType)) : [];
    if (entries.length > MAX_MEMBERS) {
      const what = `its index has ${entries.length} manifests, at most ${MAX_MEMBERS} are looked through`;
      throw new AppError('ResourceExhausted', { op: 'read image', subject: root.digest, what });
    }
    const found = await this.each(entries, (entry) => this.ifThere(() => this.member(entry.digest)));
    const children = found.filter((child) => child !== undefined);
    return { root, children, kind: kindOf([root, ...children]) };
  }

  /** {@link read}, or undefined when the repository does not have it. */
  readIfThere(tagOrDigest: string): Promise<Family | undefined> {
    return this.ifThere(() => this.read(tagOrDigest));
  }

  /** What every tag names. Throws ResourceExhausted for a repository of too many tags. */
  async tags(): Promise<Map<string, Digest>> {
    const { client, repository, signal } = this;
    const tags = await client.listTags(repository, { signal, isCurrent: true });
    if (tags.length > MAX_TAGS) {
      const what = `the repository has ${tags.length} tags, at most ${MAX_TAGS} are looked through`;
      throw new AppError('ResourceExhausted', { op: 'look through', subject: `${repository.host}/${repository.repository}`, what });
    }
    const digests = await this.each(tags, (tag) =>
      this.ifThere(async () => (await client.resolve(repository, tag, { signal, isCurrent: true })).digest),
    );
    return new Map(tags.flatMap((tag, i) => (digests[i] === undefined ? [] : [[tag, digests[i]] as const])));
  }

  /** Converted images that the registry lists as referring to any of the digests. */
  async referring(subjects: readonly Digest[]): Promise<Set<Digest>> {
    const { client, repository, signal } = this;
    const lists = await this.each(subjects, (subject) => client.listReferrers(repository, subject, { signal }));
    return new Set(lists.flat().flatMap(({ artifactType, digest }) => (OUTPUT_TYPES.has(artifactType) ? [digest] : [])));
  }

  private async member(tagOrDigest: string): Promise<Member> {
    const { bytes, descriptor } = await this.client.getManifest(this.repository, tagOrDigest, { signal: this.signal, isCurrent: true });
    return { digest: descriptor.digest, document: parseManifestOrIndex(bytes, descriptor.mediaType, tagOrDigest) };
  }

  private each<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
    const limit = pLimit(MAX_LOOKUPS);
    return Promise.all(items.map((item) => limit(() => work(item))));
  }

  /** Undefined for what is not there, and for documents of a kind unknown here. */
  private async ifThere<T>(work: () => Promise<T>): Promise<T | undefined> {
    try {
      return await work();
    } catch (error) {
      if (isAppError(error, 'NotFound', 'Unimplemented')) return undefined;
      throw error;
    }
  }
}

/** The members that a conversion made: all that is deleted with a converted image. */
export function convertedMembers({ root, children }: Family): Member[] {
  return [...children, root].filter((member) => member === root || isConverted(member.document));
}

function kindOf(members: readonly Member[]): ImageKind {
  const converted = members.map((member) => member.document).filter(isConverted);
  if (converted.length === 0) return 'original';
  return converted.some(needsOriginal) ? 'index-only' : 'full';
}

function needsOriginal(document: Manifest | Index): boolean {
  if (document.artifactType === ARTIFACT_TYPE.turbo) return true;
  return document.kind === 'manifest' && document.layers.some((layer) => layer.annotations?.[ANNOTATION.turboTargetDigest] !== undefined);
}
