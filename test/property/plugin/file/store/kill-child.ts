/**
 * A process for the kill test: writes, drops and evicts blobs of a store without end, then is killed. Arguments: root, seed.
 * The blobs and their bytes follow from kill-blobs.ts, so that the parent can check what it finds.
 */
import { systemClock } from '../../../../../plugin/base/clock.ts';
import { ChunkStore } from '../../../../../plugin/file/store/chunk-store.ts';
import { KILL_BLOBS, KILL_BUDGET_BYTES, killBytes, killSource } from './kill-blobs.ts';
import { randomOf } from './sim-disk.ts';

const UNIT = 65_536;
const [rootDir, seed] = process.argv.slice(2);
const random = randomOf(Number(seed));
const store = await ChunkStore.open({ rootDir: rootDir!, budgetBytes: KILL_BUDGET_BYTES, clock: systemClock, checkpointMs: 3 });
process.stdout.write('ready\n');
for (;;) {
  const index = Math.floor(random() * KILL_BLOBS);
  const bytes = killBytes(index);
  const handle = await store.acquire(killSource(index));
  for (let i = 0; i < 6; i += 1) {
    const unit = Math.floor(random() * handle.unitCount);
    const piece = bytes.subarray(unit * UNIT, (unit + 1) * UNIT);
    if (handle.isReadable(unit)) await store.drop(handle, unit * UNIT, 1);
    await store.write(handle, unit * UNIT, piece, await store.reserve(piece.length));
  }
  handle.release();
}
