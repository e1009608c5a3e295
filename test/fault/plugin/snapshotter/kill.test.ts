/**
 * The control plane is killed at random moments of random calls. What it had answered holds afterwards, what it had not answered
 * happened wholly or not at all, and disk and database agree.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { CODE, codeOf, SnapshotterClient } from '../../../support/snapshotter-client.ts';
import { waitFor } from '../../../support/wait.ts';

const MAIN = path.resolve(import.meta.dirname, '../../../../plugin/main.ts');
const KILLS = 15;

/** Present, gone, or either: a call about it was under way when the process died. */
type Fate = 'present' | 'gone' | 'either';

/** A small repeatable generator (mulberry32); the seed is printed with a failure. */
function randomSource(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

test(`${KILLS} kills of the process under random calls lose nothing that was answered`, async () => {
  const seed = Number(process.env.OBD_TEST_SEED ?? Date.now() % 1_000_000);
  const random = randomSource(seed);
  const scratch = await fs.mkdtemp(path.join(os.tmpdir(), 'obd-kill-'));
  const socket = path.join(scratch, 'run', 'snapshotter.sock');
  await fs.writeFile(path.join(scratch, 'config.toml'), `[paths]\nroot = "${scratch}/root"\nrun = "${scratch}/run"\n`);
  const committed = new Map<string, Fate>();
  const active = new Map<string, { parent: string; fate: Fate }>();
  let counter = 0;

  const step = async (client: SnapshotterClient): Promise<void> => {
    const bases = ['', ...[...committed].flatMap(([name, fate]) => (fate === 'present' ? [name] : []))];
    const usable = [...active].flatMap(([key, { fate }]) => (fate === 'present' ? [key] : []));
    const choice = random(10);
    if (choice < 5 || usable.length === 0) {
      const key = `a${counter++}`;
      const parent = bases[random(bases.length)]!;
      active.set(key, { parent, fate: 'either' });
      await client.prepare(key, parent);
      active.set(key, { parent, fate: 'present' });
      return;
    }
    const key = usable[random(usable.length)]!;
    if (choice < 8) {
      const name = `c${counter++}`;
      const { parent } = active.get(key)!;
      active.set(key, { parent, fate: 'either' });
      committed.set(name, 'either');
      await client.commit(name, key);
      active.set(key, { parent, fate: 'gone' });
      committed.set(name, 'present');
    } else if (choice < 9) {
      const { parent } = active.get(key)!;
      active.set(key, { parent, fate: 'either' });
      await client.remove(key);
      active.set(key, { parent, fate: 'gone' });
    } else {
      await client.cleanup();
    }
  };

  const verify = async (client: SnapshotterClient): Promise<void> => {
    const listed = new Set((await client.list()).map((info) => info.name));
    const settle = (name: string, fate: Fate): Fate => {
      if (fate !== 'either') expect(listed.has(name), `seed ${seed}: ${name} should be ${fate}`).toBe(fate === 'present');
      return listed.has(name) ? 'present' : 'gone';
    };
    for (const [name, fate] of committed) committed.set(name, settle(name, fate));
    for (const [key, { parent, fate }] of active) active.set(key, { parent, fate: settle(key, fate) });
    for (const [key, { fate }] of active) {
      if (fate !== 'present') continue;
      const [mount] = await client.mounts(key);
      const own = mount!.type === 'bind' ? mount!.source : mount!.options.find((o) => o.startsWith('upperdir='))!.slice('upperdir='.length);
      await fs.access(own);
    }
    await client.cleanup();
    const directories = await fs.readdir(path.join(scratch, 'root', 'snapshots'));
    expect(directories, `seed ${seed}: directories and rows`).toHaveLength(listed.size);
    expect(await fs.readdir(path.join(scratch, 'root', 'removed'))).toEqual([]);
    expect([...listed].every((name) => committed.has(name) || active.has(name))).toBe(true);
  };

  try {
    for (let round = 0; round <= KILLS; round += 1) {
      const child = spawn(process.execPath, [MAIN, '--config', path.join(scratch, 'config.toml')], {
        stdio: 'ignore',
        env: { ...process.env, OBD_LOG_LEVEL: 'silent' },
      });
      const exited = once(child, 'exit');
      try {
        using client = new SnapshotterClient(socket);
        await waitFor(async () => (await client.list().catch(() => undefined)) !== undefined, { what: 'the sidecar', timeoutMs: 120_000 });
        await verify(client);
        if (round === KILLS) break;
        const killTimer = setTimeout(() => child.kill('SIGKILL'), 20 + random(200));
        const runner = async (): Promise<void> => {
          for (;;) {
            try {
              await step(client);
            } catch (error) {
              if (codeOf(error) === CODE.unavailable || child.killed) return;
              // Two runners may choose the same snapshot; then one of them is told so.
              if (![CODE.notFound, CODE.failedPrecondition].includes(codeOf(error) as 5)) throw error;
            }
          }
        };
        await Promise.all([runner(), runner(), runner()]).finally(() => clearTimeout(killTimer));
      } finally {
        child.kill('SIGKILL');
        await exited;
      }
    }
    expect([...committed.values()].filter((fate) => fate === 'present').length).toBeGreaterThan(10);
  } finally {
    await fs.rm(scratch, { recursive: true, force: true });
  }
});
