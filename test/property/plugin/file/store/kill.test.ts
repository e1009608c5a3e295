import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { systemClock } from '../../../../../plugin/base/clock.ts';
import { MissingList } from '../../../../../plugin/file/file.ts';
import { ChunkStore } from '../../../../../plugin/file/store/chunk-store.ts';
import { du, scratchDir, UNIT } from '../../../../unit/plugin/file/store/store-support.ts';
import { KILL_BLOBS, killBytes, killSource } from './kill-blobs.ts';
import { randomOf } from './sim-disk.ts';

const CHILD = fileURLToPath(new URL('./kill-child.ts', import.meta.url));
const TIME_BOX_MS = Number(process.env.OBD_PROPERTY_MS ?? 6_000);

/** Lets the file system give every file its final blocks, so that counting them twice gives the same. */
function flush(dir: string): void {
  for (const entry of fs.readdirSync(dir, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const fd = fs.openSync(`${entry.parentPath}/${entry.name}`, 'r+');
    fs.fsyncSync(fd);
    fs.closeSync(fd);
  }
}

/** Reads every unit that the store calls present and compares it; returns how many there were. */
async function judge(rootDir: string): Promise<number> {
  flush(rootDir);
  const store = await ChunkStore.open({ rootDir, budgetBytes: 1e9, clock: systemClock });
  expect(store.usage().bytes).toBe(du(rootDir));
  let present = 0;
  for (let index = 0; index < KILL_BLOBS; index += 1) {
    const handle = await store.acquire(killSource(index));
    for (let unit = 0; unit < handle.unitCount; unit += 1) {
      const expected = killBytes(index).subarray(unit * UNIT, (unit + 1) * UNIT);
      const target = new Uint8Array(expected.length);
      if (!handle.file().readSync(unit * UNIT, target.length, target, 0, new MissingList())) continue;
      present += 1;
      expect(Buffer.compare(target, expected)).toBe(0);
    }
  }
  await store.close();
  expect(store.usage().bytes).toBe(du(rootDir));
  return present;
}

test('a process killed with SIGKILL at any moment leaves a store whose every present unit is right and whose ledger equals du', async () => {
  const seed = Number(process.env.OBD_SEED ?? Date.now() % 1_000_000_000);
  const random = randomOf(seed);
  const rootDir = `${scratchDir()}/store`;
  const endMs = performance.now() + TIME_BOX_MS;
  let kills = 0;
  let present = 0;
  // On a busy machine the first ones may be killed before they have written anything.
  while (performance.now() < endMs || present === 0) {
    const child = spawn(process.execPath, [CHILD, rootDir, String(seed + kills)], { stdio: ['ignore', 'pipe', 'inherit'] });
    const ended = once(child, 'exit');
    try {
      await once(child.stdout!, 'data');
      await systemClock.sleep(random() * 150);
    } finally {
      child.kill('SIGKILL');
    }
    const [, signal] = await ended;
    expect(signal).toBe('SIGKILL');
    kills += 1;
    present += await judge(rootDir);
  }
  console.log(`seed ${seed}: ${kills} kills, ${present} present units checked`);
});
