/**
 * Which cache a pod gets: one pure function over all of them, with every candidate's scores and the first rule by which it lost (R105 – R107,
 * R109, R136, R143 – R149, C9). Ours.
 *
 *   1. only caches that serve and whose size fits the pod's ephemeral storage
 *   2. only those that hold as many of its images whole as it asks for (perfect match, match count)
 *   3. match degree: images of the same digest, of the same reference, of the same repository, then bytes of shared layers
 *   4. size closest to the pod's ephemeral storage, then newest, then id
 *
 * A pin by id passes by all of it. `match-index.ts` finds the same winner without looking at every cache.
 */

import { isoOfUs } from './cache-record.ts';
import { type Candidate, type CandidateImage, type MatchQuery, neededCoverage, type QueryImage } from './match-query.ts';
import type { ImageMatch, ImageMatchTier, MatchCandidate, MatchDegree, MatchExplanation } from './types.ts';

export interface Score {
  readonly degree: MatchDegree;
  readonly coveredImages: number;
  readonly images: readonly ImageMatch[];
}

/** Compares one image of the pod with what a cache holds. */
export function matchImage(image: QueryImage, cache: Candidate): ImageMatch {
  const { reference, digest, layers } = image;
  const sharedLayerBytes = (layers ?? []).reduce((sum, layer) => sum + (cache.layers.has(layer.digest) ? layer.sizeBytes : 0), 0);
  const hasAllLayers = layers !== undefined && layers.length > 0 && layers.every((layer) => cache.layers.has(layer.digest));
  const answer = (tier: ImageMatchTier, found: CandidateImage | undefined, isCovered: boolean, isStale = false): ImageMatch => ({
    ...{ reference, tier, cachedReference: found?.reference ?? null, isCovered: isCovered || hasAllLayers, isStale, sharedLayerBytes },
  });
  const sameDigest = cache.images.find((held) => digest !== undefined && (held.digest === digest || held.platformDigest === digest));
  if (sameDigest !== undefined) return answer('same-digest', sameDigest, true);
  const sameReference = cache.images.find((held) => image.tagReference !== undefined && held.tagReference === image.tagReference);
  // Without the registry's word the tag is believed to stand where it stood; with it, the digest decides.
  if (sameReference !== undefined) return answer('same-reference', sameReference, digest === undefined, digest !== undefined);
  const sameRepository = cache.images.find((held) => held.repository === image.repository);
  if (sameRepository !== undefined) return answer('same-repository', sameRepository, false);
  return answer(sharedLayerBytes > 0 ? 'shared-layers' : 'none', undefined, false);
}

export function scoreOf(query: MatchQuery, cache: Candidate): Score {
  const images = query.images.map((image) => matchImage(image, cache));
  const count = (tier: ImageMatchTier): number => images.filter((image) => image.tier === tier).length;
  return {
    images,
    coveredImages: images.filter((image) => image.isCovered).length,
    degree: {
      sameDigest: count('same-digest'),
      sameReference: count('same-reference'),
      sameRepository: count('same-repository'),
      sharedLayerBytes: images.reduce((sum, image) => sum + image.sharedLayerBytes, 0),
    },
  };
}

/** Why the cache cannot be chosen, whatever the others are; undefined: it can. */
function exclusion(query: MatchQuery, cache: Candidate, { degree, coveredImages }: Score): string | undefined {
  if (!cache.serves) return `its status is ${cache.status}`;
  if (cache.sizeGib > query.ephemeralStorage) {
    return `its ${cache.sizeGib} GiB do not fit the pod's ${query.ephemeralStorage} GiB of ephemeral storage`;
  }
  const needed = neededCoverage(query);
  if (coveredImages < needed) {
    const asked = query.rule.kind === 'perfect' ? 'a perfect match is asked for' : `${needed} are asked for`;
    return `it holds ${coveredImages} of ${query.images.length} images whole, and ${asked}`;
  }
  const { sameDigest, sameReference, sameRepository, sharedLayerBytes } = degree;
  if (sameDigest + sameReference + sameRepository + sharedLayerBytes === 0) return "it has nothing of the pod's images";
  return undefined;
}

