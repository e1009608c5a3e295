/** Stored credentials: sealed, bounded, found by the longest prefix and then the newest, and shared with a process that only reads. */
import fs from 'node:fs/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { Clock } from '../../../../../plugin/base/clock.ts';
import { bestEntry, POD_ORIGINS, type VaultEntry } from '../../../../../plugin/registry/vault/entry.ts';
import { readVault, sealedSources } from '../../../../../plugin/registry/vault/sealed-source.ts';
import { readKey, readOrMakeKey, seal, unseal } from '../../../../../plugin/registry/vault/sealing.ts';
import { CredentialVault, MAX_VAULT_ENTRIES, type NewEntry } from '../../../../../plugin/registry/vault/vault.ts';
import { Scratch } from '../../../../support/scratch.ts';

const SECRET = 'a-secret-nobody-may-read';

let scratch: Scratch;
let nowMs = 1_000_000;
const clock: Clock = { nowMs: () => nowMs, monotonicMs: () => nowMs, sleep: async () => undefined };
const paths = () => ({ file: scratch.join('credentials.sealed'), keyFile: scratch.join('credentials.key') });
const noLoss = (error: unknown): void => {
  throw error;
};

beforeEach(async () => {
  scratch = await Scratch.create('vault');
  nowMs = 1_000_000;
});
afterEach(async () => {
  await scratch[Symbol.asyncDispose]();
});

function entry(id: string, prefix: string, more: Partial<NewEntry> = {}): NewEntry {
  const credential = { username: id, password: SECRET };
  return { id, origin: 'pull', prefix, isExact: false, credential, expiresMs: null, renewal: null, ...more };
}

describe('sealing', () => {
  test('gives back what was sealed, and refuses another key or changed bytes', () => {
    const key = Buffer.alloc(32, 1);
    const sealed = seal(key, Buffer.from(SECRET));
    expect(unseal(key, sealed, 'x').toString()).toBe(SECRET);
    expect(seal(key, Buffer.from(SECRET)).equals(sealed)).toBe(false);
    expect(() => unseal(Buffer.alloc(32, 2), sealed, 'x')).toThrow(/another key/);
    for (const at of [0, 8, 25, 40, sealed.length - 1]) {
      const changed = Buffer.from(sealed);
      changed[at]! ^= 1;
      expect(() => unseal(key, changed, 'x')).toThrow(/unseal x/);
    }
    expect(() => unseal(key, sealed.subarray(0, 20), 'x')).toThrow(/no sealed file/);
  });

  test('makes one key however many begin at once, for its owner alone, and refuses one that others can read', async () => {
    const file = scratch.join('dir', 'key');
    const keys = await Promise.all(Array.from({ length: 8 }, () => readOrMakeKey(file)));
    expect(new Set(keys.map((key) => Buffer.from(key).toString('hex'))).size).toBe(1);
    expect((await fs.stat(file)).mode & 0o777).toBe(0o600);
    expect(await fs.readdir(scratch.join('dir'))).toEqual(['key']);
    await fs.chmod(file, 0o640);
    await expect(readKey(file)).rejects.toThrow(/others than its owner/);
    await fs.chmod(file, 0o600);
    await fs.writeFile(file, 'short');
    await expect(readKey(file)).rejects.toThrow(/5 bytes, not 32/);
  });
});

test('the longest prefix wins, then the newest; what has expired only when there is nothing else', () => {
  const row = (id: string, prefix: string, savedMs: number, more: Partial<VaultEntry> = {}): VaultEntry => ({
    ...entry(id, prefix),
    savedMs,
    usedMs: 0,
    ...more,
  });
  const rows = [
    row('host', 'r.example', 9),
    row('team', 'r.example/team', 5),
    row('team-newer', 'r.example/team', 6),
    row('app', 'r.example/team/app', 1, { isExact: true }),
    row('old', 'r.example/team/old', 99, { expiresMs: 10 }),
    row('lone', 'lone.example', 1, { expiresMs: 10 }),
  ];
  const idFor = (host: string, repository: string) => bestEntry(rows, host, repository, 100)?.id;
  expect(idFor('r.example', 'team/app')).toBe('app');
  expect(idFor('R.example', 'team/app')).toBe('app');
  expect(idFor('r.example', 'team/app/more')).toBe('team-newer');
  expect(idFor('r.example', 'team/application')).toBe('team-newer');
  expect(idFor('r.example', 'teams/app')).toBe('host');
  expect(idFor('r.example', 'team/old')).toBe('team-newer');
  expect(idFor('r.example:5000', 'team/app')).toBeUndefined();
  expect(idFor('lone.example', 'x')).toBe('lone');
});

