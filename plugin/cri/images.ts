/**
 * The other methods of the image service: what is pinned, what may be removed, and where images lie on disk. Each is containerd's answer with
 * what it cannot know.
 */
import fs from 'node:fs';
import { LRUCache } from 'lru-cache';
import type { PodStore } from '../../db/pod-store.ts';
import { isDigest } from '../base/digest.ts';
import { AppError, isAppError } from '../base/errors.ts';
import type { CacheService } from '../cache/types.ts';
import { formatReference, parseReference } from '../registry/reference.ts';
import { readAnnotations } from './pods/annotations.ts';
import type { PodEvents } from './pods/pod-events.ts';
import { successAnswer, type UnaryAnswer } from './proxy/grpc-messages.ts';
import { Refusal, type UnaryCall } from './proxy/proxy-server.ts';
import { isPinBroken } from './pull/cache-decision.ts';
import {
  type FilesystemUsage,
  imageStatusRequest,
  type RuntimeImage,
  readImageSpecRequest,
  readImageStatusResponse,
  withFilesystems,
  withPinned,
} from './wire/messages.ts';

/** Complaints that are not repeated. */
const MAX_TOLD = 1_000;

export interface ImagesOptions {
  /** Undefined: there are no image caches on this node. */
  readonly caches: CacheService | undefined;
  readonly store: PodStore;
  readonly events: PodEvents;
  /** A directory on the disk of the store and of the snapshots. */
  readonly rootDir: string;
  /** Bytes and files of layers in the store, as its ledger has them; undefined while the data plane is away and was never asked. */
  readonly ledger: () => Promise<{ bytes: number; files: number } | undefined>;
}

/** The file system that a path lies on; undefined when there is no such path. One look: no reason to leave the event loop. */
function deviceOf(file: string): number | undefined {
  return fs.statSync(file, { throwIfNoEntry: false })?.dev;
}

/** An answer with another message; failures as they are. */
async function changed(answer: UnaryAnswer, change: (message: Uint8Array) => Promise<Uint8Array> | Uint8Array): Promise<UnaryAnswer> {
  return answer.message === undefined ? answer : { ...answer, message: await change(answer.message) };
}

/** `docker.io/library/nginx:1` of `nginx:1`; the text itself when it is no reference (an image id). */
function canonical(image: string): string {
  try {
    return formatReference(parseReference(image));
  } catch (error) {
    if (isAppError(error, 'InvalidArgument')) return image;
    throw error;
  }
}

export class ImageHandlers {
  private readonly options: ImagesOptions;
  private readonly told = new LRUCache<string, true>({ max: MAX_TOLD });

  constructor(options: ImagesOptions) {
    this.options = options;
  }

  readonly list = async (call: UnaryCall): Promise<UnaryAnswer> => changed(await call.forward(), (message) => this.pinned(message));

  /**
   * kubelet passes the pod's annotations with the image's name, but not the pod. For a new pod that pins a cache which does not serve, an
   * image that is here is shown as absent: kubelet then asks for a pull, and that call, which names the pod, decides. Pods that have been
   * given the image from that cache before see it as it is.
   */
  readonly status = async (call: UnaryCall): Promise<UnaryAnswer> => {
    const { image, annotations } = readImageSpecRequest(call.message);
    const { pin } = readAnnotations(annotations).rules;
    const { caches, store } = this.options;
    const isPinned = pin !== null && caches !== undefined;
    if (isPinned && !store.wasServed(pin, image) && isPinBroken(caches, pin)) return successAnswer(new Uint8Array());
    const answer = await call.forward();
    if (isPinned && answer.message !== undefined) this.compare(caches, pin, image, readImageStatusResponse(answer.message));
    return changed(answer, (message) => this.pinned(message));
  };

  /** An image of a cache stays; its cache must go first. */
  readonly remove = async (call: UnaryCall): Promise<UnaryAnswer> => {
    const { caches, events } = this.options;
    const { image } = readImageSpecRequest(call.message);
    if (caches !== undefined) {
      const status = await call.ask('ImageStatus', imageStatusRequest(image));
      const found = status.message === undefined ? undefined : readImageStatusResponse(status.message);
      const users = [
        ...new Set([canonical(image), ...(found === undefined ? [] : namesOf(found))].flatMap((name) => caches.usersOf(name))),
      ];
      if (users.length > 0) {
        const what = `image cache ${users.join(', ')} holds it; delete the cache, or take the image out of it, first`;
        events.add('image-not-removed', image, what);
        throw new Refusal(new AppError('FailedPrecondition', { op: 'remove image', subject: image, what }));
      }
    }
    return call.forward();
  };

  /**
   * Names a directory that exists on the store's disk, and counts what the store holds: containerd 1.6 and 1.7 guess the one (it may be of an
   * earlier configuration) and do not know the other.
   */
  readonly fsInfo = async (call: UnaryCall): Promise<UnaryAnswer> => {
    const answer = await call.forward();
    const ledger = await this.options.ledger();
    return changed(answer, (message) =>
      withFilesystems(message, (usage, of) => {
        const placed = this.placed(usage);
        // Containers write into upper directories, which containerd has counted.
        if (of === 'containers' || ledger === undefined) return placed;
        return { ...placed, usedBytes: placed.usedBytes + ledger.bytes, inodesUsed: placed.inodesUsed + ledger.files };
      }),
    );
  };

  /** Tells once of a pin that the image which is here does not satisfy: a pod with IfNotPresent starts from it all the same. */
  private compare(caches: CacheService, pin: string, image: string, found: RuntimeImage | undefined): void {
    if (found === undefined || isPinBroken(caches, pin)) return;
    const held = caches.get(pin).images.find(({ canonicalReference }) => canonicalReference === canonical(image));
    if (held === undefined || held.digest === null || namesOf(found).includes(held.digest)) return;
    const message = `it is ${held.digest} in cache ${pin}, which a pod pins, but containerd has it as ${found.repoDigests.join(', ')}; the pod gets the latter`;
    if (this.told.has(message)) return;
    this.told.set(message, true);
    this.options.events.add('pod-cache-not-used', image, message);
  }

  private placed(usage: FilesystemUsage): FilesystemUsage {
    const { rootDir } = this.options;
    const own = deviceOf(rootDir);
    const isRight = usage.mountpoint !== '' && own !== undefined && deviceOf(usage.mountpoint) === own;
    return isRight ? usage : { ...usage, mountpoint: rootDir };
  }

  private pinned(message: Uint8Array): Uint8Array {
    const { caches } = this.options;
    if (caches === undefined) return message;
    return withPinned(message, (image) => namesOf(image).some((name) => caches.isPinned(name)));
  }
}

/** All that a cache may know an image by. */
function namesOf({ id, repoTags, repoDigests }: RuntimeImage): string[] {
  const digests = repoDigests.map((text) => text.slice(text.indexOf('@') + 1)).filter(isDigest);
  return [id, ...repoTags.map(canonical), ...digests];
}
