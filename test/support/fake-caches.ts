/** A world for image caches that tests move: a clock that jumps, a registry and a node's store in memory that outlive the service. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Database, openDatabase } from '../../db/database.ts';
import type { Clock } from '../../plugin/base/clock.ts';
import { type Digest, sha256 } from '../../plugin/base/digest.ts';
import { AppError } from '../../plugin/base/errors.ts';
import { silentLogger } from '../../plugin/base/log.ts';
import type { ImageAccess, ImageStore, PreparedImage, PrepareOptions, ResolvedImage } from '../../plugin/cache/image-store.ts';
import { type CacheOptions, type CacheService, startCaches } from '../../plugin/cache/service.ts';

export const MIB = 1024 * 1024;
export const GIB = 1024 * MIB;
export const HOUR_MS = 3_600_000;
export const DAY_MS = 24 * HOUR_MS;

/** Stands still until it is moved. Wall time can jump; what sleeps wakes by the other one. */
export class MovableClock implements Clock {
  private wallMs = Date.UTC(2026, 0, 1);
  private steadyMs = 1_000;
  private readonly sleepers = new Set<{ atMs: number; wake: () => void }>();

  nowMs(): number {
    return this.wallMs;
  }

  monotonicMs(): number {
    return this.steadyMs;
  }

  sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const sleeper = { atMs: this.steadyMs + delayMs, wake: resolve };
      this.sleepers.add(sleeper);
      const onAbort = (): void => {
        this.sleepers.delete(sleeper);
        reject(signal?.reason);
      };
      if (signal?.aborted) onAbort();
      else signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** Time passes. */
  advance(ms: number): void {
    this.wallMs += ms;
    this.steadyMs += ms;
    for (const sleeper of [...this.sleepers]) {
      if (sleeper.atMs > this.steadyMs) continue;
      this.sleepers.delete(sleeper);
      sleeper.wake();
    }
  }

  /** Somebody sets the machine's clock. */
  jump(ms: number): void {
    this.wallMs += ms;
  }

  /** The machine was off: nothing slept and nobody counted. */
  powerOff(ms: number): void {
    this.wallMs += ms;
  }
}

/** An image of the given layers, all of one size. */
export function fakeImage(reference: string, layers: readonly string[], options: { layerMib?: number; salt?: string } = {}): ResolvedImage {
  const sizeBytes = (options.layerMib ?? 100) * MIB;
  const name = `${reference} ${layers.join(' ')} ${options.salt ?? ''}`;
  return {
    reference,
    digest: sha256(`index ${name}`),
    platformDigest: sha256(`manifest ${name}`),
    configDigest: sha256(`config ${name}`),
    form: 'full',
    layers: layers.map((layer) => ({ digest: layerDigest(layer), sizeBytes, chainId: sha256(`chain ${layer}`) })),
    sizeBytes: layers.length * sizeBytes,
  };
}

export function layerDigest(layer: string): Digest {
  return sha256(`layer ${layer}`);
}

export type Call = 'resolve' | 'prepare' | 'verify' | 'release' | 'list' | 'inUse';

/** The registry and the node. What a service does here survives it. */
export class FakeNode {
  readonly clock = new MovableClock();
  readonly registry = new Map<string, ResolvedImage>();
  /** By cache, by manifest digest. */
  readonly pins = new Map<string, Map<string, ResolvedImage>>();
  /** Whole blobs, whoever needs them. */
  readonly blobs = new Set<string>();
  /** Blobs that a running container reads from. */
  readonly usedBlobs = new Set<string>();
  /** How each reference was last asked for. */
  readonly accesses = new Map<string, ImageAccess>();
  /** How often each blob was fetched. */
  readonly fetches = new Map<string, number>();
  /** What unpacking adds to an image, by reference. */
  readonly unpackedBytes = new Map<string, number>();
  /** The next calls of a kind fail with these, in turn. */
  readonly failures = new Map<Call, Error[]>();
  /** What happens while the next calls of a kind are under way, in turn. */
  private readonly interludes = new Map<Call, (() => Promise<void>)[]>();
  /** Calls of `prepare` wait here. */
  private gate: Promise<void> | undefined;
  private openGate: () => void = () => {};

  /** Adds an image to the registry. */
  push(image: ResolvedImage): void {
    this.registry.set(image.reference, image);
  }

  fail(call: Call, ...errors: Error[]): void {
    this.failures.set(call, [...(this.failures.get(call) ?? []), ...errors]);
  }