test('what is put is sealed on disk, outlives the process, and reaches a reader of the file at its next look', async () => {
  const reader = sealedSources(paths(), clock.nowMs);
  expect(await reader.ofPods('r.example', 'team/app')).toBeUndefined();
  const vault = await CredentialVault.open(paths(), clock, noLoss);
  await vault.put(entry('a', 'r.example/team/app'));
  await vault.put(entry('m', 'r.example', { origin: 'admin', credential: { identityToken: SECRET } }));
  expect(await reader.ofPods('r.example', 'team/app')).toEqual({ username: 'a', password: SECRET });
  expect(await reader.ofAdmin('r.example', 'team/app')).toEqual({ identityToken: SECRET });
  expect(await reader.ofPods('r.example', 'other')).toBeUndefined();
  nowMs += 1;
  await vault.put(entry('a', 'r.example/team/app', { credential: { username: 'b', password: 'changed' } }));
  expect(await reader.ofPods('r.example', 'team/app')).toEqual({ username: 'b', password: 'changed' });
  expect(await vault.delete('a')).toBe(true);
  expect(await vault.delete('a')).toBe(false);
  expect(await reader.ofPods('r.example', 'team/app')).toBeUndefined();
  const again = await CredentialVault.open(paths(), clock, noLoss);
  expect(again.list().map(({ id }) => id)).toEqual(['m']);
  for (const name of await fs.readdir(scratch.path)) {
    expect((await fs.readFile(scratch.join(name))).includes(SECRET), name).toBe(false);
    expect((await fs.stat(scratch.join(name))).mode & 0o077).toBe(0);
  }
});

test('puts at once share writes, and each is on disk when its put resolves', async () => {
  const vault = await CredentialVault.open(paths(), clock, noLoss);
  await Promise.all(
    Array.from({ length: 64 }, async (_, i) => {
      await vault.put(entry(`e${i}`, `r.example/app${i}`));
      expect((await readVault(paths())).some(({ id }) => id === `e${i}`)).toBe(true);
    }),
  );
});

test('is bounded: the longest unused goes first, what people put never', async () => {
  const vault = await CredentialVault.open(paths(), clock, noLoss);
  await Promise.all([
    vault.put(entry('admin', 'r.example', { origin: 'admin' })),
    ...Array.from({ length: MAX_VAULT_ENTRIES + 9 }, (_, i) => {
      nowMs += 1;
      return vault.put(entry(`e${i}`, `r.example/app${i}`));
    }),
  ]);
  expect(vault.list()).toHaveLength(MAX_VAULT_ENTRIES);
  expect(vault.get('admin')).toBeDefined();
  expect(vault.get('e0')).toBeUndefined();
  expect(vault.get(`e${MAX_VAULT_ENTRIES + 8}`)).toBeDefined();
  expect(vault.find(POD_ORIGINS, 'r.example', 'app5')).toBeUndefined();
});

test('a vault of another key, or a damaged one, is empty and says so; a reader fails without a secret in its error', async () => {
  const first = await CredentialVault.open(paths(), clock, noLoss);
  await first.put(entry('a', 'r.example'));
  await fs.rm(paths().keyFile);
  await expect(sealedSources(paths())?.ofPods('r.example', 'app')).rejects.toThrow(/key .* is missing/);
  const losses: string[] = [];
  const second = await CredentialVault.open(paths(), clock, (error) => losses.push(error.message));
  expect(losses).toHaveLength(1);
  expect(second.list()).toEqual([]);
  await second.put(entry('b', 'r.example'));
  await fs.writeFile(paths().file, Buffer.concat([await fs.readFile(paths().file), Buffer.from('x')]));
  const third = await CredentialVault.open(paths(), clock, (error) => losses.push(error.message));
  expect(third.list()).toEqual([]);
  expect(losses.join()).not.toContain(SECRET);
});
