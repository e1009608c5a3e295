/**
 * Brings missing bytes of blobs into the chunk store: coalesced, aligned to units, readers before read-ahead before background fill.
 * Ours. Main thread of blockd only.
 *
 *   worker misses ─► ensure(handle, missing ranges, 'demand', signal) ─► read again
 *   worker hits a marked unit ─► readAhead(handle, offset)
 *   a read finds corrupt bytes ─► repair(handle, offset, length, signal) ─► read again
 */
import assert from 'node:assert/strict';
import { setMaxListeners } from 'node:events';
import type { Clock } from '../../base/clock.ts';
import { AppError, isAppError } from '../../base/errors.ts';
import { FETCH_STREAM_BYTES, FETCH_UNIT_BYTES, MISS_PATIENCE_MS } from '../../base/limits.ts';
import { type Logger, silentLogger } from '../../base/log.ts';
import { LogRepeater } from '../../base/log-repeater.ts';
import { MIB } from '../../base/units.ts';
import type { BlobSource } from '../../file/device-spec.ts';
import type { BlobHandle } from '../../file/store/blob-handle.ts';
import type { ChunkStore } from '../../file/store/chunk-store.ts';
import { BackgroundFill } from './background-fill.ts';
import { BlobFetches } from './blob-fetches.ts';
import { Fetch, type Waiter } from './fetch.ts';
import { FetchQueue, HostGroup } from './fetch-queue.ts';
import { FetchRunner } from './fetch-runner.ts';
import { type FetchStats, LATENCY_BOUNDS_MS } from './fetch-stats.ts';
import {
  DEFAULT_FETCH_LIMITS,
  type FetchEvent,
  type FetchLimits,
  type FetchPriority,
  type FetchRange,
  type FillOptions,
} from './fetch-types.ts';
import type { ReadAhead } from './stream-detector.ts';
import { runsOf } from './unit-runs.ts';

export interface FetchSchedulerOptions {
  store: ChunkStore;
  fetchRange: FetchRange;
  clock: Clock;
  log?: Logger;
  onEvent?: (event: FetchEvent) => void;
  /** How long a read waits for a registry that is away. Default {@link MISS_PATIENCE_MS}. */
  patienceMs?: number;
  limits?: Partial<FetchLimits>;
  /** Bring the rest of attached blobs; absent: off. */
  fill?: FillOptions;
  /** In [0, 1), for the jitter of retries. */
  random?: () => number;
}

/** A range of a blob, as {@link MissingRanges} collects them. */
export interface BlobRange {
  offsetBytes: number;
  lengthBytes: number;
}

const REQUEST_UNITS_MAX = FETCH_STREAM_BYTES / FETCH_UNIT_BYTES;
/** One call's ranges: what the store's memory cache could hold if the disk were full. A larger read is made in pieces. */
const ENSURE_MAX_BYTES = 64 * MIB;
/** A unit that is wrong again so soon after it was fetched again is given up. */
const REPAIR_AGAIN_MS = 60_000;
/** Units of a blob whose repair is remembered; a blob with more is rotten, and the oldest are tried again. */
const REPAIRS_MAX = 4096;

export class FetchScheduler {
  private readonly options: FetchSchedulerOptions;
  private readonly store: ChunkStore;
  private readonly clock: Clock;
  private readonly log: LogRepeater;
  private readonly blobs = new Map<number, BlobFetches>();
  private readonly groups = new Map<string, HostGroup>();
  private readonly queue: FetchQueue;
  private readonly runner: FetchRunner;
  private readonly filler: BackgroundFill | undefined;
  private readonly stop = new AbortController();

  constructor(options: FetchSchedulerOptions) {
    this.options = options;
    this.store = options.store;
    this.clock = options.clock;
    const log = options.log ?? silentLogger;
    this.log = new LogRepeater(log, options.clock);
    this.queue = new FetchQueue({ ...DEFAULT_FETCH_LIMITS, ...options.limits });
    this.runner = new FetchRunner(
      {
        store: options.store,
        fetchRange: options.fetchRange,
        clock: options.clock,
        log,
        onEvent: options.onEvent ?? (() => {}),
        patienceMs: options.patienceMs ?? MISS_PATIENCE_MS,
        random: options.random ?? Math.random,
        onStored: (blob) => this.verifyIfComplete(blob),
      },
      this.queue,
    );
    setMaxListeners(0, this.stop.signal);
    if (options.fill !== undefined) this.filler = this.makeFiller(options.fill);
    this.store.onUnreferenced((blobId) => this.detach(blobId));
  }