  /** The next call of a kind takes so long that `work` is done meanwhile. */
  during(call: Call, work: () => Promise<void>): void {
    this.interludes.set(call, [...(this.interludes.get(call) ?? []), work]);
  }

  /** From now on preparing waits. */
  hold(): void {
    this.gate ??= new Promise((resolve) => {
      this.openGate = resolve;
    });
  }

  letGo(): void {
    this.openGate();
    this.gate = undefined;
  }

  /** Bytes on disk: of every blob that is there. */
  get diskBytes(): number {
    const sizes = new Map<string, number>();
    for (const image of [...this.registry.values(), ...[...this.pins.values()].flatMap((held) => [...held.values()])]) {
      for (const layer of image.layers) sizes.set(layer.digest, layer.sizeBytes);
    }
    return [...this.blobs].reduce((sum, blob) => sum + (sizes.get(blob) ?? Number.NaN), 0);
  }

  /** Blobs that nothing pins and no container uses go. */
  collect(): void {
    const needed = new Set<string>(this.usedBlobs);
    for (const held of this.pins.values()) for (const image of held.values()) for (const layer of image.layers) needed.add(layer.digest);
    for (const blob of this.blobs) if (!needed.has(blob)) this.blobs.delete(blob);
  }

  /** The port of one service; after {@link FakeSession.kill} nothing of it has an effect. */
  port(session: { readonly isDead: boolean }): ImageStore {
    const step = async (call: Call, signal?: AbortSignal): Promise<void> => {
      await new Promise((resolve) => setImmediate(resolve));
      if (session.isDead) await new Promise(() => {});
      await this.interludes.get(call)?.shift()?.();
      signal?.throwIfAborted();
      const error = this.failures.get(call)?.shift();
      if (error !== undefined) throw error;
    };
    return {
      resolve: async (reference, access, signal) => {
        await step('resolve', signal);
        this.accesses.set(reference, access);
        const image = this.registry.get(reference);
        if (image === undefined) throw new AppError('NotFound', { op: 'resolve', subject: reference, what: 'no such image' });
        return image;
      },
      prepare: (cacheId, image, options) => this.prepare(cacheId, image, options, step),
      verify: async (cacheId, image, signal) => {
        await step('verify', signal);
        const isPinned = this.pins.get(cacheId)?.has(image.platformDigest) === true;
        return isPinned && image.layers.every((layer) => this.blobs.has(layer.digest));
      },
      release: async (cacheId, keep, signal) => {
        await step('release', signal);
        const kept = new Set<string>(keep.map((image) => image.platformDigest));
        for (const manifest of this.pins.get(cacheId)?.keys() ?? []) if (!kept.has(manifest)) this.pins.get(cacheId)?.delete(manifest);
        if (this.pins.get(cacheId)?.size === 0 || kept.size === 0) this.pins.delete(cacheId);
        this.collect();
      },
      list: async (signal) => {
        await step('list', signal);
        return [...this.pins.keys()];
      },
      inUse: async (ids, signal) => {
        await step('inUse', signal);
        return new Set(ids.filter((id) => this.isUsed(id)));
      },
    };
  }

  isUsed(cacheId: string): boolean {
    return [...(this.pins.get(cacheId)?.values() ?? [])].some((image) => image.layers.some((layer) => this.usedBlobs.has(layer.digest)));
  }

  private async prepare(
    cacheId: string,
    image: ResolvedImage,
    options: PrepareOptions,
    step: (call: Call, signal: AbortSignal) => Promise<void>,
  ): Promise<PreparedImage> {
    const held = this.pins.get(cacheId) ?? new Map<string, ResolvedImage>();
    this.pins.set(cacheId, held);
    held.set(image.platformDigest, image);
    const { reservationBytes } = options;
    if (image.sizeBytes > reservationBytes) {
      const details = { neededBytes: image.sizeBytes, limitBytes: reservationBytes };
      throw new AppError('ResourceExhausted', { op: 'prepare', subject: image.reference, what: 'larger than its reservation', details });
    }
    let fetchedBytes = 0;
    let doneBytes = 0;
    // A start needs the first layer.
    const layers = options.until === 'usable' ? image.layers.slice(0, 1) : image.layers;
    for (const layer of layers) {
      await this.waitAtGate(options.signal);
      await step('prepare', options.signal);
      if (!this.blobs.has(layer.digest)) {
        this.blobs.add(layer.digest);
        this.fetches.set(layer.digest, (this.fetches.get(layer.digest) ?? 0) + 1);
        fetchedBytes += layer.sizeBytes;
      }
      doneBytes += layer.sizeBytes;
      options.onProgress({ doneBytes, totalBytes: layers.length * layer.sizeBytes });
    }
    const parts = image.layers.map(({ digest, sizeBytes }) => ({ name: digest as string, bytes: sizeBytes }));
    const bytes = this.unpackedBytes.get(image.reference);
    const taken = bytes === undefined ? parts : [...parts, { name: `snapshot ${image.reference}`, bytes }];
    const neededBytes = taken.reduce((sum, part) => sum + part.bytes, 0);
    if (neededBytes > reservationBytes) {
      const details = { neededBytes, limitBytes: reservationBytes };
      throw new AppError('ResourceExhausted', {
        op: 'prepare',
        subject: image.reference,
        what: 'unpacked, larger than its reservation',
        details,
      });
    }
    return { fetchedBytes, held: taken };
  }

