/**
 * Automatic caches for pods that miss (R91, R108): of those of its images that the pod may have. A cache is made by this node, with whatever
 * credentials it knows, and what it makes is there for every pod; so each image is asked for first with the pod's own credentials, and one
 * that the registry does not grant it stays out. Beside the pull, which waits for nothing here.
 */
import { LRUCache } from 'lru-cache';
import { describeError } from '../../base/errors.ts';
import type { CacheService, CacheState, ImageRegistryCredential } from '../../cache/types.ts';
import { formatReference, parseReference, type Reference } from '../../registry/reference.ts';
import type { Candidate, CredentialBroker } from '../credentials/broker.ts';
import type { RightsChecker } from '../credentials/rights.ts';
import type { KnownPod } from '../pods/pod-book.ts';
import type { PodEvents } from '../pods/pod-events.ts';

/** Images that an automatic cache takes (R110). */
const MAX_CACHE_IMAGES = 20;
/** Automatic caches that are looked through; there are 25 unless more are configured. */
const MAX_LISTED = 100;
/** Messages that are not repeated. */
const MAX_TOLD = 1_000;
const MAKING: ReadonlySet<CacheState> = new Set(['Preparing', 'Creating', 'Updating']);

export interface AutoCreatorOptions {
  readonly broker: CredentialBroker;
  readonly rights: RightsChecker;
  /** `off`: every pod may have every image. */
  readonly imageRights: 'check' | 'strict' | 'off';
  readonly events: PodEvents;
  /** For the credentials of one image, in milliseconds. */
  readonly lookupMs: number;
}

/** The pull that missed. */
export interface MissedPull {
  readonly pod: KnownPod;
  readonly image: string;
  /** Credentials for that image, best first. */
  readonly candidates: readonly Candidate[];
}

/** An image that the pod may have, and with what; undefined: with nothing. */
interface Granted {
  readonly image: string;
  readonly host: string;
  readonly candidate: Candidate | undefined;
}

export class AutoCreator {
  private readonly options: AutoCreatorOptions;
  /** By pod and images, so that calls at once ask once; waited for at the end. */
  private readonly creating = new Map<string, Promise<void>>();
  private readonly stopping = new AbortController();
  private readonly told = new LRUCache<string, true>({ max: MAX_TOLD });

  constructor(options: AutoCreatorOptions) {
    this.options = options;
  }

  /** Begins, unless the cache is being made already, for this pod or another with the same images. What fails becomes an event. */
  begin(caches: CacheService, missed: MissedPull): void {
    const { sandbox, images } = missed.pod;
    const wanted = images.slice(0, MAX_CACHE_IMAGES);
    const key = JSON.stringify([sandbox.uid, ...wanted]);
    if (this.creating.has(key) || isBeingMade(caches, sandbox.uid, wanted)) return;
    const work = this.create(caches, missed, wanted)
      .catch((error: unknown) => {
        if (!this.stopping.signal.aborted) this.tell('pod-cache-not-created', missed, `no image cache is made: ${describeError(error)}`);
      })
      .finally(() => this.creating.delete(key));
    this.creating.set(key, work);
  }

  /** Ends what is asked for; what a cache was asked for goes on without. */
  async stop(): Promise<void> {
    this.stopping.abort();
    await Promise.all(this.creating.values());
  }

  private async create(caches: CacheService, missed: MissedPull, wanted: readonly string[]): Promise<void> {
    const granted = (await Promise.all(wanted.map((image) => this.grantOf(missed, image)))).filter((one) => one !== undefined);
    this.stopping.signal.throwIfAborted();
    if (granted.length === 0) {
      this.tell('pod-cache-not-created', missed, 'no image cache is made: the registry does not say that the pod may have its images');
      return;
    }
    const images = granted.map(({ image }) => image);
    const { imageCacheId } = await caches.autoCreate({
      sandboxId: missed.pod.sandbox.uid,
      images,
      credentials: registryCredentials(granted),
      extraEphemeralStorage: missed.pod.rules.extraEphemeralGib,
    });
    this.tell('pod-cache-created', missed, `image cache ${imageCacheId} is made of ${images.join(', ')}`);
  }

  /** Undefined: no credentials of the pod open the image, or nobody says so. */
  private async grantOf(missed: MissedPull, image: string): Promise<Granted | undefined> {
    const { imageRights, rights } = this.options;
    const { signal } = this.stopping;
    const reference = parseReference(image);
    const candidates = image === missed.image ? missed.candidates : await this.candidatesFor(missed.pod, image, reference);
    if (imageRights === 'off') return { image, host: reference.host, candidate: candidates[0] };
    for (const candidate of candidates.length === 0 ? [undefined] : candidates) {
      const { verdict, isInferred } = await rights.check(reference, undefined, candidate?.credential, signal);
      if (verdict === 'granted') return { image, host: reference.host, candidate: isInferred === true ? undefined : candidate };
      // A registry that does not answer does not for others.
      if (verdict === 'unknown') return undefined;
    }
    return undefined;
  }

  private candidatesFor({ sandbox, facts }: KnownPod, image: string, reference: Reference): Promise<Candidate[]> {
    const { broker, lookupMs } = this.options;
    const signal = AbortSignal.any([this.stopping.signal, AbortSignal.timeout(lookupMs)]);
    return broker.candidates({ pod: sandbox, facts, image, reference, auth: undefined }, signal);
  }

  /** Once for each pod: kubelet tries a pull again that fails. */
  private tell(type: string, { pod: { sandbox } }: MissedPull, message: string): void {
    const key = `${sandbox.uid} ${message}`;
    if (this.told.has(key)) return;
    this.told.set(key, true);
    this.options.events.add(type, `${sandbox.namespace}/${sandbox.name}`, message);
  }
}

/** True when another pod has the same images cached already: the replicas of one Deployment start together. */
function isBeingMade(caches: CacheService, uid: string, images: readonly string[]): boolean {
  const { caches: automatic } = caches.list({ owner: 'system' }, { limit: MAX_LISTED });
  return automatic.some((cache) => {
    if (cache.sandboxId === uid || !MAKING.has(cache.status)) return false;
    const held = new Set([...cache.images, ...(cache.pendingImages ?? [])].map(({ canonicalReference }) => canonicalReference));
    return images.every((image) => held.has(formatReference(parseReference(image))));
  });
}

/** What the caches take: names and passwords, one a registry. */
function registryCredentials(granted: readonly Granted[]): ImageRegistryCredential[] {
  const byHost = new Map<string, ImageRegistryCredential>();
  for (const { host, candidate } of granted) {
    const credential = candidate?.credential;
    if (credential === undefined || !('password' in credential) || byHost.has(host)) continue;
    const { username, password } = credential;
    if (username !== '' && password !== '') byHost.set(host, { server: host, userName: username, password });
  }
  return [...byHost.values()];
}
