/** A clock that tests move and a registry that tests break, for the fetch scheduler. */
import type { Clock } from '../../../../../plugin/base/clock.ts';
import type { FetchOptions, FetchRange } from '../../../../../plugin/blockd/fetch/fetch-types.ts';
import type { BlobSource } from '../../../../../plugin/file/device-spec.ts';

/** Stands still until {@link FakeClock.advance}. */
export class FakeClock implements Clock {
  private time = 1_000_000;
  private readonly sleepers = new Set<{ atMs: number; wake: () => void }>();

  nowMs(): number {
    return this.time;
  }

  monotonicMs(): number {
    return this.time;
  }

  sleep(delayMs: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        reject(signal.reason);
        return;
      }
      const onAbort = (): void => {
        this.sleepers.delete(sleeper);
        reject(signal?.reason);
      };
      const sleeper = {
        atMs: this.time + delayMs,
        wake: () => {
          this.sleepers.delete(sleeper);
          signal?.removeEventListener('abort', onAbort);
          resolve();
        },
      };
      this.sleepers.add(sleeper);
      signal?.addEventListener('abort', onAbort, { once: true });
    });
  }

  advance(ms: number): void {
    this.time += ms;
    for (const sleeper of [...this.sleepers]) if (sleeper.atMs <= this.time) sleeper.wake();
  }
}

/** Lets promises and finished file operations run. */
export async function settle(turns = 5): Promise<void> {
  for (let turn = 0; turn < turns; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** File operations under way: they take real time, in which the fake clock must stand still. */
function isBusy(): boolean {
  return process.getActiveResourcesInfo().some((name) => name === 'FSReqCallback');
}

/** Lets everything that needs no clock run to its end: done when three turns of the event loop find nothing under way. */
export async function settleAll(): Promise<void> {
  for (let calm = 0; calm < 3; calm = isBusy() ? 0 : calm + 1) await settle(2);
}

/** Moves the clock in small steps until `isDone`; throws after `maxMs` of its time. Returns the time that passed. */
export async function runUntil(clock: FakeClock, isDone: () => boolean, maxMs: number, stepMs = 50): Promise<number> {
  const startMs = clock.monotonicMs();
  for (;;) {
    await settleAll();
    const passedMs = clock.monotonicMs() - startMs;
    if (isDone()) return passedMs;
    if (passedMs > maxMs) throw new Error(`not done after ${passedMs} ms`);
    clock.advance(stepMs);
  }
}

/** The outcome of a promise, for {@link runUntil}. */
export function watch<T>(promise: Promise<T>): { isDone: boolean; value?: T; error?: unknown } {
  const outcome: { isDone: boolean; value?: T; error?: unknown } = { isDone: false };
  promise.then(
    (value) => Object.assign(outcome, { isDone: true, value }),
    (error: unknown) => Object.assign(outcome, { isDone: true, error }),
  );
  return outcome;
}

export interface SeenRequest {
  digest: string;
  offsetBytes: number;
  lengthBytes: number;
  attempt: number;
  avoidMirrors: readonly string[];
}

/** What a test decides about one request: bytes as they are, other bytes, an error, or (undefined) no answer until aborted. */
export type Answer = (request: SeenRequest, bytes: Uint8Array) => Promise<Uint8Array> | Uint8Array | undefined;

export class FakeRegistry {
  readonly requests: SeenRequest[] = [];
  running = 0;
  mostRunning = 0;
  answer: Answer = (_, bytes) => bytes;
  private readonly contents = new Map<string, Uint8Array>();

  add(source: BlobSource, bytes: Uint8Array): void {
    this.contents.set(source.digest, bytes);
  }

  readonly fetchRange: FetchRange = async (source, offsetBytes, lengthBytes, options) => {
    const request: SeenRequest = {
      digest: source.digest,
      offsetBytes,
      lengthBytes,
      attempt: options.attempt,
      avoidMirrors: options.avoidMirrors ?? [],
    };
    this.requests.push(request);
    this.running += 1;
    this.mostRunning = Math.max(this.mostRunning, this.running);
    try {
      const mirrors = source.repositories.map((repository) => repository.host);
      const mirror = mirrors.find((host) => !request.avoidMirrors.includes(host)) ?? mirrors[0]!;
      options.servedBy(mirror);
      const bytes = this.contents.get(source.digest)!.slice(offsetBytes, offsetBytes + lengthBytes);
      return await (this.answer(request, bytes) ?? untilAborted(options));
    } finally {
      this.running -= 1;
    }
  };
}

function untilAborted(options: FetchOptions): Promise<Uint8Array> {
  return new Promise((_, reject) => options.signal.addEventListener('abort', () => reject(options.signal.reason), { once: true }));
}
