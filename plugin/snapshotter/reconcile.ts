/**
 * Start-up: brings directories and database into agreement, both ways. A directory without a row is moved to the trash. A row without
 * its directory is marked broken, with the reason, and stays listed until somebody removes it; it stops nobody else. Devices and mounts
 * are brought into agreement by DeviceManager.reconcile, in the background: that needs blockd.
 */
import type { EventStore } from '../../db/event-store.ts';
import type { SnapshotStore } from '../../db/snapshot-store.ts';
import type { Logger } from '../base/log.ts';
import type { SnapshotDirectories } from './directories.ts';
import { wallTimeUs } from './wall-time.ts';

/** Rows looked at together; each costs one lstat. */
const BATCH = 64;

const MISSING = 'its directory is missing from the disk';

export async function reconcileDirectories(parts: {
  snapshots: SnapshotStore;
  events: EventStore;
  directories: SnapshotDirectories;
  logger: Logger;
}): Promise<void> {
  const { snapshots, events, directories, logger } = parts;
  const garbage = await directories.collect((id) => snapshots.exists(id));
  if (garbage > 0) logger.info({ count: garbage }, 'directories without a snapshot were moved to the trash');
  for (let rows = snapshots.withDirectory(0, BATCH); rows.length > 0; rows = snapshots.withDirectory(rows.at(-1)!.id, BATCH)) {
    await Promise.all(
      rows.map(async ({ id, brokenReason }) => {
        const isThere = await directories.hasOwn(id);
        if (!isThere && brokenReason === null) {
          snapshots.setBroken(id, MISSING);
          const subject = snapshots.getById(id)?.key ?? String(id);
          logger.error({ snapshot: subject, directory: directories.own(id) }, 'snapshot is broken: its directory is missing');
          events.append({ atUs: wallTimeUs(), type: 'snapshot-broken', subject, message: MISSING });
        } else if (isThere && brokenReason === MISSING) {
          snapshots.setBroken(id, null);
        }
      }),
    );
  }
}
