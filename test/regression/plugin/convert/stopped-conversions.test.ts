/**
 * A conversion's thread that was terminated while it loaded a native library took the whole process along (napi's fatal error in koffi's
 * load). Threads are asked to end since; conversions that are ended at any moment leave a process that goes on.
 */
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { run } from '../../../support/process.ts';
import { Scratch } from '../../../support/scratch.ts';

const PROGRAM = join(import.meta.dirname, 'stopped-conversions.ts');
const COUNT = 20;

test('conversions that are ended while their threads start, load and compress leave the process alive', async () => {
  await using scratch = await Scratch.create('stopped');
  const { stdout } = await run(process.execPath, [PROGRAM, scratch.path, String(COUNT)], { timeoutMs: 240_000 });
  const { ended, done } = JSON.parse(stdout) as { ended: number; done: number };
  expect(ended + done).toBe(COUNT);
  expect(ended).toBeGreaterThan(0);
}, 300_000);
