/**
 * Random lives of a node: caches made, changed, matched, deleted; pods started and ended; tags that move, blobs that vanish, registries and
 * containerd that are away; clocks that pass and jump; kills at any moment. After every step what the service says is held against a
 * simple model: nothing vanishes without a reason, nothing in use loses a byte, quotas hold, and the ledger equals the disk.
 */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import type { ImageCache } from '../../../../plugin/cache/service.ts';
import { CacheHost, type Call, DAY_MS, fakeImage, GIB, HOUR_MS, MIB } from '../../../support/fake-caches.ts';
import { forTime } from '../../../support/for-time.ts';

const TIME_MS = 12_000;
const STEPS = 60;
const MINUTE_MS = 60_000;

const MAX_COUNT = 6;
const MAX_AUTOMATIC = 4;
const BUDGET_BYTES = 9 * GIB;
const LAYER_MIB = 512;
/** Expiry is looked for once a minute; nearer than this the model does not judge. */
const SLACK_MS = 3 * MINUTE_MS;

const REFERENCES = Array.from({ length: 9 }, (_, n) => `r.example/app-${n}:1`);
const LAYERS = ['a', 'b', 'c', 'd', 'e', 'f'];

/** What the model knows of a cache. */
interface Known {
  owner: 'user' | 'system';
  isLru: boolean;
  retentionDays: number | null;
  createdMs: number;
  matchedMs: number | null;
  failedMs: number | null;
}

/** The clock that caches should go by: jumps count after a day without one. */
class ModelClock {
  nowMs: number;
  private openMs = 0;
  private sinceMs: number | undefined;

  constructor(nowMs: number) {
    this.nowMs = nowMs;
  }

  advance(ms: number): void {
    this.nowMs += ms;
    if (this.sinceMs === undefined || this.nowMs - this.sinceMs < DAY_MS) return;
    this.nowMs += this.openMs;
    this.openMs = 0;
    this.sinceMs = undefined;
  }

  jump(ms: number): void {
    this.openMs += ms;
    this.sinceMs = this.openMs === 0 ? undefined : this.nowMs;
  }
}

class Life {
  private readonly host: CacheHost;
  private readonly next: (below: number) => number;
  private readonly known = new Map<string, Known>();
  private readonly clock: ModelClock;
  private pushes = 0;
  private pods = 0;
  private isHeld = false;
  /** Caches that containers used before the step. */
  private used: ReadonlySet<string> = new Set();
  /** Everything that was done, for who reads a failure. */
  readonly log: string[] = [];

  constructor(host: CacheHost, seed: number) {
    this.host = host;
    let state = seed | 1;
    this.next = (below) => {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return (state >>> 0) % below;
    };
    for (const reference of REFERENCES) this.push(reference);
    this.clock = new ModelClock(host.clock.nowMs());
  }

