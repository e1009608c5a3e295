/** The keeper's care for one child, with small programs in the child's place: starts again, probes, limits, back-off. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { getPriority, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { Child } from '../../../../plugin/keeper/child.ts';
import { waitFor } from '../../../support/wait.ts';

const READY = `process.send({ op: 'ready' }); process.on('message', (m) => {
  if (m.op === 'ping') process.send({ op: 'pong', id: m.id }); else if (m.op === 'stop') process.exit(0); });`;

let directory: string;
let child: Child | undefined;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'obd-child-'));
});
afterEach(async () => {
  await child?.stop({ unmount: false, limitMs: 500 });
  rmSync(directory, { recursive: true });
});

/** Runs a program that first appends its pid to a file; returns the pids of all starts so far. */
function keep(program: string, startLimitsMs: readonly [number, ...number[]] = [5000]): () => number[] {
  const pids = join(directory, 'pids');
  const script = join(directory, 'program.cjs');
  writeFileSync(pids, '');
  writeFileSync(script, `require('node:fs').appendFileSync(${JSON.stringify(pids)}, process.pid + '\\n');\n${program}`);
  child = new Child({
    name: 'child',
    command: () => ({ program: process.execPath, args: [script] }),
    startLimitsMs,
    niceness: 5,
    log: silentLogger,
    onReady: () => undefined,
    onRequest: () => undefined,
  });
  child.start();
  return () => readFileSync(pids, 'utf8').split('\n').filter(Boolean).map(Number);
}

describe('a child', () => {
  test('whose program is missing, or cannot be named, is tried again until it is there', async () => {
    const script = join(directory, 'program.cjs');
    writeFileSync(script, READY);
    const programs = [
      () => join(directory, 'missing'),
      () => {
        throw new Error('the link is being moved');
      },
      () => process.execPath,
    ];
    let starts = 0;
    child = new Child({
      name: 'child',
      command: () => ({ program: programs[Math.min(starts++, 2)]!(), args: [script] }),
      startLimitsMs: [5000],
      niceness: 0,
      log: silentLogger,
      onReady: () => undefined,
      onRequest: () => undefined,
    });
    child.start();
    await waitFor(() => child!.ready, { what: 'the third start', timeoutMs: 10_000 });
    expect(starts).toBe(3);
  });

  test('runs with the priority that it was given', async () => {
    const pids = keep(READY);
    await waitFor(() => child!.ready, { what: 'the first start' });
    expect(getPriority(pids()[0])).toBe(5);
  });

  test('that dies after it was ready is started again at once, however often', async () => {
    const pids = keep(READY);
    for (let n = 0; n < 6; n += 1) {
      await waitFor(() => pids().length === n + 1 && child!.ready, { what: `start ${n + 1} to be ready` });
      const startedMs = performance.now();
      process.kill(pids().at(-1)!, 'SIGKILL');
      await waitFor(() => pids().length === n + 2, { what: `start ${n + 2}` });
      expect(performance.now() - startedMs).toBeLessThan(1500);
    }
  });

  test('that somebody kills while it starts is not made to wait for it, however often', async () => {
    const pids = keep('setInterval(() => undefined, 1000);');
    for (let n = 0; n < 7; n += 1) {
      await waitFor(() => pids().length === n + 1, { what: `start ${n + 1}`, timeoutMs: 1500 });
      process.kill(pids().at(-1)!, 'SIGKILL');
    }
    await waitFor(() => pids().length === 8, { what: 'start 8', timeoutMs: 1500 });
  });

  test('that is stopped is killed and replaced within 5 s', async () => {
    const pids = keep(READY);
    await waitFor(() => child!.ready, { what: 'the first start' });
    const stoppedMs = performance.now();
    process.kill(pids()[0]!, 'SIGSTOP');
    await waitFor(() => pids().length === 2 && child!.ready, { what: 'the second start' });
    expect(performance.now() - stoppedMs).toBeLessThan(5000);
  });

  test('that spins is killed and replaced within 5 s', async () => {
    const pids =
      keep(`${READY}\nif (require('node:fs').readFileSync(${JSON.stringify(join(directory, 'pids'))}, 'utf8').split('\\n').length === 2)
      process.once('message', () => { for (;;) {} });`);
    await waitFor(() => pids().length === 2 && child!.ready, { what: 'the second start', timeoutMs: 5000 });
  });

  test('whose start hangs is killed at its limit, and the next start is given more time', async () => {
    const pids = keep('setInterval(() => undefined, 1000);', [600, 60_000]);
    await waitFor(() => pids().length === 2, { what: 'the second start', timeoutMs: 5000 });
    await expect(waitFor(() => pids().length === 3, { what: 'a third start', timeoutMs: 2500 })).rejects.toThrow('waited');
  });

  test('that never gets ready is started ever more slowly', async () => {
    const pids = keep('process.exit(1);');
    await waitFor(() => pids().length >= 3, { what: 'three starts' });
    const before = pids().length;
    await expect(waitFor(() => pids().length > before + 3, { what: 'a burst of starts', timeoutMs: 1500 })).rejects.toThrow('waited');
  });
});
