/** Deliveries of notifications: a database that cannot be written is no reason to send the same one again and again. */
import { expect, test, vi } from 'vitest';
import { openDatabase } from '../../../../../db/database.ts';
import { NotificationStore } from '../../../../../db/notification-store.ts';
import { silentLogger } from '../../../../../plugin/base/log.ts';
import { newNotificationSchema } from '../../../../../plugin/convert/notify/notification-rule.ts';
import { Notifier } from '../../../../../plugin/convert/notify/notifier.ts';
import { HookReceiver } from '../../../../support/hook-receiver.ts';
import { until } from '../../../../support/registry-client.ts';

const WAIT_MS = 30_000;

test('what was sent and could not be written down is sent once more after a while, not at once', async () => {
  await using stack = new AsyncDisposableStack();
  const database = stack.use(openDatabase(':memory:'));
  const receiver = stack.use(await HookReceiver.start());
  const store = new NotificationStore(database);
  let nowMs = 1_000_000;
  const clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => {} };
  const notifier = stack.use(new Notifier({ store, database, clock, logger: silentLogger }));
  const { id } = notifier.add(newNotificationSchema.parse({ name: 'ci', url: receiver.url }));
  const event = { type: 'BuildCompleted', jobId: 1, repository: 'r/a', sourceTag: '1', sourceDigest: '', tag: '1_accelerated' };
  store.addDelivery(id, JSON.stringify({ ...event, digest: '', reference: 'r/a:1_accelerated', completedAt: '' }), nowMs * 1000);
  const update = vi.spyOn(NotificationStore.prototype, 'updateDelivery').mockImplementation(() => {
    throw new Error('SQLITE_FULL');
  });
  try {
    notifier.pump();
    await until(() => update.mock.calls.length === 1, 'the first answer', WAIT_MS);
    for (let n = 0; n < 10; n += 1) {
      notifier.pump();
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect(receiver.received).toHaveLength(1);
  } finally {
    update.mockRestore();
  }
  nowMs += 60_000;
  notifier.pump();
  await until(() => notifier.deliveries({ limit: 1 })[0]?.state === 'DELIVERED', 'the delivery', WAIT_MS);
  expect(receiver.received).toHaveLength(2);
});
