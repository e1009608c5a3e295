/**
 * Carries fetches out: starts what the queue gives, stores what comes, retries what fails, gives up when patience is spent, and notices
 * requests that are stuck.
 *
 *   queued ──► running ──► stored: waiters resolve
 *     ▲           ├─ failed, a reader waits, patience left: blob pauses (100 ms … 1 s) ──► queued
 *     └───────────┴─ else: waiters reject
 */
import assert from 'node:assert/strict';
import { setMaxListeners } from 'node:events';
import type { Clock } from '../../base/clock.ts';
import { AppError, describeError, isAppError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { LogRepeater } from '../../base/log-repeater.ts';
import type { ChunkStore } from '../../file/store/chunk-store.ts';
import type { BlobFetches } from './blob-fetches.ts';
import { BufferPool } from './buffer-pool.ts';
import type { Fetch, Waiter } from './fetch.ts';
import type { FetchQueue, HostGroup } from './fetch-queue.ts';
import { FetchCounters, LatencyHistogram } from './fetch-stats.ts';
import type { FetchEvent, FetchRange } from './fetch-types.ts';
import { backoffMs, patienceFor } from './retry-policy.ts';
import { firstToAnswer } from './side-request.ts';

export interface RunnerOptions {
  store: ChunkStore;
  fetchRange: FetchRange;
  clock: Clock;
  log: Logger;
  onEvent: (event: FetchEvent) => void;
  patienceMs: number;
  random: () => number;
  /** Called after each stored fetch. */
  onStored: (blob: BlobFetches) => void;
}

const TICK_MS = 500;
/** A request without a byte for so long is taken for stuck and made again; doubles with each attempt, for links that are just slow. */
const IDLE_MS = 10_000;
const IDLE_MAX_MS = 60_000;
/** No request for 1 MiB lasts longer: 70 kbit/s. */
const ATTEMPT_MAX_MS = 120_000;
/** When nothing has come from a registry for so long although readers wait, a side request asks whether it is back. */
const SILENCE_MS = 1_500;
/** That request's life; with the tick, a registry that returns is noticed within 2 s even if the old connections hang. */
const PROBE_MS = 1_000;
const FAILED_EVENT_GAP_MS = 10_000;

export class FetchRunner {
  readonly counters = new FetchCounters();
  readonly latency = new LatencyHistogram();
  private readonly options: RunnerOptions;
  private readonly queue: FetchQueue;
  /** A registry that comes and goes, or a mirror that lies, does so for every blob. */
  private readonly log: LogRepeater;
  private readonly buffers = new BufferPool();
  /** Oldest start first. */
  private readonly running = new Set<Fetch>();
  /** Everything under way that close() waits for. */
  private readonly work = new Set<Promise<void>>();
  private readonly waitingBlobs = new Set<BlobFetches>();
  private readonly stop = new AbortController();
  private readonly quiet = new Set<AbortController>();
  private isTicking = false;

  constructor(options: RunnerOptions, queue: FetchQueue) {
    this.options = options;
    this.queue = queue;
    this.log = new LogRepeater(options.log, options.clock);
    setMaxListeners(0, this.stop.signal);
  }

  /** Starts what may start now. */
  dispatch(): void {
    if (this.stop.signal.aborted) return;
    for (let fetch = this.queue.take(); fetch !== undefined; fetch = this.queue.take()) this.track(this.run(fetch));
    if (!this.isTicking && (this.running.size > 0 || this.waitingBlobs.size > 0)) this.track(this.tickWhileNeeded());
  }

  /** Lets close() wait for `promise`, which must not reject but for a broken invariant. */
  track(promise: Promise<void>): void {
    this.work.add(promise);
    promise.finally(() => this.work.delete(promise));
  }

  private async run(fetch: Fetch): Promise<void> {
    this.running.add(fetch);
    let failure: AppError | undefined;
    try {
      await this.fetchAndStore(fetch);
    } catch (error) {
      failure = toAppError(error, fetch);
    }
    this.running.delete(fetch);
    this.queue.end(fetch);
    if (failure === undefined) this.succeeded(fetch);
    else this.failed(fetch, failure);
    if (this.queue.inFlight.demand === 0) for (const waiting of this.quiet) waiting.abort();
    this.dispatch();
  }

  private async fetchAndStore(fetch: Fetch): Promise<void> {
    const { store } = this.options;
    const { blob, lengthBytes } = fetch;
    const reservation = await store.reserve(lengthBytes);
    try {
      if (reservation === undefined && fetch.priority === 'fill') {
        throw fetchError('ResourceExhausted', fetch, 'the store has no room, and only readers are worth memory');
      }
      const target = this.buffers.take(lengthBytes);
      const bytes = await this.request(fetch, target);
      if (blob.isGone) throw fetchError('Canceled', fetch, 'nobody reads the blob any more');
      if (bytes.length !== lengthBytes) throw fetchError('DataLoss', fetch, `${bytes.length} bytes came instead of ${lengthBytes}`);
      this.counters.addBytes(fetch.startedAs, lengthBytes);
      blob.counters.addBytes(fetch.startedAs, lengthBytes);
      await store.write(blob.handle, fetch.offsetBytes, bytes, reservation);
      // After a failure a body may still come in, so only buffers of good fetches are used again.
      if (bytes === target) this.buffers.give(target);
    } finally {
      reservation?.release();
    }
  }

  /** The request itself; settles at once when it is aborted, whatever fetchRange does. */
  private request(fetch: Fetch, target: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
    const { blob } = fetch;
    const nowMs = this.options.clock.monotonicMs();
    const controller = new AbortController();
    fetch.attempt += 1;
    fetch.startedAtMs = nowMs;
    fetch.progressAtMs = nowMs;
    fetch.asked = undefined;
    fetch.sentBy = undefined;
    for (const counters of [this.counters, blob.counters]) {
      counters.requests += 1;
      if (fetch.attempt > 1) counters.retries += 1;
    }
    return new Promise((resolve, reject) => {
      fetch.abort = (reason) => {
        controller.abort(reason);
        reject(reason);
      };
      if (blob.isGone || this.stop.signal.aborted) {
        reject(fetchError('Canceled', fetch, 'nobody reads the blob any more'));
        return;
      }
      const onProgress = (): void => {
        fetch.progressAtMs = this.options.clock.monotonicMs();
        blob.group.progressAtMs = fetch.progressAtMs;
      };
      const onAsked = (mirror: string): void => {
        fetch.asked = mirror;
      };
      const servedBy = (mirror: string): void => {
        fetch.sentBy = mirror;
        blob.lastMirror = mirror;
        blob.mirrors.set(fetch.firstUnit, fetch.endUnit, mirror);
      };
      const { signal } = controller;
      const options = { signal, attempt: fetch.attempt, avoidMirrors: fetch.avoidMirrors, onAsked, servedBy, onProgress, target };
      this.options.fetchRange(blob.source, fetch.offsetBytes, fetch.lengthBytes, options).then(resolve, reject);
    });
  }

  private succeeded(fetch: Fetch): void {
    const { blob } = fetch;
    blob.group.progressAtMs = this.options.clock.monotonicMs();
    if (blob.failures > 0) this.recovered(blob);
    this.forget(fetch);
    for (const waiter of fetch.waiters) {
      waiter.fetches.delete(fetch);
      if (waiter.fetches.size > 0) continue;
      if (waiter.priority === 'demand') this.latency.add(this.options.clock.monotonicMs() - waiter.askedAtMs);
      waiter.resolve();
    }
    fetch.waiters.clear();
    this.options.onStored(blob);
  }

  private forget(fetch: Fetch): void {
    for (let unit = fetch.firstUnit; unit < fetch.endUnit; unit += 1) {
      if (fetch.blob.units.get(unit) === fetch) fetch.blob.units.delete(unit);
    }
  }

  private failed(fetch: Fetch, error: AppError): void {
    const { blob } = fetch;
    if (blob.isGone || this.stop.signal.aborted || fetch.waiters.size === 0 || fetch.priority !== 'demand') {
      this.reject(fetch, error);
      return;
    }
    if (error.details.isRestart === true) {
      this.requeue(fetch);
    } else if (error.code === 'DataLoss' && !fetch.hasLostData) {
      fetch.hasLostData = true;
      const mirror = typeof error.details.mirror === 'string' ? error.details.mirror : fetch.sentBy;
      if (mirror !== undefined) fetch.avoidMirrors = [...fetch.avoidMirrors, mirror];
      this.log.write('warn', { digest: blob.handle.source.digest, err: error }, 'wrong bytes fetched; another mirror is asked');
      this.requeue(fetch);
    } else if (this.patienceLeftMs(fetch, error) > 0) {
      this.pause(blob, error);
      this.requeue(fetch);
    } else {
      this.giveUp(fetch, error);
    }
  }

  private requeue(fetch: Fetch): void {
    fetch.state = 'queued';
    this.queue.push(fetch);
  }

  private patienceLeftMs(fetch: Fetch, error: AppError): number {
    return fetch.demandedAtMs + patienceFor(error, this.options.patienceMs) - this.options.clock.monotonicMs();
  }

  /** The blob's requests pause; the first failure of a row is told. */
  private pause(blob: BlobFetches, error: AppError): void {
    const { clock } = this.options;
    blob.failures += 1;
    blob.lastError = error;
    if (blob.failures === 1) {
      blob.failingSinceMs = clock.monotonicMs();
      this.waitingBlobs.add(blob);
      const digest = blob.handle.source.digest;
      this.log.write('warn', { digest, err: error }, 'a blob cannot be fetched; its readers wait');
      this.options.onEvent({ kind: 'fetch-waiting', digest, code: error.code, detail: describeError(error) });
    }
    if (blob.isParked) return;
    blob.isParked = true;
    this.queue.refresh(blob);
    this.track(this.unparkAfter(blob, backoffMs(blob.failures, error, this.options.random())));
  }

  private async unparkAfter(blob: BlobFetches, delayMs: number): Promise<void> {
    if (!(await this.sleep(delayMs, blob.gone.signal))) return;
    blob.isParked = false;
    this.queue.refresh(blob);
    this.dispatch();
  }

  /** True after the time, false if the signal came first. */
  async sleep(delayMs: number, signal: AbortSignal): Promise<boolean> {
    try {
      await this.options.clock.sleep(delayMs, signal);
      return true;
    } catch (reason) {
      assert(signal.aborted, String(reason));
      return false;
    }
  }

  private recovered(blob: BlobFetches): void {
    const waitedMs = this.options.clock.monotonicMs() - blob.failingSinceMs;
    blob.failures = 0;
    blob.lastError = undefined;
    this.waitingBlobs.delete(blob);
    this.queue.refresh(blob);
    this.log.write('info', { digest: blob.handle.source.digest, waitedMs }, 'a blob can be fetched again');
    this.options.onEvent({ kind: 'fetch-resumed', digest: blob.handle.source.digest, waitedMs });
  }

  private giveUp(fetch: Fetch, error: AppError): void {
    const { blob } = fetch;
    const { clock, onEvent } = this.options;
    for (const counters of [this.counters, blob.counters]) counters.failures += 1;
    const nowMs = clock.monotonicMs();
    if (nowMs - blob.failedToldAtMs >= FAILED_EVENT_GAP_MS) {
      blob.failedToldAtMs = nowMs;
      const digest = blob.handle.source.digest;
      this.log.write('error', { digest, offset: fetch.offsetBytes, length: fetch.lengthBytes, err: error }, 'a read is given up');
      onEvent({ kind: 'fetch-failed', digest, code: error.code, detail: describeError(error) });
    }
    this.reject(fetch, error);
  }

  private reject(fetch: Fetch, error: AppError): void {
    fetch.state = 'done';
    this.forget(fetch);
    for (const waiter of [...fetch.waiters]) {
      this.leave(waiter);
      waiter.reject(error);
    }
  }

  /** A waiter goes, answered or aborted; what waits for nobody else is not started. */
  leave(waiter: Waiter): void {
    for (const fetch of waiter.fetches) {
      fetch.waiters.delete(waiter);
      if (fetch.waiters.size > 0 || fetch.state !== 'queued' || fetch.priority === 'prefetch') continue;
      this.queue.discard(fetch);
      this.forget(fetch);
    }
    waiter.fetches.clear();
  }

  /** Ends everything of a blob: its last reader has gone. */
  abandon(blob: BlobFetches): void {
    blob.gone.abort();
    this.waitingBlobs.delete(blob);
    for (const fetch of new Set(blob.units.values())) {
      const error = fetchError('Canceled', fetch, 'nobody reads the blob any more');
      if (fetch.state === 'running') {
        fetch.abort?.(error);
        continue;
      }
      this.queue.discard(fetch);
      this.reject(fetch, error);
    }
  }

  private async tickWhileNeeded(): Promise<void> {
    this.isTicking = true;
    while ((this.running.size > 0 || this.waitingBlobs.size > 0) && (await this.sleep(TICK_MS, this.stop.signal))) this.tick();
    this.isTicking = false;
  }

  private tick(): void {
    const nowMs = this.options.clock.monotonicMs();
    for (const fetch of this.running) {
      if (nowMs - fetch.startedAtMs < SILENCE_MS) break;
      const idleMs = Math.min(IDLE_MAX_MS, IDLE_MS * 2 ** (fetch.attempt - 1));
      if (nowMs - fetch.progressAtMs >= idleMs || nowMs - fetch.startedAtMs >= ATTEMPT_MAX_MS) {
        fetch.abort?.(fetchError('DeadlineExceeded', fetch, `no answer within ${nowMs - fetch.startedAtMs} ms`));
      } else if (fetch.priority === 'demand' && nowMs - fetch.blob.group.progressAtMs >= SILENCE_MS) {
        this.probe(fetch.blob.group, fetch, nowMs);
      }
    }
    for (const blob of this.waitingBlobs) this.expire(blob);
  }

  /** Gives up waiting demands whose patience is spent. */
  private expire(blob: BlobFetches): void {
    const error = blob.lastError;
    assert(error !== undefined);
    for (const fetch of [...blob.lines.demand]) {
      if (fetch.state !== 'queued' || fetch.priority !== 'demand' || this.patienceLeftMs(fetch, error) > 0) continue;
      this.queue.discard(fetch);
      this.giveUp(fetch, error);
    }
    if (blob.inFlight > 0 || [...blob.units.values()].some((fetch) => fetch.priority === 'demand')) return;
    // Nobody waits any more: the next reader starts afresh.
    blob.failures = 0;
    blob.lastError = undefined;
    this.waitingBlobs.delete(blob);
    this.queue.refresh(blob);
  }

  /** Asks a silent registry for one unit, beside the requests that hang; when it answers, those are made again. */
  private probe(group: HostGroup, fetch: Fetch, nowMs: number): void {
    if (group.probe !== undefined && nowMs - group.probeAtMs < PROBE_MS) return;
    group.probe?.abort();
    const probe = new AbortController();
    group.probe = probe;
    group.probeAtMs = nowMs;
    this.track(this.runProbe(group, fetch, probe));
  }

  private async runProbe(group: HostGroup, fetch: Fetch, probe: AbortController): Promise<void> {
    const signal = AbortSignal.any([probe.signal, fetch.blob.gone.signal, this.stop.signal]);
    let mirror: string | undefined;
    try {
      mirror = await firstToAnswer(this.options.fetchRange, fetch, signal);
    } catch (error) {
      this.options.log.debug({ err: error }, 'a silent registry is still silent');
      return;
    } finally {
      if (group.probe === probe) group.probe = undefined;
    }
    const nowMs = this.options.clock.monotonicMs();
    group.progressAtMs = nowMs;
    for (const other of this.running) {
      if (other.blob.group !== group || nowMs - other.progressAtMs < SILENCE_MS) continue;
      // DeadlineExceeded: the mirror is to blame, and is passed over.
      const code = mirror === undefined || other.asked === undefined || other.asked === mirror ? 'Unavailable' : 'DeadlineExceeded';
      other.abort?.(fetchError(code, other, 'made again: the registry answers other requests', { isRestart: true }));
    }
  }

  /** Resolves when no demand is in flight, or after `maxMs`. */
  async whenQuiet(maxMs: number, signal: AbortSignal): Promise<void> {
    if (this.queue.inFlight.demand === 0) return;
    const done = new AbortController();
    this.quiet.add(done);
    await this.sleep(maxMs, AbortSignal.any([done.signal, signal]));
    this.quiet.delete(done);
  }

  /** Ends everything and waits for what is under way. */
  async close(blobs: Iterable<BlobFetches>): Promise<void> {
    this.stop.abort();
    for (const blob of blobs) this.abandon(blob);
    while (this.work.size > 0) await Promise.all(this.work);
  }
}

/** An error about one fetch. */
export function fetchError(
  code: 'Canceled' | 'DataLoss' | 'DeadlineExceeded' | 'ResourceExhausted' | 'Unavailable',
  fetch: Fetch,
  what: string,
  details: Record<string, boolean> = {},
): AppError {
  const subject = `${fetch.blob.handle.source.digest} [${fetch.offsetBytes}, +${fetch.lengthBytes})`;
  return new AppError(code, { op: 'fetch', subject, what, details });
}

/** Anything thrown on the way, in the product's words; an assertion stays what it is and ends the process. */
function toAppError(error: unknown, fetch: Fetch): AppError {
  if (isAppError(error)) return error;
  if (error instanceof assert.AssertionError) throw error;
  const subject = `${fetch.blob.handle.source.digest} [${fetch.offsetBytes}, +${fetch.lengthBytes})`;
  return new AppError('Internal', { op: 'fetch', subject, what: describeError(error), cause: error });
}
