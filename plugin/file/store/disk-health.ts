/**
 * Whether fetched bytes can be kept: `ok` ⇄ `degraded`. Degraded by a system error, the disk is left alone for a while and then tried
 * again; degraded by the budget, each reservation asks anew. Events tell of the changes, at most one a minute while it flaps.
 */
import type { Clock } from '../../base/clock.ts';
import { describeError, errnoOf } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { StoreEvent } from './store-event.ts';

/** A failing disk is tried this often: often enough that recovery is noticed, rarely enough to cost nothing. */
const PROBE_MS = 5_000;
const EVENT_GAP_MS = 60_000;

export class DiskHealth {
  private readonly clock: Clock;
  private readonly log: Logger;
  private readonly onEvent: (event: StoreEvent) => void;
  private reason: string | undefined;
  private probeAtMs = 0;
  private toldAtMs = Number.NEGATIVE_INFINITY;
  private toldReason: string | undefined;

  constructor(clock: Clock, log: Logger, onEvent: (event: StoreEvent) => void) {
    this.clock = clock;
    this.log = log;
    this.onEvent = onEvent;
  }

  /** The reason why bytes are not kept, or undefined while they are. */
  get degradedBy(): string | undefined {
    return this.reason;
  }

  /** False while the disk has failed a moment ago and is not to be tried. */
  mayTry(): boolean {
    return this.clock.monotonicMs() >= this.probeAtMs;
  }

  /** The budget is spent and nothing may be evicted. */
  outOfBudget(detail: string): void {
    this.degrade('budget', detail);
  }

  /** The disk refused: full, over quota, broken or read-only. A file too large for it is that file's matter alone. */
  diskFailed(error: unknown, doing: string): void {
    if (errnoOf(error) === 'EFBIG') {
      this.log.warn({ err: error, doing }, 'a blob is too large for the file system and lives in memory');
      return;
    }
    this.probeAtMs = this.clock.monotonicMs() + PROBE_MS;
    this.degrade(errnoOf(error) ?? 'error', `${doing}: ${describeError(error)}`);
  }

  /** Bytes were kept. */
  succeeded(): void {
    if (this.reason === undefined) return;
    this.reason = undefined;
    this.probeAtMs = 0;
    if (this.toldReason === undefined) return;
    this.toldReason = undefined;
    this.log.info('the store keeps fetched bytes again');
    this.onEvent({ kind: 'store-recovered' });
  }

  private degrade(reason: string, detail: string): void {
    this.reason = reason;
    const nowMs = this.clock.monotonicMs();
    // What happens within the gap is told with the first failure after it.
    if (this.toldReason === reason || nowMs - this.toldAtMs < EVENT_GAP_MS) return;
    this.toldAtMs = nowMs;
    this.toldReason = reason;
    this.log.warn({ reason, detail }, 'the store cannot keep fetched bytes; reads go on from the network');
    this.onEvent({ kind: 'store-degraded', reason, detail });
  }
}
