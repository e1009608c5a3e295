/** The harness itself: that the verifying readers read in their four ways, and tell wrong bytes and failing pages. */
import { cpSync, truncateSync, writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { Scratch } from '../../support/scratch.ts';
import { CacheDropper, knownFilesOf, READ_MODES, VerifyingReader } from '../../support/verifying-reader.ts';

const SEED = 42;

async function tree(): Promise<Scratch> {
  const scratch = await Scratch.create('read');
  await scratch.file('bin/busybox', '');
  cpSync('/bin/busybox', scratch.join('bin/busybox'));
  await scratch.file('empty', '');
  await scratch.file('odd', Buffer.alloc(70_001, 3));
  await scratch.file('large', Buffer.alloc(17 * 1024 * 1024 + 5, 'pattern'));
  return scratch;
}

describe.each(READ_MODES)('mode %s', (mode) => {
  test('reads a right tree without a complaint while caches are dropped', async () => {
    await using scratch = await tree();
    const files = await knownFilesOf(scratch.path);
    const exec = { argv: ['/bin/busybox', 'sha256sum', '/odd'] as [string, ...string[]], stdout: '' };
    exec.stdout = `${files.find((f) => f.path === 'odd')?.sha256}  /odd\n`;
    await using reader = await VerifyingReader.start({ root: scratch.path, mode, files, exec, seed: SEED });
    {
      await using _dropper = new CacheDropper(200);
      await reader.waitPasses(3);
    }
    const seen = await reader.stop();
    expect(seen).toMatchObject({ mode, errors: [], errorCount: 0, wrong: [], wrongCount: 0 });
    expect(seen.passes).toBeGreaterThanOrEqual(3);
    expect(seen.longestStallMs).toBeGreaterThan(0);
  });
});

test('a byte that changed is told as wrong, by read, map and direct read', async () => {
  await using scratch = await tree();
  const files = await knownFilesOf(scratch.path);
  const bytes = Buffer.alloc(70_001, 3);
  bytes[70_000] = 4;
  writeFileSync(scratch.join('odd'), bytes);
  for (const mode of ['read', 'mmap', 'direct'] as const) {
    await using reader = await VerifyingReader.start({ root: scratch.path, mode, files, seed: SEED });
    await reader.waitPasses(1);
    const seen = await reader.stop();
    expect(seen.wrong[0]).toMatch(/^odd: /);
    expect(seen.errorCount).toBe(0);
  }
});

test('a page that cannot be read is told as an error and does not end the reader', async () => {
  await using scratch = await tree();
  const files = await knownFilesOf(scratch.path);
  truncateSync(scratch.join('odd'), 100);
  for (const mode of ['read', 'mmap'] as const) {
    await using reader = await VerifyingReader.start({ root: scratch.path, mode, files, seed: SEED });
    await reader.waitPasses(2);
    const seen = await reader.stop();
    expect(seen.errorCount).toBeGreaterThanOrEqual(2);
    expect(seen.errors[0]).toMatch(mode === 'mmap' ? /^odd: page fault/ : /^odd: read \d+ bytes at/);
  }
});
