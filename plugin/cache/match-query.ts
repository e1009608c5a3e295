/** What a match is asked for and what it is made against, parsed once. Pure. Ours. */
import type { Digest } from '../base/digest.ts';
import { formatReference, formatRepository, parseReference } from '../registry/reference.ts';
import type { CacheRecord } from './cache-record.ts';
import { isPinned } from './cache-record.ts';
import { isServing } from './cache-states.ts';
import { matchRequestSchema } from './requests.ts';
import type { CacheState, MatchRequest } from './types.ts';
import { checkRequest } from './validation.ts';

/** One image of a pod. */
export interface QueryImage {
  /** As the pod names it. */
  readonly reference: string;
  /** `docker.io/library/nginx:1.27`; undefined when the reference is a digest alone. */
  readonly tagReference: string | undefined;
  /** `docker.io/library/nginx`. */
  readonly repository: string;
  /** Of the reference, else as the caller knows it. */
  readonly digest: Digest | undefined;
  /** Distinct; undefined: unknown. */
  readonly layers: readonly { readonly digest: Digest; readonly sizeBytes: number }[] | undefined;
}

/** How many images of the pod a cache must hold whole. */
export type CoverageRule = { readonly kind: 'none' } | { readonly kind: 'perfect' } | { readonly kind: 'count'; readonly count: number };

export interface MatchQuery {
  /** As the pod names them, several of which may mean the same. */
  readonly named: readonly QueryImage[];
  /** Distinct by what they name. */
  readonly images: readonly QueryImage[];
  /** GiB that a cache may have. */
  readonly ephemeralStorage: number;
  readonly pinnedId: string | undefined;
  readonly rule: CoverageRule;
}

/** An image as a cache holds it. */
export interface CandidateImage {
  readonly reference: string;
  readonly tagReference: string | undefined;
  readonly repository: string;
  readonly digest: Digest;
  readonly platformDigest: Digest;
}

/** A cache as the matcher sees it. */
export interface Candidate {
  readonly id: string;
  readonly name: string;
  readonly status: CacheState;
  /** False: nothing of it may be used by pods. */
  readonly serves: boolean;
  readonly sizeGib: number;
  readonly createdUs: number;
  readonly images: readonly CandidateImage[];
  /** Blobs that it holds, and the original layers that they stand for. */
  readonly layers: ReadonlySet<Digest>;
}

function tagReferenceOf(reference: string): string | undefined {
  const { host, repository, tag } = parseReference(reference);
  return tag === undefined ? undefined : formatReference({ host, repository, tag });
}

function queryImage({ reference, digest, layers }: { reference: string; digest?: string; layers?: QueryImage['layers'] }): QueryImage {
  const parsed = parseReference(reference);
  return {
    reference,
    tagReference: tagReferenceOf(reference),
    repository: formatRepository(parsed),
    digest: parsed.digest ?? (digest as Digest | undefined),
    layers: layers === undefined ? undefined : [...new Map(layers.map((layer) => [layer.digest, layer])).values()],
  };
}

/** The first of several that name the same. */
function distinct(images: readonly QueryImage[]): QueryImage[] {
  const seen = new Set<string>();
  return images.filter(({ tagReference, repository, digest }) => {
    const key = `${tagReference ?? repository}@${digest ?? ''}`;
    if (seen.has(key)) return false;
    seen.add(key);
    return true;
  });
}

/** Checks the request. `podEphemeralSize`: GiB that a pod has without declaring any. Throws InvalidArgument. */
export function parseQuery(request: MatchRequest, podEphemeralSize: number): MatchQuery {
  const { images, extraEphemeralStorage, imageCacheId, perfectMatch, matchCountRequest } = checkRequest(
    matchRequestSchema,
    request,
    'match image caches',
  );
  const named = images.map((image) => queryImage(image as Parameters<typeof queryImage>[0]));
  return {
    named,
    images: distinct(named),
    ephemeralStorage: podEphemeralSize + extraEphemeralStorage,
    pinnedId: imageCacheId,
    rule: ruleOf(perfectMatch, matchCountRequest),
  };
}

/** Perfect match goes before the count (R147). */
function ruleOf(isPerfect: boolean, count: number | undefined): CoverageRule {
  if (isPerfect) return { kind: 'perfect' };
  return count === undefined ? { kind: 'none' } : { kind: 'count', count };
}

/** Images that must be whole. A count above the number of images can never be reached; nothing then matches, as with one image missing. */
export function neededCoverage(query: MatchQuery): number {
  const { rule, images } = query;
  if (rule.kind === 'perfect') return images.length;
  return rule.kind === 'count' ? rule.count : 0;
}

/** The content that serves, as far as it is resolved. */
export function candidateOf(record: CacheRecord): Candidate {
  const layers = new Set<Digest>();
  const images: CandidateImage[] = [];
  for (const image of record.images.filter(isPinned)) {
    const { digest, platformDigest } = image.resolved;
    for (const layer of image.resolved.layers) {
      layers.add(layer.digest);
      if (layer.source !== undefined) layers.add(layer.source.digest);
    }
    images.push({
      ...{ reference: image.reference, digest, platformDigest },
      tagReference: tagReferenceOf(image.reference),
      repository: formatRepository(parseReference(image.reference)),
    });
  }
  const { id, name, status, sizeGib, createdUs } = record;
  return { id, name, status, serves: isServing(status), sizeGib, createdUs, images, layers };
}
