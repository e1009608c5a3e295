/** The keeper's care for one child, with small programs in the child's place: starts again, probes, limits, back-off. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { getPriority, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { type Logger, silentLogger } from '../../../../plugin/base/log.ts';
import { Child } from '../../../../plugin/keeper/child.ts';
import { waitFor } from '../../../support/wait.ts';

const READY = `process.send({ op: 'ready' }); process.on('message', (m) => {
  if (m.op === 'ping') process.send({ op: 'pong', id: m.id }); else if (m.op === 'stop') process.exit(0); });`;

let directory: string;
let child: Child | undefined;
/** Milliseconds of silence after which children were killed. */
let silences: number[];
/** How often a start was tried. */
let starts: number;
beforeEach(() => {
  silences = [];
  starts = 0;
  directory = mkdtempSync(join(tmpdir(), 'obd-child-'));
});
afterEach(async () => {
  vi.restoreAllMocks();
  await child?.stop({ unmount: false, limitMs: 500 });
  rmSync(directory, { recursive: true });
});

const log = Object.create(silentLogger, {
  error: { value: ({ silentMs }: { silentMs?: number }) => silentMs !== undefined && silences.push(silentMs) },
}) as Logger;

/** Milliseconds that were waited before each start again: what happens sooner or later on a machine that is busy is no matter of these tests. */
function delaysMs(): () => (number | undefined)[] {
  const timers = vi.spyOn(globalThis, 'setTimeout');
  return () => timers.mock.calls.map(([, ms]) => ms);
}

/** Runs a program that first appends its pid to a file; returns the pids of all starts so far. */
function keep(program: string, startLimitsMs: readonly [number, ...number[]] = [60_000]): () => number[] {
  const pids = join(directory, 'pids');
  const script = join(directory, 'program.cjs');
  writeFileSync(pids, '');
  writeFileSync(script, `require('node:fs').appendFileSync(${JSON.stringify(pids)}, process.pid + '\\n');\n${program}`);
  child = new Child({
    name: 'child',
    command: () => {
      starts += 1;
      return { program: process.execPath, args: [script] };
    },
    startLimitsMs,
    niceness: 5,
    log,
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
    await waitFor(() => child!.ready, { what: 'the third start' });
    expect(starts).toBe(3);
  });

  test('runs with the priority that it was given', async () => {
    const pids = keep(READY);
    await waitFor(() => child!.ready, { what: 'the first start' });
    expect(getPriority(pids()[0])).toBe(5);
  });

  test('that dies after it was ready is started again at once, however often', async () => {
    const delays = delaysMs();
    const pids = keep(READY);
    for (let n = 0; n < 6; n += 1) {
      await waitFor(() => pids().length === n + 1 && child!.ready, { what: `start ${n + 1} to be ready` });
      process.kill(pids().at(-1)!, 'SIGKILL');
      await waitFor(() => pids().length === n + 2, { what: `start ${n + 2}` });
    }
    expect(Math.max(...delays().map(Number))).toBeLessThanOrEqual(300);
  });

  test('that somebody kills while it starts is not made to wait for it, however often', async () => {
    const delays = delaysMs();
    const pids = keep('setInterval(() => undefined, 1000);');
    for (let n = 0; n < 7; n += 1) {
      await waitFor(() => pids().length === n + 1, { what: `start ${n + 1}` });
      process.kill(pids().at(-1)!, 'SIGKILL');
    }
    await waitFor(() => pids().length === 8, { what: 'start 8' });
    expect(Math.max(...delays().map(Number))).toBeLessThanOrEqual(300);
  });

  test('that is stopped is killed after some seconds of silence and replaced', async () => {
    const pids = keep(READY);
    await waitFor(() => child!.ready, { what: 'the first start' });
    process.kill(pids()[0]!, 'SIGSTOP');
    await waitFor(() => pids().length === 2 && child!.ready, { what: 'the second start' });
    expectSilence();
  });

  test('that spins is killed after some seconds of silence and replaced', async () => {
    const pids =
      keep(`${READY}\nif (require('node:fs').readFileSync(${JSON.stringify(join(directory, 'pids'))}, 'utf8').split('\\n').length === 2)
      process.once('message', () => { for (;;) {} });`);
    await waitFor(() => pids().length === 2 && child!.ready, { what: 'the second start' });
    expectSilence();
  });

  /** Within 5 s it is to be there again: that leaves the rest to a probe and a start. After a longer gap the keeper trusts its own ears no more. */
  function expectSilence(): void {
    expect(silences[0]).toBeGreaterThanOrEqual(3000);
    expect(silences[0]).toBeLessThanOrEqual(3000 + 3 * 500);
  }

  test('whose start hangs is killed at its limit, and the next start is given more time', async () => {
    keep('setInterval(() => undefined, 1000);', [600, 60_000]);
    await waitFor(() => starts === 2, { what: 'the second start' });
    await expect(waitFor(() => starts === 3, { what: 'a third start', timeoutMs: 2500 })).rejects.toThrow('waited');
  });

  test('that never gets ready is started ever more slowly', async () => {
    const delays = delaysMs();
    keep('process.exit(1);');
    await waitFor(() => delays().length >= 4, { what: 'the fourth end' });
    expect(delays().slice(0, 4)).toEqual([100, 300, 1000, 3000]);
  });
});
