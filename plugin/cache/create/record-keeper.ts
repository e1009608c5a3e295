/**
 * Keeps what Ready caches have in containerd, and lets go of what caches that are gone had: looks when containerd says that an image or
 * container changed, when it comes back, and once a minute. Ours.
 */
import { setTimeout as delay } from 'node:timers/promises';
import pLimit from 'p-limit';
import { describeError, isAppError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { ImageClient, type LeaseResource } from '../../snapshotter/containerd/image-client.ts';
import { apply, changesToKeep, changesToLeave, changesToMake, knowsPinned, recordsOf, wantedNames } from './image-records.ts';
import { imageKeyOf, type OwnedCache, type OwnedCaches, type OwnedImage } from './owned.ts';

const TOPICS = ['/images/delete', '/images/update', '/containers/delete'];

/** A lost event is made good within this. */
const LOOK_MS = 60_000;

/** containerd restarts within seconds. */
const CONNECT_AGAIN_MS = 1_000;

/** One look, with a database of thousands of images. */
const LOOK_DEADLINE_MS = 60_000;

export interface RecordKeeperParts {
  containerdAddress: string;
  namespace: string;
  snapshotter: string;
  owned: OwnedCaches;
  /** The lease of a cache, and the labels that tell whose it is. */
  leaseOf(cacheId: string): { id: string; labels: Readonly<Record<string, string>> };
  /** Ids of all leases of this product's caches. */
  leases(client: ImageClient, signal: AbortSignal): Promise<string[]>;
  log: Logger;
}

/** What a lease keeps of an image. */
export function resourcesOf(image: OwnedImage, snapshotter: string): LeaseResource[] {
  const documents = new Set([image.target.digest, image.platformDigest, image.configDigest]);
  return [...[...documents].map((id) => ({ type: 'content', id })), { type: `snapshots/${snapshotter}`, id: image.chainId }];
}

export class RecordKeeper {
  private readonly parts: RecordKeeperParts;
  private readonly stopping = new AbortController();
  /** One change of records at a time: a look at them must not be old when it is acted on. */
  private readonly one = pLimit(1);
  private readonly work: Promise<unknown>;
  private looking: Promise<void> | undefined;
  private lookAgain = false;

  constructor(parts: RecordKeeperParts) {
    this.parts = parts;
    this.work = Promise.all([this.follow(), this.lookNowAndThen()]);
  }

  /** Makes the records of an image that has just been resolved. Errors: containerd's. */
  make(image: OwnedImage, signal: AbortSignal): Promise<void> {
    return this.one(async () => {
      using client = this.client();
      const { namespace } = this.parts;
      const changes = changesToMake(image, await recordsOf(client, namespace, signal), await this.canPin(client, signal));
      await apply(client, namespace, changes, signal);
    });
  }

  /** Gives Ready images back what they miss, and takes away what is on its way out and nobody uses. Errors: containerd's. */
  reconcile(signal: AbortSignal): Promise<void> {
    return this.one(async () => {
      const { owned } = this.parts;
      if (!owned.all().some(({ ready, leaving }) => ready.length + leaving.length > 0)) return;
      using client = this.client();
      await this.keepReady(client, signal);
      await this.takeAway(client, signal);
    });
  }

  async stop(): Promise<void> {
    this.stopping.abort();
    await this.work;
    await this.looking;
  }

  private client(): ImageClient {
    return new ImageClient(this.parts.containerdAddress);
  }

  private async canPin(client: ImageClient, signal: AbortSignal): Promise<boolean> {
    return knowsPinned(await client.version(signal));
  }

  private async keepReady(client: ImageClient, signal: AbortSignal): Promise<void> {
    const { namespace, owned, log } = this.parts;
    const caches = owned.all().filter(({ ready }) => ready.length > 0);
    if (caches.length === 0) return;
    const records = await recordsOf(client, namespace, signal);
    const canPin = await this.canPin(client, signal);
    const leases = new Set(await this.parts.leases(client, signal));
    for (const cache of caches) {
      if (!leases.has(this.parts.leaseOf(cache.cacheId).id)) await this.leaseAgain(client, cache, signal);
      for (const image of cache.ready) {
        const changes = changesToKeep(image, records, canPin);
        if (changes.length === 0) continue;
        await apply(client, namespace, changes, signal);
        const again = changes.filter(({ put }) => put !== undefined);
        for (const { name, put } of again) if (put !== undefined) records.set(name, put);
        if (again.length > 0)
          log.info({ image: image.reference, names: again.map(({ name }) => name) }, 'image records of a cache given back');
      }
    }
  }

  private async leaseAgain(client: ImageClient, cache: OwnedCache, signal: AbortSignal): Promise<void> {
    const { namespace, snapshotter, log } = this.parts;
    const { id, labels } = this.parts.leaseOf(cache.cacheId);
    await client.keepLease(namespace, id, labels, signal);
    for (const image of cache.ready) {
      for (const resource of resourcesOf(image, snapshotter)) await client.addToLease(namespace, id, resource, signal);
    }
    log.warn({ cacheId: cache.cacheId }, 'the lease of a cache was taken away and is made again');
  }

  private async takeAway(client: ImageClient, signal: AbortSignal): Promise<void> {
    const { namespace, owned } = this.parts;
    const caches = owned.all().filter(({ leaving }) => leaving.length > 0);
    if (caches.length === 0) return;
    const records = await recordsOf(client, namespace, signal);
    const used = new Set((await client.containers(namespace, signal)).map(({ image }) => image));
    const wanted = wantedNames(owned);
    const canPin = await this.canPin(client, signal);
    for (const cache of caches) {
      const going = cache.leaving.filter(({ names }) => !names.some((name) => used.has(name)));
      if (going.length === 0) continue;
      for (const image of going) await apply(client, namespace, changesToLeave(image, records, wanted, canPin), signal);
      const gone = new Set(going.map(imageKeyOf));
      await owned.change(cache.cacheId, (now) => ({ ...now, leaving: now.leaving.filter((image) => !gone.has(imageKeyOf(image))) }));
    }
  }

  private async lookNowAndThen(): Promise<void> {
    const { signal } = this.stopping;
    while (!signal.aborted) {
      this.look();
      await this.pause(LOOK_MS);
    }
  }

  /** Looks soon; what happens while a look is under way causes one more. */
  private look(): void {
    if (this.looking !== undefined) {
      this.lookAgain = true;
      return;
    }
    this.lookAgain = false;
    this.looking = this.lookOnce().finally(() => {
      this.looking = undefined;
      if (this.lookAgain && !this.stopping.signal.aborted) this.look();
    });
  }

  private async lookOnce(): Promise<void> {
    try {
      await this.reconcile(AbortSignal.any([this.stopping.signal, AbortSignal.timeout(LOOK_DEADLINE_MS)]));
    } catch (error) {
      if (this.stopping.signal.aborted) return;
      if (!isAppError(error)) this.parts.log.error({ err: error }, 'image records of caches cannot be looked at');
      else this.parts.log.debug({ reason: describeError(error) }, 'image records of caches cannot be looked at now');
    }
  }

  private async follow(): Promise<void> {
    const { signal } = this.stopping;
    const { namespace, containerdAddress, log } = this.parts;
    while (!signal.aborted) {
      try {
        using client = new ImageClient(containerdAddress);
        const events = client.events(namespace, TOPICS, signal);
        const first = events.next();
        // What happened while nobody followed.
        this.look();
        for (let next = await first; next.done !== true; next = await events.next()) this.look();
      } catch (error) {
        if (signal.aborted) return;
        log.debug({ reason: describeError(error) }, "containerd's events cannot be followed now");
      }
      await this.pause(CONNECT_AGAIN_MS);
    }
  }

  private async pause(ms: number): Promise<void> {
    const { signal } = this.stopping;
    try {
      await delay(ms, undefined, { signal, ref: false });
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }
}
