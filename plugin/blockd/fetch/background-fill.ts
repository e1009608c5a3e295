/**
 * Brings the rest of each attached blob, one request at a time: after a delay, within a rate, and giving way to readers. A blob that
 * fails, or of which something did not come, goes to the end of the line after a pause that doubles.
 */
import type { Clock } from '../../base/clock.ts';
import { isAppError } from '../../base/errors.ts';
import { FETCH_STREAM_BYTES, FETCH_UNIT_BYTES } from '../../base/limits.ts';
import type { BlobFetches } from './blob-fetches.ts';
import type { FillOptions } from './fetch-types.ts';

export interface FillParts {
  clock: Clock;
  /** Fetches a range at fill priority. */
  bring: (blob: BlobFetches, offsetBytes: number, lengthBytes: number, signal: AbortSignal) => Promise<void>;
  /** Resolves when no reader waits, or after `maxMs`. */
  whenQuiet: (maxMs: number, signal: AbortSignal) => Promise<void>;
  /** True after the time, false if the signal came first. */
  sleep: (delayMs: number, signal: AbortSignal) => Promise<boolean>;
}

interface Entry {
  blob: BlobFetches;
  dueMs: number;
  nextUnit: number;
  failures: number;
}

/** Readers hold a step back this long at most: a node that always reads still completes its blobs. */
const GIVE_WAY_MS = 1_000;
const PAUSE_FIRST_MS = 10_000;
const PAUSE_MAX_MS = 5 * 60_000;

export class BackgroundFill {
  private readonly options: FillOptions;
  private readonly parts: FillParts;
  private readonly entries = new Set<Entry>();
  private readonly signal: AbortSignal;
  private isRunning = false;
  private rateAtMs = 0;

  constructor(options: FillOptions, parts: FillParts, signal: AbortSignal) {
    this.options = options;
    this.parts = parts;
    this.signal = signal;
  }

  /** Puts a blob in the line. The promise (if any) is the filling loop, which must be tracked; it ends when the line is empty. */
  add(blob: BlobFetches): Promise<void> | undefined {
    for (const entry of this.entries) if (entry.blob === blob) return undefined;
    this.entries.add({ blob, dueMs: this.parts.clock.monotonicMs() + this.options.delayMs, nextUnit: 0, failures: 0 });
    if (this.isRunning) return undefined;
    this.isRunning = true;
    return this.work();
  }

  private async work(): Promise<void> {
    for (let entry = this.next(); entry !== undefined && !this.signal.aborted; entry = this.next()) {
      const waitMs = entry.dueMs - this.parts.clock.monotonicMs();
      // A blob attached meanwhile may be due earlier: sleep in short pieces.
      if (waitMs > 0) await this.parts.sleep(Math.min(waitMs, GIVE_WAY_MS), this.signal);
      else await this.step(entry);
    }
    this.isRunning = false;
  }

  /** The entry that is due first, among those whose blob is still read; the others leave. */
  private next(): Entry | undefined {
    let best: Entry | undefined;
    for (const entry of this.entries) {
      if (entry.blob.isGone || entry.blob.isCorrupt) this.entries.delete(entry);
      else if (best === undefined || entry.dueMs < best.dueMs) best = entry;
    }
    return best;
  }

  private async step(entry: Entry): Promise<void> {
    const { blob } = entry;
    const { unitCount } = blob.handle;
    let first = entry.nextUnit;
    while (first < unitCount && isComing(blob, first)) first += 1;
    let end = first;
    const endMax = Math.min(unitCount, first + FETCH_STREAM_BYTES / FETCH_UNIT_BYTES);
    while (end < endMax && !isComing(blob, end)) end += 1;
    if (first === unitCount) {
      this.endPass(entry);
      return;
    }
    await this.parts.whenQuiet(GIVE_WAY_MS, this.signal);
    const offsetBytes = first * FETCH_UNIT_BYTES;
    const lengthBytes = Math.min(end * FETCH_UNIT_BYTES, blob.handle.sizeBytes) - offsetBytes;
    try {
      await this.parts.bring(blob, offsetBytes, lengthBytes, this.signal);
      entry.nextUnit = end;
      entry.failures = 0;
      await this.payFor(lengthBytes);
    } catch (error) {
      if (!isAppError(error)) throw error;
      this.postpone(entry, error.retryAfterMs);
    }
  }

  /** What others were bringing may not have come, or not to the disk: it is looked for again. */
  private endPass(entry: Entry): void {
    entry.nextUnit = 0;
    if (entry.blob.handle.isComplete) this.entries.delete(entry);
    else this.postpone(entry);
  }

  private async payFor(lengthBytes: number): Promise<void> {
    if (this.options.rateBytesPerS === 0) return;
    const nowMs = this.parts.clock.monotonicMs();
    this.rateAtMs = Math.max(this.rateAtMs, nowMs) + (lengthBytes * 1000) / this.options.rateBytesPerS;
    await this.parts.sleep(this.rateAtMs - nowMs, this.signal);
  }

  private postpone(entry: Entry, askedMs = 0): void {
    entry.failures += 1;
    const pauseMs = Math.min(PAUSE_MAX_MS, PAUSE_FIRST_MS * 2 ** Math.min(entry.failures - 1, 10));
    entry.dueMs = this.parts.clock.monotonicMs() + Math.max(pauseMs, Math.min(askedMs, PAUSE_MAX_MS));
  }
}

/** Here, or on its way. */
function isComing(blob: BlobFetches, unit: number): boolean {
  return blob.handle.isReadable(unit) || blob.units.has(unit);
}