  private makeFiller(options: FillOptions): BackgroundFill {
    const parts = {
      clock: this.clock,
      bring: (blob: BlobFetches, offsetBytes: number, lengthBytes: number, signal: AbortSignal) =>
        this.ensureBlob(blob, [{ offsetBytes, lengthBytes }], 'fill', signal, blob.distrustedMirrors),
      whenQuiet: (maxMs: number, signal: AbortSignal) => this.runner.whenQuiet(maxMs, signal),
      sleep: (delayMs: number, signal: AbortSignal) => this.runner.sleep(delayMs, signal),
    };
    return new BackgroundFill(options, parts, this.stop.signal);
  }

  /** Makes a blob known: it is filled in the background if that is configured, and verified when it is complete. May be repeated. */
  attach(handle: BlobHandle): void {
    if (this.stop.signal.aborted || handle.source.localPath !== undefined) return;
    const blob = this.stateOf(handle);
    if (handle.isVerified) return;
    if (handle.isComplete) {
      this.verifyIfComplete(blob);
      return;
    }
    const filling = this.filler?.add(blob);
    if (filling !== undefined) this.runner.track(filling);
  }

  private stateOf(handle: BlobHandle): BlobFetches {
    const known = this.blobs.get(handle.blobId);
    if (known !== undefined) {
      known.askedThrough(handle);
      return known;
    }
    const key = hostsOf(handle.source);
    let group = this.groups.get(key);
    if (group === undefined) this.groups.set(key, (group = new HostGroup()));
    group.blobs += 1;
    const blob = new BlobFetches(handle, group);
    this.blobs.set(handle.blobId, blob);
    return blob;
  }

  /** The blob's last handle was released. */
  private detach(blobId: number): void {
    const blob = this.blobs.get(blobId);
    if (blob === undefined) return;
    this.blobs.delete(blobId);
    blob.group.blobs -= 1;
    if (blob.group.blobs === 0) this.groups.delete(hostsOf(blob.handle.source));
    this.runner.abandon(blob);
  }

  /**
   * Resolves when every unit of the ranges is readable through the handle's file on this thread; resolves at once if all are. A unit that
   * only memory holds may have been displaced when the caller comes to read: then ask again. Rejects: Canceled on abort, release or
   * close; InvalidArgument for ranges outside the blob or above 64 MiB in all; ResourceExhausted when too many wait; else the last
   * failure, after the patience that its code deserves.
   */
  ensure(handle: BlobHandle, ranges: readonly BlobRange[], priority: FetchPriority, signal: AbortSignal): Promise<void> {
    if (this.stop.signal.aborted || signal.aborted || !handle.isHeld) return Promise.reject(canceled(handle));
    const blob = this.stateOf(handle);
    return this.ensureBlob(blob, ranges, priority, signal, blob.distrustedMirrors);
  }

  private ensureBlob(
    blob: BlobFetches,
    ranges: readonly BlobRange[],
    priority: FetchPriority,
    signal: AbortSignal,
    avoidMirrors: readonly string[],
  ): Promise<void> {
    // Nobody would end what is begun after the end.
    if (this.stop.signal.aborted || signal.aborted || blob.isGone) return Promise.reject(canceled(blob.handle, signal.reason));
    const refusal = this.refusalOf(blob.handle, ranges, priority) ?? condemnationOf(blob);
    if (refusal !== undefined) return Promise.reject(refusal);
    const fetches = new Set<Fetch>();
    for (const range of ranges) {
      if (range.lengthBytes === 0) continue;
      const first = Math.floor(range.offsetBytes / FETCH_UNIT_BYTES);
      const end = Math.ceil((range.offsetBytes + range.lengthBytes) / FETCH_UNIT_BYTES);
      this.collect(blob, first, end, priority, avoidMirrors, fetches);
      if (priority !== 'demand') continue;
      const ahead = blob.streams.onMiss(first, end, this.clock.monotonicMs());
      if (ahead !== undefined) this.prefetch(blob, ahead);
    }
    if (priority === 'demand' && fetches.size > 0) {
      this.runner.counters.misses += 1;
      blob.counters.misses += 1;
    }
    const done = fetches.size === 0 ? Promise.resolve() : this.wait(fetches, priority, signal);
    this.runner.dispatch();
    return done;
  }