  async step(): Promise<void> {
    const before = this.list();
    this.used = new Set(before.map((cache) => cache.imageCacheId).filter((id) => this.host.node.isUsed(id)));
    const weighted: [number, string, () => Promise<void> | void][] = [
      [6, 'create', () => this.create()],
      [4, 'update', () => this.update()],
      [2, 'delete', () => this.delete()],
      [4, 'auto', () => this.auto()],
      [6, 'match', () => this.match()],
      [4, 'pass', () => this.pass()],
      [1, 'jump', () => this.jump()],
      [3, 'kill', () => this.kill()],
      [2, 'hold', () => this.hold()],
      [3, 'fail', () => this.fail()],
      [1, 'push', () => this.push(this.pick(REFERENCES))],
      [1, 'damage', () => this.damage()],
      [3, 'pod', () => this.pod()],
      [2, 'pod ends', () => this.endPod()],
    ];
    let place = this.next(weighted.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, name, work] of weighted) {
      place -= weight;
      if (place >= 0) continue;
      this.log.push(name);
      await work();
      break;
    }
    await this.host.settle();
    this.check(before);
  }

  /** Everything that was away comes back; in the end nothing is left over. */
  async end(): Promise<void> {
    const before = this.list();
    this.log.push('end');
    this.host.node.failures.clear();
    if (this.isHeld) this.hold();
    // Attempts rest for five minutes at most, then the sweeper lets go of what is owed, and the verifier looks for what was damaged.
    for (let round = 0; round < 8; round += 1) await this.passMs(5 * MINUTE_MS);
    await this.passMs(7 * HOUR_MS);
    await this.passMs(MINUTE_MS);
    this.check(before);
    this.checkCalm();
    for (const { imageCacheId } of this.list()) await this.host.service.delete(imageCacheId);
    this.host.node.usedBlobs.clear();
    this.host.node.collect();
    expect([...this.host.node.pins.keys(), ...this.host.node.blobs]).toEqual([]);
    expect(this.host.service.usage().committedBytes).toBe(0);
  }

  private list(): ImageCache[] {
    return [...this.host.service.list({}, { limit: 100 }).caches];
  }

  private pick<T>(from: readonly T[]): T {
    return from[this.next(from.length)]!;
  }

  private images(): string[] {
    return [...new Set(Array.from({ length: 1 + this.next(3) }, () => this.pick(REFERENCES)))];
  }

  /** Every failure must be one that a client knows. */
  private async attempt(work: () => Promise<unknown> | unknown): Promise<boolean> {
    try {
      await work();
      return true;
    } catch (error) {
      if (!(error instanceof AppError) || error.code === 'Internal') throw error;
      this.log.push(`  ${String(error.details.reason)}`);
      return false;
    }
  }

  private async create(): Promise<void> {
    const imageCacheName = `cache-${this.next(12)}`;
    const isLru = this.next(2) === 0;
    const retentionDays = this.next(4) === 0 ? 1 + this.next(20) : null;
    await this.attempt(() =>
      this.host.service.create({
        ...{ imageCacheName, images: this.images(), retentionDays, flash: this.next(3) === 0 },
        eliminationStrategy: isLru ? 'LRU' : null,
      }),
    );
  }

  private async update(): Promise<void> {
    const caches = this.list();
    if (caches.length === 0) return;
    const { imageCacheId } = this.pick(caches);
    const patch = this.next(2) === 0 ? { images: this.images() } : { retentionDays: this.next(2) === 0 ? null : 1 + this.next(30) };
    const running = this.attempt(() => this.host.service.update(imageCacheId, patch));
    // Now and then somebody else changes the same cache meanwhile.
    if (this.next(4) === 0) await this.attempt(() => this.host.service.update(imageCacheId, { images: this.images() }));
    await running;
    const now = this.list().find((cache) => cache.imageCacheId === imageCacheId);
    const known = this.known.get(imageCacheId);
    if (known !== undefined && now !== undefined) known.retentionDays = now.retentionDays;
  }

  private async delete(): Promise<void> {
    const caches = this.list();
    if (caches.length === 0) return;
    const { imageCacheId } = this.pick(caches);
    await Promise.all([this.host.service.delete(imageCacheId), this.host.service.delete(imageCacheId)]);
    this.known.delete(imageCacheId);
  }

  private async auto(): Promise<void> {
    const sandboxId = `pod-${this.next(8)}`;
    await this.attempt(() => this.host.service.autoCreate({ sandboxId, images: this.images() }));
  }

  private async match(): Promise<void> {
    const images = this.images().map((reference) => {
      const image = this.host.node.registry.get(reference)!;
      return { reference, ...(this.next(2) === 0 ? { digest: image.digest, layers: [...image.layers] } : {}) };
    });
    const rules = this.pick([{}, {}, { perfectMatch: true }, { matchCountRequest: 2 }]);
    const request = {
      ...rules,
      images: images.map(({ layers, ...rest }) =>
        layers === undefined ? rest : { ...rest, layers: layers.map(({ digest, sizeBytes }) => ({ digest, sizeBytes })) },
      ),
    };
    const explained = this.host.service.explain(request);
    const { cache } = this.host.service.matchForPod(request);
    expect(cache?.imageCacheId ?? null).toBe(explained.imageCacheId);
    if (cache === null) return;
    this.known.get(cache.imageCacheId)!.matchedMs = this.clock.nowMs;
  }

  private async pass(): Promise<void> {
    await this.passMs(this.pick([MINUTE_MS, HOUR_MS, 7 * HOUR_MS, 2 * DAY_MS, 9 * DAY_MS]));
  }

  /** The last minutes are for the sweep. */
  private async passMs(ms: number): Promise<void> {
    for (const part of [ms, MINUTE_MS, MINUTE_MS]) {
      this.clock.advance(part);
      await this.host.pass(part);
    }
  }

  private async jump(): Promise<void> {
    const ms = this.pick([-400, -30, 30, 400]) * DAY_MS;
    this.log.push(`  ${ms / DAY_MS} days`);
    // It is noticed at the next look, before any time passes by it.
    this.host.clock.jump(ms);
    this.clock.jump(ms);
    await this.passMs(MINUTE_MS);
  }

  /** At any moment; only what is not promised to be durable may differ. */
  private kill(): void {
    const before = this.list();
    this.host.restart();
    const after = this.list();
    expect(after.map((cache) => durablePart(cache))).toEqual(before.map((cache) => durablePart(cache)));
    for (const [index, cache] of after.entries()) {
      const was = before[index]!;
      expect(cache.progress).toBeLessThanOrEqual(was.progress);
      const lostMs = Date.parse(was.lastMatchedTime ?? was.creationTime) - Date.parse(cache.lastMatchedTime ?? was.creationTime);
      expect(lostMs).toBeLessThanOrEqual(MINUTE_MS);
      if (cache.lastMatchedTime !== null) this.known.get(cache.imageCacheId)!.matchedMs = Date.parse(cache.lastMatchedTime);
    }
  }

  private hold(): void {
    this.isHeld = !this.isHeld;
    if (this.isHeld) this.host.node.hold();
    else this.host.node.letGo();
  }

  private fail(): void {
    const call = this.pick<Call>(['resolve', 'prepare', 'prepare', 'release', 'list', 'inUse', 'verify']);
    const code = this.pick(['Unavailable', 'Unavailable', 'DataLoss'] as const);
    this.log.push(`  ${call} ${code}`);
    for (let n = 0; n <= this.next(3); n += 1)
      this.host.node.fail(call, new AppError(code, { op: call, subject: 'test', what: 'injected' }));
  }

  private push(reference: string): void {
    const layers = LAYERS.filter(() => this.next(3) === 0);
    this.pushes += 1;
    this.host.node.push(fakeImage(reference, [...layers, `own ${this.pushes}`], { layerMib: LAYER_MIB, salt: String(this.pushes) }));
  }

  private async damage(): Promise<void> {
    const blobs = [...this.host.node.blobs].filter((blob) => !this.host.node.usedBlobs.has(blob));
    if (blobs.length > 0) this.host.node.blobs.delete(this.pick(blobs));
    await this.passMs(7 * HOUR_MS);
  }

  /** A container of an image that a cache holds whole. */
  private pod(): void {
    const held = [...this.host.node.pins.values()].flatMap((images) => [...images.values()]);
    const whole = held.filter((image) => image.layers.every((layer) => this.host.node.blobs.has(layer.digest)));
    if (whole.length === 0 || this.pods >= 3) return;
    this.pods += 1;
    for (const layer of this.pick(whole).layers) this.host.node.usedBlobs.add(layer.digest);
  }

  private endPod(): void {
    this.pods = 0;
    this.host.node.usedBlobs.clear();
    this.host.node.collect();
  }

  private check(before: readonly ImageCache[]): void {
    const now = this.list();
    const { node, service } = this.host;
    for (const cache of now) this.learn(cache);
    const alive = new Set(now.map((cache) => cache.imageCacheId));
    for (const [id, known] of this.known) if (!alive.has(id)) this.checkGone(id, known, before);
    this.checkExpiry(now);
    const usage = service.usage();
    expect(usage.usedImageCacheCount).toBe(now.filter((cache) => cache.owner === 'user').length);
    expect(usage.usedImageCacheCount).toBeLessThanOrEqual(MAX_COUNT);
    expect(usage.usedAutoImageCacheCount).toBeLessThanOrEqual(MAX_AUTOMATIC);
    for (const blob of node.usedBlobs) expect(node.blobs.has(blob)).toBe(true);
    for (const cache of now) {
      expect(cache.events.length).toBeLessThanOrEqual(50);
      if (cache.snapshotId !== null) expect(cache.progress === 100 || cache.status !== 'Ready').toBe(true);
      for (const { digest } of cache.images) if (digest !== null && cache.status !== 'Failed') expect(service.isPinned(digest)).toBe(true);
    }
  }

  private learn(cache: ImageCache): void {
    const { imageCacheId, owner, retentionDays, creationTime, eliminationStrategy, status } = cache;
    const known = this.known.get(imageCacheId);
    if (known === undefined) {
      expect(Math.abs(Date.parse(creationTime) - this.clock.nowMs)).toBeLessThanOrEqual(SLACK_MS);
      const isLru = eliminationStrategy === 'LRU';
      const failedMs = status === 'Failed' ? this.clock.nowMs : null;
      this.known.set(imageCacheId, { owner, isLru, retentionDays, createdMs: this.clock.nowMs, matchedMs: null, failedMs });
    } else if (status === 'Failed') known.failedMs ??= this.clock.nowMs;
  }

  private expiryOf({ owner, retentionDays, createdMs, matchedMs, failedMs }: Known): number {
    if (failedMs !== null) return failedMs + DAY_MS;
    if (retentionDays !== null) return createdMs + retentionDays * DAY_MS;
    if (owner === 'user') return Number.POSITIVE_INFINITY;
    return matchedMs === null ? createdMs + 7 * DAY_MS : matchedMs + 30 * DAY_MS;
  }

  /** A cache that went without being deleted had expired, or gave way. */
  private checkGone(id: string, known: Known, before: readonly ImageCache[]): void {
    this.known.delete(id);
    const isOver = this.expiryOf(known) <= this.clock.nowMs + SLACK_MS;
    const mayGo = known.owner === 'system' || known.isLru || isOver;
    // One that was being built may have failed, and gone a day later, in one long step.
    const wasWorking = before.some((cache) => cache.imageCacheId === id && !['Ready', 'UpdateFailed'].includes(cache.status));
    expect(mayGo || wasWorking).toBe(true);
    // What a container uses gives way to nothing.
    expect(this.used.has(id) && !isOver && !wasWorking).toBe(false);
  }

  private checkExpiry(now: readonly ImageCache[]): void {
    for (const cache of now) {
      const known = this.known.get(cache.imageCacheId)!;
      const isOver = this.expiryOf(known) < this.clock.nowMs - SLACK_MS;
      // What is in use, or cannot be told, stays.
      if (isOver && (known.owner === 'user' || known.failedMs !== null)) {
        const isSweepDone = this.log.at(-1) !== 'fail';
        expect(isSweepDone && this.lastWas('pass') && `${cache.imageCacheId} should have gone`).toBe(false);
      }
    }
  }

  private lastWas(name: string): boolean {
    return this.log.at(-1) === name;
  }

  /** Nothing is under way: what is held is what is on disk. */
  private checkCalm(): void {
    const { node, service } = this.host;
    const held = new Map<string, number>();
    for (const cache of this.list()) {
      expect(['Ready', 'Failed', 'UpdateFailed']).toContain(cache.status);
      const pins = node.pins.get(cache.imageCacheId);
      if (cache.status === 'Failed') {
        expect(pins).toBeUndefined();
        continue;
      }
      expect([...(pins?.keys() ?? [])].sort()).toEqual([...new Set(cache.images.map((image) => image.platformDigest))].sort());
      for (const image of pins!.values()) {
        for (const layer of image.layers) {
          held.set(layer.digest, layer.sizeBytes);
          expect(node.blobs.has(layer.digest)).toBe(true);
        }
      }
    }
    expect([...node.pins.keys()].every((id) => this.known.has(id))).toBe(true);
    const heldBytes = [...held.values()].reduce((sum, bytes) => sum + bytes, 0);
    expect(service.usage().committedBytes).toBe(heldBytes);
    const usedOnly = [...node.usedBlobs].filter((blob) => !held.has(blob)).length;
    expect(node.blobs.size * LAYER_MIB * MIB).toBe(heldBytes + usedOnly * LAYER_MIB * MIB);
    expect(heldBytes).toBeLessThanOrEqual(BUDGET_BYTES);
  }
}

