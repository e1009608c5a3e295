/**
 * PullImage, the one call in which a pod says who it is, what it wants and with which credentials. Decided once for a pod and image, written
 * down with its reasons, and answered from a cache or by containerd.
 *
 *   pod ─► decided before? ── yes ─► the same again
 *    │           └ no ─► caches ─► pinned, not Ready: the pull fails
 *    │                        ├─► held ─► rights of the pod ─► answered without containerd pulling
 *    │                        └─► miss ─► a cache is made for the pod
 *    └─► credentials ─► kept for lazy reads ─► containerd pulls: lazily, from a twin, or ordinarily
 */
import type { PodImageRow } from '../../../db/pod-store.ts';
import { AppError, describeError, isAppError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { CacheService } from '../../cache/types.ts';
import { credentialFingerprint } from '../../registry/credentials.ts';
import { parseReference, type Reference } from '../../registry/reference.ts';
import type { CredentialVault } from '../../registry/vault/vault.ts';
import { authOf, credentialOf } from '../credentials/auth-config.ts';
import type { Candidate, CredentialBroker } from '../credentials/broker.ts';
import type { RightsChecker } from '../credentials/rights.ts';
import { CredentialTrials } from '../credentials/trials.ts';
import type { KnownPod, PodBook } from '../pods/pod-book.ts';
import type { PodEvents } from '../pods/pod-events.ts';
import { grpcStatusOf, successAnswer, type UnaryAnswer } from '../proxy/grpc-messages.ts';
import { Refusal, type UnaryCall } from '../proxy/proxy-server.ts';
import {
  imageStatusRequest,
  type PodSandbox,
  type PullImageRequest,
  pullImageResponse,
  type RuntimeImage,
  readImageStatusResponse,
  readPullImageRequest,
  withAuth,
} from '../wire/messages.ts';
import { AutoCreator } from './auto-create.ts';
import { type CacheDecision, decideByCaches, mayHit } from './cache-decision.ts';

const MAX_REASONS = 40;
/** Of Kubernetes. */
const MAX_NAME_CHARS = 253;

/** How containerd came by an image. */
export interface Resolution {
  readonly outcome: 'twin' | 'lazy' | 'ordinary';
  readonly reason: string;
}

export interface PullOptions {
  /** Undefined: there are no image caches on this node. */
  readonly caches: CacheService | undefined;
  readonly pods: PodBook;
  readonly broker: CredentialBroker;
  readonly vault: CredentialVault;
  readonly rights: RightsChecker;
  readonly imageRights: 'check' | 'strict' | 'off';
  /** How an image was resolved that containerd has just pulled; undefined: no resolution was made, its layers were here. */
  readonly resolutionOf: (reference: Reference) => Resolution | undefined;
  readonly events: PodEvents;
  readonly logger: Logger;
  /** For each thing that is looked up, in milliseconds. */
  readonly lookupMs: number;
}

interface Pull {
  readonly call: UnaryCall;
  readonly request: PullImageRequest;
  readonly image: string;
  readonly reference: Reference;
  /** Undefined when somebody else than kubelet pulls. */
  readonly pod: KnownPod | undefined;
}

export class PullImageHandler {
  private readonly options: PullOptions;
  private readonly autoCreator: AutoCreator;
  private readonly trials: CredentialTrials;

  constructor(options: PullOptions) {
    this.options = options;
    this.trials = new CredentialTrials(options.vault);
    this.autoCreator = new AutoCreator(options);
  }

  readonly handle = async (call: UnaryCall): Promise<UnaryAnswer> => {
    const request = readPullImageRequest(call.message);
    const { image } = request.spec;
    let reference: Reference;
    try {
      reference = parseReference(image);
    } catch (error) {
      // containerd says better what it does not like.
      if (isAppError(error, 'InvalidArgument')) return call.forward();
      throw error;
    }
    const { sandbox } = request;
    const pod = isKubernetesPod(sandbox) ? await this.options.pods.see(sandbox, image, this.lookupSignal(call)) : undefined;
    const pull: Pull = { call, request, image, reference, pod };
    const candidates = await this.candidates(pull);
    const decision =
      pod === undefined ? undefined : (this.decided(pull, pod) ?? this.decide(pull, pod, await this.digestOf(pull, pod, candidates)));
    if (pod !== undefined && decision?.wantsAutoCreate === true && this.options.caches !== undefined) {
      this.autoCreator.begin(this.options.caches, { pod, image, candidates });
    }
    if (pod !== undefined && decision !== undefined && decision.decision !== 'pull') {
      const answer = await this.fromCache(pull, pod, decision, candidates);
      if (answer !== undefined) return answer;
    }
    return this.byContainerd(pull, decision, candidates);
  };

  /** Ends what runs beside the calls. */
  stop(): Promise<void> {
    return this.autoCreator.stop();
  }

  private lookupSignal(call: UnaryCall): AbortSignal {
    return AbortSignal.any([call.signal, AbortSignal.timeout(this.options.lookupMs)]);
  }

  /** What was decided before; a refusal was none. */
  private decided({ image }: Pull, pod: KnownPod): CacheDecision | undefined {
    const known = this.options.pods.decision(pod.sandbox.uid, image);
    return known === undefined || known.decision === 'refused' ? undefined : decisionOf(known, pod);
  }

  /** What the image's name means at the registry now, where a cache would be taken for it; undefined otherwise, or when nobody answers. */
  private async digestOf({ image, reference, call }: Pull, pod: KnownPod, candidates: readonly Candidate[]): Promise<string | undefined> {
    const { caches } = this.options;
    if (caches === undefined || !mayHit(caches, pod, image)) return undefined;
    for (const candidate of candidates.length === 0 ? [undefined] : candidates) {
      const { verdict, digest } = await this.options.rights.check(reference, undefined, candidate?.credential, call.signal);
      if (verdict === 'granted') return digest;
      // A registry that does not answer does not for others.
      if (verdict === 'unknown') return undefined;
    }
    return undefined;
  }

  /** Decides and writes it down, unless another call has meanwhile. Throws Refusal for a pin that does not serve. */
  private decide({ image }: Pull, pod: KnownPod, digest: string | undefined): CacheDecision {
    const { pods, caches, events } = this.options;
    const { uid, namespace, name } = pod.sandbox;
    const known = pods.decision(uid, image);
    if (known !== undefined && known.decision !== 'refused') return decisionOf(known, pod);
    let decision: CacheDecision;
    try {
      decision =
        caches === undefined
          ? { decision: 'pull', cacheId: null, digest: null, reasons: ['there are no image caches on this node'], wantsAutoCreate: false }
          : decideByCaches(caches, pod, image, digest);
    } catch (error) {
      if (!isAppError(error)) throw error;
      const isPin = error.details.imageCacheId !== undefined;
      if (!isPin) {
        // Not written down: a decision that could not be made may be made by the next attempt.
        events.add('pod-match-failed', `${namespace}/${name}`, `${image} is pulled without image caches: ${describeError(error)}`);
        return { decision: 'pull', cacheId: null, digest: null, reasons: [describeError(error)], wantsAutoCreate: false };
      }
      const isNews = known?.reasons !== JSON.stringify([error.message]);
      pods.record(uid, image, { decision: 'refused', cacheId: pod.rules.pin, digest: null, outcome: null, reasons: [error.message] });
      // kubelet tries again for as long as the pod is there.
      if (isNews) events.add('pod-pin-refused', `${namespace}/${name}`, error.message);
      throw new Refusal(error);
    }
    pods.record(uid, image, { ...decision, outcome: null });
    return decision;
  }

  private candidates({ request, image, reference, pod, call }: Pull): Promise<Candidate[]> {
    const subject = { pod: pod?.sandbox, facts: pod?.facts, image, reference, auth: request.auth };
    return this.options.broker.candidates(subject, this.lookupSignal(call));
  }

  /** The answer when containerd has the image as the cache has it; undefined: it must be pulled after all. */
  private async fromCache(
    pull: Pull,
    pod: KnownPod,
    decision: CacheDecision,
    candidates: readonly Candidate[],
  ): Promise<UnaryAnswer | undefined> {
    const { call, image, reference } = pull;
    const { events, pods } = this.options;
    const status = await call.ask('ImageStatus', imageStatusRequest(image));
    const held = status.message === undefined ? undefined : readImageStatusResponse(status.message);
    const digest = decision.digest ?? '';
    if (held === undefined || !isOfDigest(held, digest)) {
      const what = held === undefined ? 'containerd does not have it' : `containerd has it as ${held.repoDigests.join(', ') || held.id}`;
      const message = `${image} is to be ${digest} of cache ${decision.cacheId}, but ${what}; it is pulled`;
      events.add('pod-cache-not-used', subjectOf(pull), message);
      this.note(pull, decision, null, [message]);
      return undefined;
    }
    const refusal = await this.refusalOf(pull, digest, candidates);
    if ('error' in refusal) {
      pods.record(pod.sandbox.uid, image, { ...decision, outcome: null, reasons: withReasons(decision, [refusal.error.message]) });
      events.add('pod-rights-refused', subjectOf(pull), refusal.error.message);
      throw new Refusal(refusal.error);
    }
    await this.keep(refusal.candidate, 'right');
    const isFirst = pods.decision(pod.sandbox.uid, image)?.outcome !== 'cache';
    if (isFirst) {
      // kubelet asks for a pull of an image that is here only under this policy.
      events.add(
        'pod-pulls-always',
        subjectOf(pull),
        `${image} is in cache ${decision.cacheId} and was asked for all the same: with imagePullPolicy IfNotPresent the pod needs no pull`,
      );
      this.note(pull, decision, 'cache', [refusal.reason]);
    }
    this.options.logger.info(
      { image, pod: subjectOf(pull), cache: decision.cacheId, reference: reference.repository },
      'pull answered from cache',
    );
    return successAnswer(pullImageResponse(held.id));
  }

  /** Whether some credentials of the pod, or none at all, open the image. */
  private async refusalOf(
    pull: Pull,
    digest: string,
    candidates: readonly Candidate[],
  ): Promise<{ error: AppError } | { candidate: Candidate | undefined; reason: string }> {
    const { imageRights, rights } = this.options;
    if (imageRights === 'off') return { candidate: undefined, reason: 'rights are not checked (image_rights is "off")' };
    let reason = '';
    let isRefused = false;
    for (const candidate of candidates.length === 0 ? [undefined] : candidates) {
      const found = await rights.check(pull.reference, digest, candidate?.credential, pull.call.signal);
      reason = `${found.reason} (${candidate === undefined ? 'without credentials' : `with ${candidate.source}`})`;
      if (found.verdict === 'granted') return { candidate: found.isInferred === true ? undefined : candidate, reason };
      // A registry that does not answer does not for others.
      if (found.verdict === 'unknown') break;
      isRefused = true;
    }
    if (!isRefused && imageRights === 'check') return { candidate: undefined, reason: `its rights could not be checked: ${reason}` };
    return {
      error: new AppError(isRefused ? 'PermissionDenied' : 'Unavailable', {
        op: 'pull',
        subject: pull.image,
        what: `pod ${subjectOf(pull)} has no right to it that the registry confirms: ${reason}`,
      }),
    };
  }

  /** containerd pulls, with the credentials that the registry takes. */
  private async byContainerd(pull: Pull, decision: CacheDecision | undefined, candidates: readonly Candidate[]): Promise<UnaryAnswer> {
    const { call, request, reference } = pull;
    const { candidate, isSure } = await this.choose(pull, candidates);
    const endTrial = candidate?.entry === undefined ? undefined : this.trials.begin(candidate.entry);
    try {
      // Layers are resolved while containerd pulls, so what it pulls with is there before.
      await this.keep(candidate, isSure ? 'right' : 'tried');
      const brought = credentialFingerprint(credentialOf(request.auth, reference.host));
      const isOwn = candidate === undefined || credentialFingerprint(candidate.credential) === brought;
      const answer = await call.forward(isOwn ? undefined : withAuth(call.message, authOf(candidate.credential)));
      const isPulled = grpcStatusOf(answer) === 0;
      // Again, since another pull may have tried its own meanwhile.
      if (isPulled && !isSure) await this.keep(candidate, 'right');
      if (decision !== undefined && isPulled) {
        const resolution = this.options.resolutionOf(reference);
        const how = candidate === undefined ? [] : [`pulled with credentials of ${candidate.source}`];
        this.note(pull, decision, resolution?.outcome ?? 'present', [...how, resolution?.reason ?? 'its layers were here already']);
      }
      return answer;
    } finally {
      await endTrial?.();
    }
  }

  /**
   * The first credentials that the registry takes; of those that it did not judge, the best; none: it refuses all. A registry that is away
   * is not asked about each in turn: the pull waits for it.
   */
  private async choose(
    { reference, call }: Pull,
    candidates: readonly Candidate[],
  ): Promise<{ candidate: Candidate | undefined; isSure: boolean }> {
    let unjudged: Candidate | undefined;
    const untilMs = performance.now() + this.options.lookupMs / 2;
    for (const candidate of candidates) {
      if (performance.now() >= untilMs) return { candidate: unjudged ?? candidate, isSure: false };
      const { verdict, isInferred } = await this.options.rights.check(reference, undefined, candidate.credential, call.signal);
      // Everybody may have it: what the registry said nothing to is kept for nobody, since others' reads would be made with it.
      if (verdict === 'granted') return { candidate: isInferred === true ? undefined : candidate, isSure: true };
      if (verdict === 'unknown' || isInferred === true) unjudged ??= candidate;
    }
    return { candidate: unjudged, isSure: false };
  }

  /** For the reads that follow: layers are fetched lazily, by processes that no pod talks to. */
  private async keep(candidate: Candidate | undefined, as: 'right' | 'tried'): Promise<void> {
    if (candidate?.entry === undefined) return;
    try {
      const kept = this.options.vault.put(candidate.entry);
      if (as === 'right') this.trials.confirm(candidate.entry);
      await kept;
    } catch (error) {
      this.options.events.add('credential-not-stored', candidate.entry.prefix, `its credentials cannot be stored: ${describeError(error)}`);
    }
  }

  private note({ pod, image }: Pull, decision: CacheDecision, outcome: PodImageRow['outcome'], reasons: readonly string[]): void {
    if (pod === undefined) return;
    this.options.pods.record(pod.sandbox.uid, image, { ...decision, outcome, reasons: withReasons(decision, reasons) });
  }
}

/** Others than kubelet may send a sandbox without a name, or anything. */
function isKubernetesPod(sandbox: PodSandbox | undefined): sandbox is PodSandbox {
  return (
    sandbox !== undefined && [sandbox.uid, sandbox.name, sandbox.namespace].every((text) => text !== '' && text.length <= MAX_NAME_CHARS)
  );
}

/** The reasons of the decision, then those of what followed. */
function withReasons(decision: CacheDecision, more: readonly string[]): string[] {
  return [...decision.reasons, ...more.filter((reason) => !decision.reasons.includes(reason))].slice(0, MAX_REASONS);
}

function decisionOf({ decision, cacheId, digest, outcome, reasons }: PodImageRow, { rules }: KnownPod): CacheDecision {
  const mayHaveCache = rules.isSelected && rules.pin === null && rules.isAutomatic;
  return {
    ...{ cacheId, digest, reasons: JSON.parse(reasons) as string[] },
    decision: decision === 'refused' ? 'pull' : decision,
    // A pull that never succeeded is tried again, and what it said of the pod's rights too.
    wantsAutoCreate: decision === 'pull' && outcome === null && mayHaveCache,
  };
}

function subjectOf({ pod, image }: Pull): string {
  return pod === undefined ? image : `${pod.sandbox.namespace}/${pod.sandbox.name}`;
}

/** Does the image that containerd shows have this digest, as index, manifest or configuration? */
function isOfDigest(image: RuntimeImage, digest: string): boolean {
  return image.id === digest || image.repoDigests.some((text) => text.endsWith(`@${digest}`));
}
