/**
 * Watches whether registries still have what running containers are read from: an index-only image needs its original's layers as long as
 * a container runs, and whoever deletes those does not ask. Blobs of open devices are looked for from time to time, and at once when the
 * data plane has trouble with one. When a blob is gone, an event names the containers that will suffer, and the rest of their images is
 * fetched while it is there.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pLimit from 'p-limit';
import type { DependencyStore } from '../../db/dependency-store.ts';
import type { EventStore } from '../../db/event-store.ts';
import { type AppError, describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { BlobSource, DeviceSpec } from '../file/device-spec.ts';
import { blobsOfLayer } from './accelerated.ts';
import type { BlockDevices, ImageResolver } from './ports.ts';
import { wallTimeUs } from './wall-time.ts';

/** How often the data plane is asked for trouble: its readers wait half a minute for a blob that is not found. */
const TROUBLE_POLL_MS = 5_000;

/** Requests at once; each is one HEAD. */
const CONCURRENCY = 4;

/** One look at a blob, over all of its repositories. */
const LOOK_DEADLINE_MS = 30_000;

/** A whole layer, from a slow registry. */
const FETCH_DEADLINE_MS = 60 * 60_000;

/** Containers that an event names; it counts the others. */
const NAMED = 10;
const MAX_COUNTED = 10_000;

export interface BlobWatchParts {
  devices: BlockDevices;
  resolver: ImageResolver;
  dependencies: DependencyStore;
  events: EventStore;
  logger: Logger;
  /** Devices that containers and views stand on. */
  devicesInUse: () => DeviceSpec[];
  intervalMs: number;
}

export class BlobWatch implements AsyncDisposable {
  private readonly parts: BlobWatchParts;
  private readonly stop = new AbortController();
  private readonly lost = new Set<string>();
  private readonly work: Promise<void>;
  /** Rest of images that suffer, in order; blobs by digest, each once. */
  private readonly rest = new Map<string, BlobSource>();
  private fetching: Promise<void> | undefined;

  constructor(parts: BlobWatchParts) {
    this.parts = parts;
    this.work = this.run();
  }

  /** Looks at all blobs in use, or those that are named. Never rejects because of a registry. */
  async look(only?: ReadonlySet<string>): Promise<void> {
    const users = new Map<string, { blob: BlobSource; specs: DeviceSpec[] }>();
    for (const spec of this.parts.devicesInUse()) {
      for (const blob of spec.layers.flatMap(blobsOfLayer)) {
        if (blob.localPath !== undefined || (only !== undefined && !only.has(blob.digest))) continue;
        const known = users.get(blob.digest);
        if (known === undefined) users.set(blob.digest, { blob, specs: [spec] });
        else known.specs.push(spec);
      }
    }
    if (only === undefined) for (const digest of this.lost) if (!users.has(digest)) this.lost.delete(digest);
    const limit = pLimit(CONCURRENCY);
    await Promise.all([...users.values()].map(({ blob, specs }) => limit(() => this.lookAt(blob, specs))));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stop.abort();
    await this.work;
    await this.fetching;
  }

  private async run(): Promise<void> {
    const { signal } = this.stop;
    let nextLookMs = performance.now() + this.parts.intervalMs;
    let troublesSinceMs = Date.now();
    while (!signal.aborted) {
      try {
        await sleep(Math.min(TROUBLE_POLL_MS, this.parts.intervalMs), undefined, { signal, ref: false });
        const askedMs = Date.now();
        const troubled = await this.parts.devices.troubledBlobs(
          troublesSinceMs,
          AbortSignal.any([signal, AbortSignal.timeout(LOOK_DEADLINE_MS)]),
        );
        troublesSinceMs = askedMs;
        const isDue = performance.now() >= nextLookMs;
        if (isDue) nextLookMs = performance.now() + this.parts.intervalMs;
        if (isDue || troubled.length > 0) await this.look(isDue ? undefined : new Set(troubled));
      } catch (error) {
        if (signal.aborted) return;
        // blockd is away, or the disk is full and an event cannot be written: whatever it is, the node's snapshots are not to end for it.
        const level = isAppError(error, 'Unavailable', 'DeadlineExceeded') ? 'debug' : 'warn';
        this.parts.logger[level]({ reason: describeError(error) }, 'the look for trouble with blobs failed; made again');
      }
    }
  }