  private async waitAtGate(signal: AbortSignal): Promise<void> {
    const { gate } = this;
    if (gate === undefined) return;
    const ended = Promise.withResolvers<never>();
    const onAbort = (): void => ended.reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    try {
      signal.throwIfAborted();
      await Promise.race([gate, ended.promise]);
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }
}

/** A clock whose sleepers never wake again once the service is dead. */
class SessionClock implements Clock {
  private readonly clock: Clock;
  private readonly session: { readonly isDead: boolean };

  constructor(clock: Clock, session: { readonly isDead: boolean }) {
    this.clock = clock;
    this.session = session;
  }

  nowMs(): number {
    return this.clock.nowMs();
  }

  monotonicMs(): number {
    return this.clock.monotonicMs();
  }

  async sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    await this.clock.sleep(delayMs, signal);
    if (this.session.isDead) await new Promise(() => {});
  }
}

/** The service over a database that outlives it. */
export class CacheHost implements AsyncDisposable {
  readonly node: FakeNode;
  private readonly directory = mkdtempSync(join(tmpdir(), 'obd-caches-'));
  private readonly options: Partial<CacheOptions>;
  private session = { isDead: false };
  private database: Database;
  service: CacheService;

  constructor(options: Partial<CacheOptions> = {}, node = new FakeNode()) {
    this.node = node;
    this.options = options;
    this.database = this.open();
    this.service = this.begin();
  }

  get clock(): MovableClock {
    return this.node.clock;
  }

  /** `kill -9`, and a new start. */
  restart(options: Partial<CacheOptions> = {}): void {
    this.session.isDead = true;
    this.database[Symbol.dispose]();
    this.session = { isDead: false };
    this.database = this.open();
    this.service = this.begin(options);
  }

  /** Everything that needs no clock has happened. */
  async settle(): Promise<void> {
    // Each step of the fake node is one turn of the event loop; a cache of the tests takes some tens.
    for (let calm = 0, last = ''; calm < 12; ) {
      await new Promise((resolve) => setImmediate(resolve));
      const now = JSON.stringify([this.service.usage(), this.node.pins.size, this.node.blobs.size]);
      calm = now === last ? calm + 1 : 0;
      last = now;
    }
  }

  /** Time passes, in steps that a sweep keeps up with. */
  async pass(ms: number, stepMs = ms): Promise<void> {
    await this.settle();
    for (let passedMs = 0; passedMs < ms; passedMs += stepMs) {
      this.clock.advance(Math.min(stepMs, ms - passedMs));
      await this.settle();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.node.letGo();
    await this.service.stop();
    this.session.isDead = true;
    this.database[Symbol.dispose]();
    rmSync(this.directory, { recursive: true, force: true });
  }

  private open(): Database {
    const database = openDatabase(join(this.directory, 'sidecar.db'));
    // The tests kill services, not machines: what is committed survives without a flush of the disk.
    database.client.pragma('synchronous = OFF');
    return database;
  }

  private begin(options: Partial<CacheOptions> = {}): CacheService {
    return startCaches({
      database: this.database,
      store: this.node.port(this.session),
      key: new Uint8Array(32).fill(7),
      logger: silentLogger,
      clock: new SessionClock(this.clock, this.session),
      maxCount: 500,
      maxAutomaticCount: 25,
      budgetBytes: 1000 * GIB,
      defaultSize: 20,
      podEphemeralSize: 30,
      unmatchedDays: 7,
      matchedDays: 30,
      concurrency: 2,
      creationDeadlineMs: HOUR_MS,
      verifyIntervalMs: 6 * HOUR_MS,
      ...this.options,
      ...options,
    });
  }
}
