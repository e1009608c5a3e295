/**
 * What hangs is replaced as what is dead is, under readers: a stopped data plane, threads of it that hang while the rest goes on, a stopped
 * or replaced process while an image is attached and mounted, and a stopped keeper. No read fails and no byte is wrong.
 */
import { readdirSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { goBinary } from '../../support/go-build.ts';
import { Daemon, readTail } from '../../support/process.ts';
import { fileSystemOf, imageOfFileSystem, makeTree, type SurvivalTree } from '../../support/survival-image.ts';
import { SurvivalLoad } from '../../support/survival-load.ts';
import { judge, killRound, randomSource, spread, waitServing } from '../../support/survival-run.ts';
import { CacheDropper, type ReaderSummary } from '../../support/verifying-reader.ts';
import { waitFor } from '../../support/wait.ts';

/**
 * The goals are 5 s to replace a hanging process and 2 s of stall; the figures are printed. A machine that runs other things at the same
 * time needs longer, and what fails a test here is a process that is not replaced.
 */
const REPLACED_LIMIT_MS = 50_000;
const STALL_LIMIT_MS = 30_000;
const WATCHDOG_MS = 3000;

let load: SurvivalLoad;
let smallTree: SurvivalTree;
const more: ReaderSummary[] = [];

beforeAll(async () => {
  load = await SurvivalLoad.start({ serviceManager: { watchdogMs: WATCHDOG_MS }, withChurn: false });
  smallTree = await makeTree(load.host.scratch.join('little'), 1024 * 1024);
});
afterAll(() => load[Symbol.asyncDispose]());

function told(what: string, round: { recoveryMs: number; stalls: { stallMs: number }[] }): void {
  const { longest } = spread(round.stalls.map((s) => s.stallMs));
  console.log(`${what}: served again after ${Math.round(round.recoveryMs)} ms, longest stall ${Math.round(longest)} ms`);
}

test('a stopped blockd is replaced within 5 s, also while it starts', async () => {
  await using _dropper = new CacheDropper(1000);
  const { sidecar } = load.host;
  const running = await killRound(sidecar, ['blockd'], load.readers, (name) => sidecar.signal(name, 'SIGSTOP'));
  told('SIGSTOP of blockd', running);
  expect(running.recoveryMs).toBeLessThan(REPLACED_LIMIT_MS);
  const pid = await sidecar.kill('blockd');
  await sidecar.waitProcess('blockd', pid);
  const starting = await killRound(sidecar, ['blockd'], load.readers, (name) => sidecar.signal(name, 'SIGSTOP'));
  told('SIGSTOP of a starting blockd', starting);
  expect(starting.recoveryMs).toBeLessThan(REPLACED_LIMIT_MS);
});

test('threads of blockd that hang, all or one, get the process replaced within 5 s', async () => {
  await using _dropper = new CacheDropper(1000);
  const { sidecar, scratch } = load.host;
  const stopthreads = await goBinary('stopthreads');
  for (const [name, count] of [
    ['WorkerThread', 1],
    ['WorkerThread', 16],
    ['node-MainThread', 1],
  ] as const) {
    const pid = await waitServing(sidecar);
    const tids = readdirSync(`/proc/${pid}/task`).filter((tid) => readFileSync(`/proc/${pid}/task/${tid}/comm`, 'utf8').trim() === name);
    expect(tids.length).toBeGreaterThan(0);
    const args = tids.slice(0, count);
    const logPath = scratch.join(`stop-${name}-${count}.log`);
    let stopper: Daemon | undefined;
    try {
      const round = await killRound(sidecar, ['blockd'], load.readers, async () => {
        stopper = await Daemon.start({ name: 'stopthreads', command: stopthreads, args, logPath });
        await waitFor(() => readTail(logPath, 5).includes('stopped'), { what: 'the threads to stop' });
      });
      told(`${args.length} thread(s) ${name} stopped`, round);
      expect(round.recoveryMs).toBeLessThan(REPLACED_LIMIT_MS);
    } finally {
      await stopper?.stop();
    }
  }
});

test('a stopped keeper is replaced by the service manager, which kills the rest', async () => {
  await using _dropper = new CacheDropper(1000);
  const { sidecar } = load.host;
  const restarts = sidecar.manager.restarts;
  const round = await killRound(sidecar, ['keeper'], load.readers, (name) => sidecar.signal(name, 'SIGSTOP'));
  told(`SIGSTOP of the keeper, watchdog ${WATCHDOG_MS} ms`, round);
  // On a busy machine the new one may miss the watchdog, too.
  expect(sidecar.manager.restarts).toBeGreaterThan(restarts);
  // The data plane goes on without its keeper until the manager kills it.
  expect(spread(round.stalls.map((s) => s.stallMs)).longest).toBeLessThan(STALL_LIMIT_MS);
});

test('kills, stops and reloads while images are attached and mounted: every container starts and reads right', async () => {
  const { host } = load;
  const seed = Number(process.env.OBD_TEST_SEED ?? Date.now() % 1_000_000);
  const random = randomSource(seed);
  const staging = host.scratch.join('fresh');
  const fileSystems = [await fileSystemOf(smallTree, 'erofs', staging), await fileSystemOf(smallTree, 'ext4', staging)];
  const strikes: readonly (readonly [string, () => Promise<unknown>])[] = [
    ['kill blockd', () => host.sidecar.kill('blockd')],
    ['kill the sidecar', () => host.sidecar.kill('sidecar')],
    ['stop blockd', () => host.sidecar.signal('blockd', 'SIGSTOP')],
    ['reload', () => host.sidecar.signal('keeper', 'SIGHUP')],
    ['kill the keeper', () => host.sidecar.kill('keeper')],
    ['reload and kill blockd', () => Promise.all([host.sidecar.signal('keeper', 'SIGHUP'), host.sidecar.kill('blockd')])],
  ];
  for (const [n, [what, strike]] of strikes.entries()) {
    const image = await host.push(`fresh-${n}`, await imageOfFileSystem(fileSystems[n % 2]!, staging, 5000 + n));
    const starting = host.startContainer(image);
    await delay(random(250));
    const [root] = await Promise.all([starting, strike()]);
    await using reader = await host.reader(root, 'read', smallTree, n);
    await reader.waitPasses(1);
    const seen = await reader.stop();
    expect(seen, `seed ${seed}: ${what}`).toMatchObject({ errors: [], wrong: [] });
    more.push(seen);
    await host.removeContainer(root);
  }
});

test('no read failed and no byte was wrong in all of this', async () => {
  expect(judge([...(await load.stop()), ...more])).toMatchObject({ errors: [], wrong: [] });
});
