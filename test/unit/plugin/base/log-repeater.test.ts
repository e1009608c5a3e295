/** The log of what repeats itself: one line a minute and kind, and nothing left out without being counted. */
import { expect, test } from 'vitest';
import { type Clock, systemClock } from '../../../../plugin/base/clock.ts';
import type { Logger } from '../../../../plugin/base/log.ts';
import { LogRepeater } from '../../../../plugin/base/log-repeater.ts';

test('of each kind one line a minute is logged, and the next says how many were left out', () => {
  let nowMs = 5;
  const clock: Clock = { ...systemClock, monotonicMs: () => nowMs };
  const lines: unknown[] = [];
  const at = (level: string) => (facts: object, message: string) => lines.push([level, facts, message]);
  const log = new LogRepeater({ info: at('info'), warn: at('warn'), error: at('error') } as unknown as Logger, clock);
  for (let i = 0; i < 1000; i += 1) log.write('warn', { digest: i }, 'it fails');
  log.write('info', { digest: 1 }, 'it works');
  expect(lines).toEqual([
    ['warn', { digest: 0 }, 'it fails'],
    ['info', { digest: 1 }, 'it works'],
  ]);
  nowMs += 59_999;
  log.write('warn', { digest: 7 }, 'it fails');
  expect(lines).toHaveLength(2);
  nowMs += 1;
  for (const digest of [8, 9]) log.write('error', { digest }, 'it fails');
  nowMs += 60_000;
  log.write('info', { digest: 1 }, 'it works');
  expect(lines.slice(2)).toEqual([
    ['error', { digest: 8, leftOut: 1000 }, 'it fails'],
    ['info', { digest: 1 }, 'it works'],
  ]);
});
