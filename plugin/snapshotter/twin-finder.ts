/**
 * Finds the accelerated twins of an ordinary image: artifacts that refer to its manifest, then the tags that converters write. Whatever
 * is found must say itself that it belongs to exactly this manifest; its kind is its artifact type, never its tag. Sources: OCI
 * distribution-spec v1.1 (referrers), overlaybd-formats.md 4.2, requirements R36, R37, R48.
 */
import { setMaxListeners } from 'node:events';
import type { Digest } from '../base/digest.ts';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import { ARTIFACT_TYPE, type ArtifactType } from '../image/oci/media-types.ts';
import { fetchPlatformManifests, type ImageManifest } from './manifest.ts';
import type { ImageResolver, RepositoryName } from './ports.ts';
import { kindsOf, placesOf, type TwinPolicy } from './twin-policy.ts';

/** Says, for converters that write no `subject`, to which manifest an artifact belongs. Ours. */
export const TWIN_SUBJECT_ANNOTATION = 'io.overlaybd-sidecar.subject';

/** What converters append to a tag. Which kind is behind it is not read from here. */
const TAG_SUFFIXES = ['_containerd_accelerated', '_accelerated'];

/** A tag's length; longer ones cannot have been written. */
const MAX_TAG_CHARS = 128;

/** Artifacts of one kind that are looked at: an image is converted again now and then. */
const MAX_OF_KIND = 4;

/** An artifact that claims to be the twin, with a claim that holds as far as the artifact itself goes. */
export interface TwinCandidate {
  kind: ArtifactType;
  repository: RepositoryName;
  manifest: ImageManifest;
}

export interface TwinSearch {
  /** In the order in which they are to be tried. */
  candidates: TwinCandidate[];
  /** What was found and is none, and what could not be asked. */
  refusals: string[];
  /** False when the answer may be another one soon: a registry was slow, away or in trouble. */
  isFinal: boolean;
}

const KINDS: ReadonlySet<string> = new Set(Object.values(ARTIFACT_TYPE));

/** Why a manifest is not the twin of `base`; undefined: it says that it is. */
function refusalOf(manifest: ImageManifest, base: Digest, kinds: readonly ArtifactType[]): string | undefined {
  const { artifactType } = manifest;
  if (artifactType === undefined || !KINDS.has(artifactType)) return `its artifact type is ${JSON.stringify(artifactType ?? 'absent')}`;
  if (!kinds.includes(artifactType as ArtifactType)) return 'it is of a kind that the configuration leaves out';
  const subject = manifest.subject ?? manifest.annotations[TWIN_SUBJECT_ANNOTATION];
  return subject === base ? undefined : `it belongs to ${subject ?? 'no image that it names'}`;
}

export class TwinFinder {
  private readonly resolver: ImageResolver;
  private readonly policy: TwinPolicy;
  private readonly kinds: readonly ArtifactType[];

  constructor(resolver: ImageResolver, policy: TwinPolicy) {
    this.resolver = resolver;
    this.policy = policy;
    this.kinds = kindsOf(policy);
  }

  /** Looks in all places within the time budget. Never fails because of a registry. Errors: InvalidArgument (the reference). */
  async find(image: string, base: Digest): Promise<TwinSearch> {
    const { lookupBudgetMs } = this.policy;
    const reference = this.resolver.parseReference(image);
    const places = placesOf(this.policy, reference);
    const found: TwinCandidate[] = [];
    const search: TwinSearch = { candidates: found, refusals: [], isFinal: true };
    if (places.length === 0) search.refusals.push(`${reference.host}/${reference.repository} is not trusted to supply twins`);
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort(), lookupBudgetMs);
    // One listener for each request under way.
    setMaxListeners(0, stop.signal);
    const take = (candidate: TwinCandidate): void => {
      if (!found.some((other) => other.manifest.digest === candidate.manifest.digest)) found.push(candidate);
    };
    const ask = async (what: string, work: () => Promise<void>): Promise<void> => {
      try {
        await work();
      } catch (error) {
        if (!stop.signal.aborted && !isAppError(error)) throw error;
        search.refusals.push(`${what}: ${stop.signal.aborted ? `no answer within ${lookupBudgetMs} ms` : describeError(error)}`);
        search.isFinal = false;
      }
    };
    try {
      await Promise.all(
        places.flatMap((place) => this.askPlace(place, { base, tag: reference.tag }, { ask, take, search, signal: stop.signal })),
      );
    } finally {
      clearTimeout(timer);
    }
    const order = (candidate: TwinCandidate): number => this.kinds.indexOf(candidate.kind);
    found.sort((a, b) => order(a) - order(b));
    return search;
  }

  private askPlace(
    place: RepositoryName,
    image: { base: Digest; tag: string | undefined },
    parts: {
      ask(what: string, work: () => Promise<void>): Promise<void>;
      take(candidate: TwinCandidate): void;
      search: TwinSearch;
      signal: AbortSignal;
    },
  ): Promise<void>[] {
    const { ask, take, search, signal } = parts;
    const { base, tag } = image;
    const name = `${place.host}/${place.repository}`;
    const judge = (manifest: ImageManifest): void => {
      const refusal = refusalOf(manifest, base, this.kinds);
      if (refusal === undefined) take({ kind: manifest.artifactType as ArtifactType, repository: place, manifest });
      else search.refusals.push(`${name}@${manifest.digest} is refused: ${refusal}`);
    };
    const referrers = ask(`referrers in ${name}`, async () => {
      const listed = await untilAborted(this.resolver.listReferrers(place, base, signal), signal);
      await Promise.all(this.choose(listed).map((digest) => this.each(name, digest, signal, { judge, search })));
    });
    const tags = tag === undefined ? [] : TAG_SUFFIXES.map((suffix) => `${tag}${suffix}`).filter((text) => text.length <= MAX_TAG_CHARS);
    return [referrers, ...tags.map((text) => ask(`tag ${text} in ${name}`, () => this.each(name, text, signal, { judge, search })))];
  }

  /** Of the referrers, those of a kind that is used, the preferred kind first. */
  private choose(listed: readonly { digest: string; artifactType: string }[]): string[] {
    return this.kinds.flatMap((kind) =>
      listed
        .filter(({ artifactType }) => artifactType === kind)
        .slice(0, MAX_OF_KIND)
        .map(({ digest }) => digest),
    );
  }

  /** Judges the manifests for this machine behind a tag or digest; a name that nothing has is no finding. */
  private async each(
    name: string,
    tagOrDigest: string,
    signal: AbortSignal,
    { judge, search }: { judge(manifest: ImageManifest): void; search: TwinSearch },
  ): Promise<void> {
    const isDigest = tagOrDigest.includes(':');
    const reference = `${name}${isDigest ? '@' : ':'}${tagOrDigest}`;
    const manifests = fetchPlatformManifests(this.resolver, reference, isDigest ? (tagOrDigest as Digest) : undefined, signal);
    try {
      for (;;) {
        const next = await untilAborted(manifests.next(), signal);
        if (next.done === true) return;
        judge(next.value);
      }
    } catch (error) {
      if (isAppError(error, 'InvalidArgument', 'DataLoss')) search.refusals.push(`${reference} is refused: ${describeError(error)}`);
      else if (!isAppError(error, 'NotFound')) throw error;
    }
  }
}

/** Rejects at the abort, whether or not the call itself heeds it. */
function untilAborted<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(new AppError('Canceled', { op: 'look for twin', subject: 'registry', what: 'time is up' }));
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