function durablePart(cache: ImageCache): Partial<ImageCache> {
  const { progress: _p, flashProgress: _f, lastMatchedTime: _l, matchCount: _m, expireDateTime: _e, ...rest } = cache;
  // A service that starts warns of an open jump again, which may push the oldest event out.
  return { ...rest, events: rest.events.filter((event) => event.reason !== 'ClockJumped').slice(-20) };
}

test('random lives agree with the model', { timeout: 300_000 }, async () => {
  let steps = 0;
  await forTime(
    TIME_MS,
    fc.asyncProperty(fc.integer({ min: 1, max: 0x7fff_ffff }), async (seed) => {
      await using host = new CacheHost({ maxCount: MAX_COUNT, maxAutomaticCount: MAX_AUTOMATIC, budgetBytes: BUDGET_BYTES });
      const life = new Life(host, seed);
      try {
        for (let step = 0; step < STEPS; step += 1) {
          await life.step();
          steps += 1;
        }
        await life.end();
      } catch (error) {
        throw new Error(`after ${life.log.length} steps: ${life.log.slice(-25).join(', ')}`, { cause: error });
      }
    }),
    { parameters: { endOnFailure: true, verbose: fc.VerbosityLevel.Verbose } },
  );
  if (process.env.OBD_SHOW_STEPS !== undefined) process.stdout.write(`${steps} steps\n`);
});
