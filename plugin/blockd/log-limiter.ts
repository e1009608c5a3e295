/** Keeps one bad device from filling the journal: so many lines a minute, then a count of what was left out. */
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';

const MINUTE_MS = 60_000;

export class LogLimiter {
  private readonly log: Logger;
  private readonly clock: Clock;
  private readonly linesPerMinute: number;
  private windowFromMs = Number.NEGATIVE_INFINITY;
  private lines = 0;
  private leftOut = 0;

  constructor(log: Logger, clock: Clock, linesPerMinute: number) {
    this.log = log;
    this.clock = clock;
    this.linesPerMinute = linesPerMinute;
  }

  /** Logs the line, or counts it; the count is told with the first line of the next minute. */
  write(level: 'warn' | 'error', facts: Readonly<Record<string, unknown>>, message: string): void {
    const nowMs = this.clock.monotonicMs();
    if (nowMs - this.windowFromMs >= MINUTE_MS) {
      if (this.leftOut > 0) this.log.warn({ ...facts, leftOut: this.leftOut }, 'lines of this device were left out in the last minute');
      this.windowFromMs = nowMs;
      this.lines = 0;
      this.leftOut = 0;
    }
    if (this.lines >= this.linesPerMinute) {
      this.leftOut += 1;
      return;
    }
    this.lines += 1;
    this.log[level](facts, message);
  }
}