  private async lookAt(blob: BlobSource, specs: readonly DeviceSpec[]): Promise<void> {
    const { events, logger } = this.parts;
    const { digest } = blob;
    let isThere: boolean;
    try {
      isThere = await this.isAnywhere(blob);
    } catch (error) {
      if (!isAppError(error)) throw error;
      logger.debug({ blob: digest, reason: describeError(error) }, 'registry did not say whether it still has a blob');
      return;
    }
    if (isThere === !this.lost.has(digest)) return;
    // Known as told only when it is: an event that cannot be written is written at the next look.
    if (isThere) {
      events.append({ atUs: wallTimeUs(), type: 'blob-found', subject: digest, message: 'the registry has it again' });
      this.lost.delete(digest);
      return;
    }
    const message = this.describeLoss(blob, specs);
    events.append({ atUs: wallTimeUs(), type: 'blob-lost', subject: digest, message });
    this.lost.add(digest);
    logger.error({ blob: digest }, message);
    this.fetchRest(specs);
  }

  /** Errors: those of the registry, when none of its places has it and one could not say. */
  private async isAnywhere(blob: BlobSource): Promise<boolean> {
    let trouble: AppError | undefined;
    for (const repository of blob.repositories) {
      const signal = AbortSignal.any([this.stop.signal, AbortSignal.timeout(LOOK_DEADLINE_MS)]);
      try {
        if ((await this.parts.resolver.blobSize(repository, blob.digest, signal)) !== undefined) return true;
      } catch (error) {
        if (!isAppError(error)) throw error;
        trouble = error;
      }
    }
    if (trouble !== undefined) throw trouble;
    return false;
  }

  private describeLoss(blob: BlobSource, specs: readonly DeviceSpec[]): string {
    const containers = this.parts.dependencies.containersOf(blob.digest, MAX_COUNTED).map((user) => user.key);
    const places = blob.repositories.map(({ host, repository }) => `${host}/${repository}`).join(', ');
    const images = [...new Set(specs.map((spec) => spec.image))].join(', ');
    const named = containers.slice(0, NAMED).join(', ');
    const more = containers.length > NAMED ? ` and ${containers.length - NAMED} more` : '';
    return `gone from ${places}; reads of what is not local yet will fail in ${named}${more} (image ${images}); the rest of it is being fetched`;
  }

  private fetchRest(specs: readonly DeviceSpec[]): void {
    for (const blob of specs.flatMap((spec) => spec.layers.flatMap(blobsOfLayer))) {
      if (blob.localPath === undefined && !this.lost.has(blob.digest)) this.rest.set(blob.digest, blob);
    }
    this.fetching ??= this.fetchAll().finally(() => {
      this.fetching = undefined;
    });
  }

  /** One blob after the other: containers read meanwhile. */
  private async fetchAll(): Promise<void> {
    for (let next = this.rest.values().next(); next.done !== true && !this.stop.signal.aborted; next = this.rest.values().next()) {
      const { value: blob } = next;
      this.rest.delete(blob.digest);
      try {
        await this.parts.devices.fetchWhole(blob, AbortSignal.any([this.stop.signal, AbortSignal.timeout(FETCH_DEADLINE_MS)]));
      } catch (error) {
        if (!isAppError(error) && !this.stop.signal.aborted) throw error;
        this.parts.logger.warn({ blob: blob.digest, reason: describeError(error) }, 'blob of a suffering image could not be fetched whole');
      }
    }
  }
}
