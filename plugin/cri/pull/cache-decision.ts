/**
 * Whether an image of a pod comes from an image cache: the pod's rules put to the caches (R105 – R109, R143 – R152). What is decided here is
 * written down by the caller and not asked again.
 */
import { AppError, isAppError } from '../../base/errors.ts';
import type { CacheService, ImageCache, MatchExplanation, MatchRequest, MatchResult } from '../../cache/types.ts';
import { type RuleInForce, ruleInForce } from '../pods/annotations.ts';
import type { KnownPod } from '../pods/pod-book.ts';

/** Candidates whose losing is explained; of how many of those that have something in common with the pod they are the first. */
const MAX_EXPLAINED = 10;
const NEAR = { atMost: 50 };

export interface CacheDecision {
  readonly decision: 'pinned-cache' | 'matched-cache' | 'pull';
  readonly cacheId: string | null;
  /** What the cache holds for the image: its manifest or index; null for a pull. */
  readonly digest: string | null;
  readonly reasons: readonly string[];
  /** Some image of the pod is in no cache: one is to be made for it. */
  readonly wantsAutoCreate: boolean;
}

const RULE_TEXT: Readonly<Record<RuleInForce, string>> = {
  pin: 'the pod pins one cache',
  off: 'the pod wants no cache (eci-auto-imc is "false")',
  'perfect-match': 'the pod wants a cache with all of its images (imc-perfect-match)',
  'match-count': 'the pod wants a cache with a number of its images (imc-match-count-request)',
  'best-match': 'the pod takes the cache that fits best',
};

function requestOf({ rules, images }: KnownPod, image: string, digest: string | undefined): MatchRequest {
  return {
    images: images.map((reference) => (reference === image && digest !== undefined ? { reference, digest } : { reference })),
    extraEphemeralStorage: rules.extraEphemeralGib,
    ...(rules.pin === null ? {} : { imageCacheId: rules.pin }),
    perfectMatch: rules.isPerfectMatch,
    ...(rules.matchCount === null ? {} : { matchCountRequest: rules.matchCount }),
  };
}

function explained({ reason, candidates }: MatchExplanation): string[] {
  return [
    reason,
    ...candidates
      .slice(0, MAX_EXPLAINED)
      .flatMap(({ imageCacheId, imageCacheName, lostBecause }) =>
        lostBecause === null ? [] : [`cache ${imageCacheId} (${imageCacheName}) is not used: ${lostBecause}`],
      ),
  ];
}

/** How the pod's images are known: in the reasons, since it decides what could be matched. */
function imagesText({ images, imagesFrom, factsReason }: KnownPod): string {
  if (imagesFrom === 'api-server') return `all ${images.length} images of the pod are known from the API server`;
  if (imagesFrom === 'manifest') return `all ${images.length} images of the pod are known from its manifest`;
  return `${images.length} images of the pod are known so far, by their pulls${factsReason === '' ? '' : ` (${factsReason})`}`;
}

/**
 * The decision for one image. `digest` is what its name means at the registry now, undefined when that is not known: a cache that holds the
 * name with another digest is then not the image that the pod asks for (R136); a pin goes by the name all the same. Throws FailedPrecondition when the pod pins a cache that does not serve (R149): the pull must fail. Other
 * failures of the caches are theirs.
 */
export function decideByCaches(caches: CacheService, pod: KnownPod, image: string, digest: string | undefined): CacheDecision {
  const { rules, sandbox } = pod;
  const none = { cacheId: null, digest: null };
  if (!rules.isSelected) {
    return { ...none, decision: 'pull', reasons: ['the pod does not have the label of pod_selector'], wantsAutoCreate: false };
  }
  const rule = ruleInForce(rules);
  const reasons = [RULE_TEXT[rule]];
  if (rule === 'off') return { ...none, decision: 'pull', reasons, wantsAutoCreate: false };
  reasons.push(imagesText(pod));
  const request = requestOf(pod, image, rule === 'pin' ? undefined : digest);
  let result: MatchResult;
  try {
    if (rule !== 'pin') reasons.push(...explained(caches.explain(request, NEAR)));
    result = caches.matchForPod(request);
  } catch (error) {
    if (rule !== 'pin' || !isAppError(error, 'NotFound', 'FailedPrecondition')) throw error;
    throw pinError(sandbox, rules.pin ?? '', stateOf(caches, rules.pin ?? ''), error);
  }
  const { cache } = result;
  if (cache === null) return { ...none, decision: 'pull', reasons, wantsAutoCreate: rule !== 'pin' };
  const match = result.images.find(({ reference }) => reference === image);
  const held = match?.isCovered === true ? heldImage(cache, match.cachedReference) : undefined;
  const wantsAutoCreate = rule !== 'pin' && result.missingImages.length > 0;
  if (held === undefined || held.digest === null) {
    const why = match?.isStale === true ? `holds it as it was: the tag names ${digest} now` : 'does not hold this image';
    reasons.push(`cache ${cache.imageCacheId} (${cache.imageCacheName}) ${why}`);
    return { ...none, decision: 'pull', reasons, wantsAutoCreate };
  }
  reasons.push(`cache ${cache.imageCacheId} (${cache.imageCacheName}) holds it as ${held.digest}`);
  const decision = rule === 'pin' ? 'pinned-cache' : 'matched-cache';
  return { decision, cacheId: cache.imageCacheId, digest: held.digest, reasons, wantsAutoCreate };
}

/** True when a cache would be taken for the image by its name alone, so that it matters what the name means now. Changes nothing. */
export function mayHit(caches: CacheService, pod: KnownPod, image: string): boolean {
  const rule = ruleInForce(pod.rules);
  if (!pod.rules.isSelected || rule === 'pin' || rule === 'off') return false;
  const chosen = caches.explain(requestOf(pod, image, undefined), NEAR).candidates.find(({ rank }) => rank === 1);
  return chosen?.images.some(({ reference, isCovered }) => reference === image && isCovered) === true;
}

function heldImage(cache: ImageCache, cachedReference: string | null): ImageCache['images'][number] | undefined {
  return cache.images.find(({ reference, canonicalReference }) => cachedReference === reference || cachedReference === canonicalReference);
}

function stateOf(caches: CacheService, id: string): string | undefined {
  try {
    return caches.get(id).status;
  } catch (error) {
    if (isAppError(error, 'NotFound')) return undefined;
    throw error;
  }
}

function pinError(pod: { namespace: string; name: string }, id: string, state: string | undefined, cause: AppError): AppError {
  const what =
    state === undefined
      ? `image cache ${id}, which it pins by annotation, does not exist on this node`
      : `image cache ${id}, which it pins by annotation, is ${state}, not Ready`;
  return new AppError('FailedPrecondition', {
    op: 'start pod',
    subject: `${pod.namespace}/${pod.name}`,
    what,
    details: { imageCacheId: id, ...(state === undefined ? {} : { status: state }) },
    cause,
  });
}

/** True while a pin would fail a pull now. Unlike {@link decideByCaches} it records nothing. */
export function isPinBroken(caches: CacheService, id: string): boolean {
  const state = stateOf(caches, id);
  return state !== 'Ready' && state !== 'Updating' && state !== 'UpdateFailed';
}