  private refusalOf(handle: BlobHandle, ranges: readonly BlobRange[], priority: FetchPriority): AppError | undefined {
    const refuse = (code: 'InvalidArgument' | 'ResourceExhausted', what: string): AppError =>
      new AppError(code, { op: 'fetch', subject: handle.source.digest, what });
    let totalBytes = 0;
    for (const { offsetBytes, lengthBytes } of ranges) {
      totalBytes += lengthBytes;
      if (offsetBytes < 0 || lengthBytes < 0 || offsetBytes + lengthBytes > handle.sizeBytes) {
        return refuse('InvalidArgument', `[${offsetBytes}, +${lengthBytes}) lies outside its ${handle.sizeBytes} bytes`);
      }
    }
    if (totalBytes > ENSURE_MAX_BYTES) return refuse('InvalidArgument', `${totalBytes} bytes at once, at most ${ENSURE_MAX_BYTES}`);
    if (priority === 'demand' && this.queue.queued.demand >= this.queue.limits.queuedDemand) {
      return refuse('ResourceExhausted', `${this.queue.queued.demand} requests wait already`);
    }
    return undefined;
  }

  /** Finds or makes the fetches that bring units [first, end). */
  private collect(
    blob: BlobFetches,
    first: number,
    end: number,
    priority: FetchPriority,
    avoidMirrors: readonly string[],
    fetches: Set<Fetch>,
  ): void {
    let last: Fetch | undefined;
    for (let unit = first; unit < end; unit += 1) {
      if (blob.handle.isReadable(unit)) continue;
      const coming = blob.units.get(unit);
      if (coming !== undefined) {
        if (priority === 'demand') this.join(coming);
        fetches.add(coming);
        continue;
      }
      const avoid = blob.repairing.get(unit) ?? avoidMirrors;
      if (avoid.length === 0) last ??= this.extensible(blob, unit - 1, priority);
      const isSame = last !== undefined && (last.avoidMirrors === avoid || last.avoidMirrors.length + avoid.length === 0);
      if (isSame && last !== undefined && last.endUnit === unit && unit - last.firstUnit < REQUEST_UNITS_MAX) {
        last.endUnit = unit + 1;
      } else {
        last = new Fetch(blob, unit, unit + 1, priority, this.clock.monotonicMs(), avoid);
        this.queue.push(last);
      }
      blob.units.set(unit, last);
      fetches.add(last);
    }
  }

  /** The fetch of the unit before, if it still waits and may grow. */
  private extensible(blob: BlobFetches, unit: number, priority: FetchPriority): Fetch | undefined {
    const before = blob.units.get(unit);
    if (before === undefined || before.state !== 'queued' || before.priority !== priority) return undefined;
    return before.attempt === 0 && before.avoidMirrors.length === 0 ? before : undefined;
  }

  /** A reader wants what a fetch brings. */
  private join(fetch: Fetch): void {
    if (fetch.priority === 'demand') return;
    fetch.demandedAtMs = this.clock.monotonicMs();
    for (const counters of [this.runner.counters, fetch.blob.counters]) counters.joinedPrefetch += 1;
    if (fetch.state === 'queued') this.queue.promote(fetch);
    else fetch.priority = 'demand';
  }

