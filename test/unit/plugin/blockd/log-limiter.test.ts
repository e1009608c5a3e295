import { describe, expect, it } from 'vitest';
import type { Clock } from '../../../../plugin/base/clock.ts';
import type { Logger } from '../../../../plugin/base/log.ts';
import { LogLimiter } from '../../../../plugin/blockd/log-limiter.ts';

describe('LogLimiter', () => {
  it('lets so many lines of a minute through and tells in the next one how many it left out', () => {
    let nowMs = 0;
    const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: () => Promise.resolve() };
    const lines: string[] = [];
    const record = (facts: { leftOut?: number }, message: string): void => {
      lines.push(facts.leftOut === undefined ? message : `left out ${facts.leftOut}`);
    };
    const limiter = new LogLimiter({ warn: record, error: record } as unknown as Logger, clock, 2);
    for (const line of ['a', 'b', 'c', 'd']) limiter.write('error', { device: 'x' }, line);
    expect(lines).toEqual(['a', 'b']);
    nowMs = 60_000;
    limiter.write('warn', { device: 'x' }, 'e');
    expect(lines).toEqual(['a', 'b', 'left out 2', 'e']);
  });
});
