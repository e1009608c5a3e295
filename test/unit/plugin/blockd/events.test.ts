import { expect, test } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { EventRing } from '../../../../plugin/blockd/events.ts';

test('events are numbered and bounded, and many of one kind about one device leave those about others', () => {
  const ring = new EventRing(systemClock);
  ring.add({ severity: 'warning', kind: 'store-degraded', subject: 'store', message: 'no space' });
  for (let i = 0; i < 1000; i += 1) ring.add({ severity: 'error', kind: 'device.read-failed', subject: 'bad', message: `read ${i}` });
  const events = ring.since(0);
  expect(events).toHaveLength(21);
  expect(events[0]!.kind).toBe('store-degraded');
  expect(events.at(-1)).toMatchObject({ sequence: 1001, message: 'read 999' });
  for (let i = 0; i < 1000; i += 1) ring.add({ severity: 'info', kind: 'fetch-waiting', subject: `blob ${i}`, message: '' });
  expect(ring.since(0)).toHaveLength(500);
  expect(ring.since(2000)).toHaveLength(1);
});