/** The order of step 3 and 4, each with what a person is told of the loser. Higher is better but for ids. */
const CRITERIA: readonly { value(query: MatchQuery, entry: Scored): number; lost(winner: Scored, loser: Scored): string }[] = [
  {
    value: (_, { score }) => score.degree.sameDigest,
    lost: (a, b) => `it has ${b.score.degree.sameDigest} images by digest, the chosen one ${a.score.degree.sameDigest}`,
  },
  {
    value: (_, { score }) => score.degree.sameReference,
    lost: (a, b) => `it has ${b.score.degree.sameReference} images by reference, the chosen one ${a.score.degree.sameReference}`,
  },
  {
    value: (_, { score }) => score.degree.sameRepository,
    lost: (a, b) =>
      `it has ${b.score.degree.sameRepository} images of the same repository, the chosen one ${a.score.degree.sameRepository}`,
  },
  {
    value: (_, { score }) => score.degree.sharedLayerBytes,
    lost: (a, b) => `it shares ${b.score.degree.sharedLayerBytes} bytes of layers, the chosen one ${a.score.degree.sharedLayerBytes}`,
  },
  {
    value: (query, { cache }) => -Math.abs(query.ephemeralStorage - cache.sizeGib),
    lost: (a, b) => `its ${b.cache.sizeGib} GiB are farther from the pod's ephemeral storage than ${a.cache.sizeGib} GiB`,
  },
  { value: (_, { cache }) => cache.createdUs, lost: (a) => `it is older than ${a.cache.id}` },
];

interface Scored {
  readonly cache: Candidate;
  readonly score: Score;
}

/** Negative when `a` is better. A total order: ids decide in the end. */
export function compareScored(query: MatchQuery, a: Scored, b: Scored): number {
  for (const { value } of CRITERIA) {
    const difference = value(query, b) - value(query, a);
    if (difference !== 0) return difference;
  }
  return a.cache.id < b.cache.id ? -1 : 1;
}

function whyLost(query: MatchQuery, winner: Scored, loser: Scored): string {
  const decisive = CRITERIA.find(({ value }) => value(query, winner) !== value(query, loser));
  return decisive?.lost(winner, loser) ?? `all is equal, and its id comes after ${winner.cache.id}`;
}

function candidate({ cache, score }: Scored, rank: number | null, lostBecause: string | null): MatchCandidate {
  return {
    imageCacheId: cache.id,
    imageCacheName: cache.name,
    status: cache.status,
    imageCacheSize: cache.sizeGib,
    creationTime: isoOfUs(cache.createdUs),
    ...score,
    rank,
    lostBecause,
  };
}

const byId = (a: Scored, b: Scored): number => (a.cache.id < b.cache.id ? -1 : 1);

function explainPin(query: MatchQuery, scored: readonly Scored[], pinnedId: string): MatchExplanation {
  const pinned = scored.find(({ cache }) => cache.id === pinnedId);
  const { ephemeralStorage } = query;
  const isChosen = pinned?.cache.serves === true;
  const others = scored.filter((entry) => entry !== pinned).sort(byId);
  return {
    outcome: isChosen ? 'pinned' : 'none',
    imageCacheId: isChosen ? pinnedId : null,
    reason:
      pinned === undefined
        ? `the pod pins ${pinnedId}, which does not exist; it cannot be started`
        : isChosen
          ? `the pod pins ${pinnedId}`
          : `the pod pins ${pinnedId}, whose status is ${pinned.cache.status}; it cannot be started`,
    ephemeralStorage,
    candidates: [
      ...(pinned === undefined ? [] : [candidate(pinned, isChosen ? 1 : null, isChosen ? null : `its status is ${pinned.cache.status}`)]),
      ...others.map((entry) => candidate(entry, null, 'another cache is pinned')),
    ],
  };
}

/** Every one of these caches with its scores, best first, and why it lost. `total`: how many there are, when these are not all. */
export function explainMatch(query: MatchQuery, caches: Iterable<Candidate>, total?: number): MatchExplanation {
  const scored = Array.from(caches, (cache) => ({ cache, score: scoreOf(query, cache) }));
  const { ephemeralStorage } = query;
  if (query.pinnedId !== undefined) return explainPin(query, scored, query.pinnedId);
  const judged = scored.map((entry) => ({ entry, excluded: exclusion(query, entry.cache, entry.score) }));
  const ranked = judged
    .filter(({ excluded }) => excluded === undefined)
    .map(({ entry }) => entry)
    .sort((a, b) => compareScored(query, a, b));
  const excluded = judged.filter((one) => one.excluded !== undefined).sort((a, b) => byId(a.entry, b.entry));
  const [winner] = ranked;
  return {
    outcome: winner === undefined ? 'none' : 'matched',
    imageCacheId: winner?.cache.id ?? null,
    reason: winner === undefined ? `none of ${total ?? scored.length} caches can be chosen` : reasonOf(winner, query),
    ephemeralStorage,
    candidates: [
      ...ranked.map((entry, index) => candidate(entry, index + 1, index === 0 ? null : whyLost(query, winner!, entry))),
      ...excluded.map(({ entry, excluded: why }) => candidate(entry, null, why ?? null)),
    ],
  };
}

function reasonOf({ cache, score }: Scored, query: MatchQuery): string {
  return `${cache.id} holds ${score.coveredImages} of ${query.images.length} images whole and is nearest`;
}
