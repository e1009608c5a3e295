/**
 * Keeps what happens over and over from filling the journal: of each kind of line one a minute, with the number of those that were left
 * out since the one before. The kind is the message, so messages are literals and facts are in the object. Ours.
 */
import type { Clock } from './clock.ts';
import type { Logger } from './log.ts';

const MINUTE_MS = 60_000;

interface Kind {
  toldAtMs: number;
  leftOut: number;
}

export class LogRepeater {
  private readonly log: Logger;
  private readonly clock: Clock;
  /** As many as there are messages in the code that writes here. */
  private readonly kinds = new Map<string, Kind>();

  constructor(log: Logger, clock: Clock) {
    this.log = log;
    this.clock = clock;
  }

  /** Logs the line, or counts it: the next one of its kind that is logged says how many were left out before it, as `leftOut`. */
  write(level: 'info' | 'warn' | 'error', facts: Readonly<Record<string, unknown>>, message: string): void {
    const nowMs = this.clock.monotonicMs();
    const known = this.kinds.get(message);
    if (known !== undefined && nowMs - known.toldAtMs < MINUTE_MS) {
      known.leftOut += 1;
      return;
    }
    this.kinds.set(message, { toldAtMs: nowMs, leftOut: 0 });
    this.log[level](known === undefined || known.leftOut === 0 ? facts : { ...facts, leftOut: known.leftOut }, message);
  }
}