  private wait(fetches: Set<Fetch>, priority: FetchPriority, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        fetches,
        priority,
        askedAtMs: this.clock.monotonicMs(),
        resolve: () => {
          signal.removeEventListener('abort', onAbort);
          resolve();
        },
        reject: (error) => {
          signal.removeEventListener('abort', onAbort);
          reject(error);
        },
      };
      const onAbort = (): void => {
        const [fetch] = fetches;
        assert(fetch !== undefined);
        this.runner.leave(waiter);
        waiter.reject(canceled(fetch.blob.handle, signal.reason));
      };
      for (const fetch of fetches) fetch.waiters.add(waiter);
      // One signal may stand for all reads of a device.
      setMaxListeners(0, signal);
      signal.addEventListener('abort', onAbort, { once: true });
    });
  }

  /** A reader hit the marked unit at `offsetBytes` (see {@link MissingRanges.readAhead}): its stream goes on. */
  readAhead(handle: BlobHandle, offsetBytes: number): void {
    const blob = this.blobs.get(handle.blobId);
    if (blob === undefined || this.stop.signal.aborted) return;
    const ahead = blob.streams.onMark(Math.floor(offsetBytes / FETCH_UNIT_BYTES), this.clock.monotonicMs());
    if (ahead === undefined) return;
    this.prefetch(blob, ahead);
    this.runner.dispatch();
  }

  private prefetch(blob: BlobFetches, ahead: ReadAhead): void {
    if (this.queue.queued.prefetch >= this.queue.limits.queuedPrefetch) return;
    // A unit that was read before belongs to another reader, whose next pass must not start this stream again.
    if (!blob.handle.isReadable(ahead.markUnit) || !blob.handle.isAccessed(ahead.markUnit)) blob.handle.mark(ahead.markUnit);
    this.collect(blob, ahead.firstUnit, ahead.endUnit, 'prefetch', blob.distrustedMirrors, new Set());
  }

  /**
   * Forgets a range whose stored bytes proved wrong and fetches it from another mirror than those that sent it, if there is one. Units
   * that were repaired within the last minute are not the ones to blame as long as others are left. Resolves like {@link ensure}. Call it
   * only for what a read on this thread has just found (a worker's finding may be older than a repair). Rejects with DataLoss when every
   * unit of the range was repaired within a minute, else as {@link ensure} does.
   */
  async repair(handle: BlobHandle, offsetBytes: number, lengthBytes: number, signal: AbortSignal): Promise<void> {
    if (this.stop.signal.aborted || signal.aborted || !handle.isHeld) throw canceled(handle);
    const range = { offsetBytes, lengthBytes: Math.max(1, lengthBytes) };
    const refusal = this.refusalOf(handle, [range], 'demand');
    if (refusal !== undefined) throw refusal;
    const blob = this.stateOf(handle);
    const first = Math.floor(offsetBytes / FETCH_UNIT_BYTES);
    const end = Math.ceil((offsetBytes + range.lengthBytes) / FETCH_UNIT_BYTES);
    const suspects = this.rememberRepair(blob, first, end);
    // None: somebody else's repair is under way, and what it fetched already is not to be thrown away.
    const avoid = [...new Set(suspects.flatMap((unit) => blob.mirrors.of(unit, unit + 1)))];
    for (const mirror of avoid) blob.provenWrong.add(mirror);
    for (const unit of suspects) {
      blob.repairing.set(unit, avoid);
      // Who brought it may not have ended yet, and brings nothing more.
      blob.units.delete(unit);
    }
    try {
      // All at once: nobody may find the wrong bytes of a unit that counts as repaired.
      const drops = runsOf(suspects).map(([from, to]) => {
        const lengthBytes = Math.min(to * FETCH_UNIT_BYTES, handle.sizeBytes) - from * FETCH_UNIT_BYTES;
        return this.store.drop(handle, from * FETCH_UNIT_BYTES, lengthBytes);
      });
      await Promise.all(drops);
      await this.ensureBlob(blob, [range], 'demand', signal, blob.distrustedMirrors);
    } finally {
      for (const unit of suspects) if (blob.repairing.get(unit) === avoid) blob.repairing.delete(unit);
    }
  }

  /** The units to fetch again, ascending; none while somebody else's repair of all of them is under way. */
  private rememberRepair(blob: BlobFetches, first: number, end: number): number[] {
    const nowMs = this.clock.monotonicMs();
    const readable = Array.from({ length: end - first }, (_, index) => first + index).filter((unit) => blob.handle.isReadable(unit));
    const suspects = readable.filter((unit) => {
      const beforeMs = blob.repairedAtMs.get(unit);
      return beforeMs === undefined || nowMs - beforeMs >= REPAIR_AGAIN_MS;
    });
    if (suspects.length === 0 && readable.length === end - first) {
      const what = `units ${first} to ${end - 1} are still wrong after they were fetched again`;
      const error = new AppError('DataLoss', { op: 'repair', subject: blob.handle.source.digest, what, details: { unit: first } });
      this.options.onEvent?.({ kind: 'fetch-failed', digest: blob.handle.source.digest, code: error.code, detail: what });
      throw error;
    }
    for (const unit of suspects) {
      blob.repairedAtMs.delete(unit);
      blob.repairedAtMs.set(unit, nowMs);
      if (blob.repairedAtMs.size > REPAIRS_MAX) blob.repairedAtMs.delete(blob.repairedAtMs.keys().next().value!);
    }
    return suspects;
  }

  private verifyIfComplete(blob: BlobFetches): void {
    const { handle } = blob;
    if (!handle.isComplete || handle.isVerified || blob.isVerifying || blob.isGone) return;
    blob.isVerifying = true;
    this.runner.track(this.verify(blob));
  }

  private async verify(blob: BlobFetches): Promise<void> {
    try {
      await this.store.verifyComplete(blob.handle, blob.gone.signal, { onCorrupt: () => this.foundCorrupt(blob) });
    } catch (error) {
      if (!isAppError(error)) throw error;
      if (error.code !== 'Canceled')
        this.log.write('error', { digest: blob.handle.source.digest, err: error }, 'a complete blob cannot be verified');
    } finally {
      blob.isVerifying = false;
    }
  }

  private foundCorrupt(blob: BlobFetches): void {
    blob.isCondemned = blob.isCorrupt;
    blob.isCorrupt = true;
    blob.distrustedMirrors = blob.suspects();
    // All its units were forgotten, also those that had been fetched again.
    blob.repairedAtMs.clear();
  }

  /** All bytes that came since the start. */
  get fetchedBytes(): number {
    const { bytesFetchedDemand, bytesFetchedPrefetch, bytesFetchedFill } = this.runner.counters;
    return bytesFetchedDemand + bytesFetchedPrefetch + bytesFetchedFill;
  }

  /** Counters since the start, and what is under way. */
  stats(): FetchStats {
    const { counters, latency } = this.runner;
    const { inFlightBytes, inFlightCount, queued } = this.queue;
    return {
      ...counters,
      inFlight: inFlightCount,
      inFlightBytes,
      queuedDemand: queued.demand,
      queuedPrefetch: queued.prefetch,
      latency: { boundsMs: LATENCY_BOUNDS_MS, counts: [...latency.counts], sumMs: latency.sumMs },
      blobs: [...this.blobs.values()].map((blob) => ({
        ...blob.counters,
        blobId: blob.handle.blobId,
        digest: blob.handle.source.digest,
        isWaiting: blob.failures > 0,
      })),
    };
  }

  /** Ends all fetches (their readers get Canceled), waits for writes under way, and makes durable what came. The store stays open. */
  async close(): Promise<void> {
    this.stop.abort();
    await this.runner.close(this.blobs.values());
    this.blobs.clear();
    await this.store.checkpoint();
  }
}

/** Registries are told apart by their names, in order: blobs with the same list share a cap. */
function hostsOf(source: BlobSource): string {
  return source.repositories.map((repository) => repository.host).join(',');
}

/** Why nothing of a blob is served: what its registries give is known to be something else. */
function condemnationOf(blob: BlobFetches): AppError | undefined {
  if (!blob.isCondemned) return undefined;
  const what = 'fetched as a whole twice, its bytes never had this digest';
  return new AppError('DataLoss', { op: 'fetch', subject: blob.handle.source.digest, what });
}

function canceled(handle: BlobHandle, cause?: unknown): AppError {
  return new AppError('Canceled', { op: 'fetch', subject: handle.source.digest, what: 'nobody waits for it any more', cause });
}
