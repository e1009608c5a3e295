import { expect, test } from 'vitest';
import { systemClock } from '../../../../../plugin/base/clock.ts';
import { silentLogger } from '../../../../../plugin/base/log.ts';
import { DiskHealth } from '../../../../../plugin/file/store/disk-health.ts';

test('each change is told, at most one a minute, and what came within that minute with the first failure after it', () => {
  let nowMs = 1_000_000;
  const told: string[] = [];
  const health = new DiskHealth({ ...systemClock, monotonicMs: () => nowMs }, silentLogger, (event) => {
    told.push('reason' in event ? event.reason : event.kind);
  });
  const full = Object.assign(new Error('no space'), { code: 'ENOSPC' });
  health.outOfBudget('spent');
  health.outOfBudget('spent');
  health.succeeded();
  expect(told).toEqual(['budget', 'store-recovered']);
  nowMs += 30_000;
  health.diskFailed(full, 'write');
  expect(health.degradedBy).toBe('ENOSPC');
  expect(told).toHaveLength(2);
  nowMs += 31_000;
  health.diskFailed(full, 'write');
  health.diskFailed(full, 'write');
  expect(told).toEqual(['budget', 'store-recovered', 'ENOSPC']);
  health.succeeded();
  expect(told.at(-1)).toBe('store-recovered');
});
