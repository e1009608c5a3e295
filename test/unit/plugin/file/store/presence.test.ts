/** Counting flags: right for every size, and quick enough for the event loop when a hostile blob has the most units. */
import { expect, test } from 'vitest';
import { MAX_BLOB_BYTES } from '../../../../../plugin/base/limits.ts';
import { Presence, UNIT_ACCESSED, UNIT_MARKED, UNIT_PRESENT } from '../../../../../plugin/file/store/presence.ts';
import { UNIT } from './store-support.ts';

test('counts the units that have a flag, whatever other flags they have', () => {
  for (const units of [0, 1, 3, 4, 5, 4095]) {
    const presence = Presence.create(units * UNIT);
    let expected = 0;
    for (let unit = 0; unit < units; unit += 1) {
      presence.set(unit, unit % 2 === 0 ? UNIT_PRESENT : UNIT_MARKED);
      if (unit % 3 !== 0) continue;
      presence.set(unit, UNIT_ACCESSED);
      expected += 1;
    }
    expect([units, presence.count(UNIT_ACCESSED)]).toEqual([units, expected]);
  }
});

test('counts the largest blob in a part of the silence after which the keeper replaces the process', () => {
  const presence = Presence.create(MAX_BLOB_BYTES);
  presence.count(UNIT_ACCESSED);
  // Of this thread alone: other processes may have the cores.
  const before = process.threadCpuUsage();
  expect(presence.count(UNIT_ACCESSED)).toBe(0);
  const { user, system } = process.threadCpuUsage(before);
  expect((user + system) / 1000).toBeLessThan(1000);
});
