import { join } from 'node:path';
import { expect, test } from 'vitest';
import { notifyServiceManager } from '../../../../plugin/kernel/fd-passing.ts';
import { libc } from '../../../../plugin/kernel/libc.ts';
import { Scratch } from '../../../support/scratch.ts';
import { notificationSocket } from '../../../support/service-manager.ts';

test('a service manager that reads nothing is not waited for: its queue fills, and the answer is false', async () => {
  await using scratch = await Scratch.create('notify');
  const path = join(scratch.path, 'notify.sock');
  const socket = notificationSocket(path);
  try {
    let taken = 0;
    while (taken < 100_000 && notifyServiceManager(path, 'WATCHDOG=1')) taken += 1;
    expect(taken).toBeGreaterThan(0);
    expect(taken).toBeLessThan(100_000);
  } finally {
    libc.close(socket);
  }
});

test('without a service manager nothing is told', () => {
  expect(notifyServiceManager(undefined, 'READY=1')).toBe(false);
  expect(notifyServiceManager('/nonexistent/notify.sock', 'READY=1')).toBe(false);
});
