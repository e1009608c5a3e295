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

test('what a registry refused comes last, for readers of the file and of the vault, until it is replaced', async () => {
  const vault = await CredentialVault.open(paths(), clock, noLoss);
  const repository = { prefix: 'r.example/team/app', isExact: true };
  await vault.put(entry('good', 'r.example/team/app', repository));
  nowMs += 1;
  const revoked = entry('newer', 'r.example/team/app', repository);
  await vault.put(revoked);
  for (const { ofPods } of [sealedSources(paths(), clock.nowMs), vault.sources()]) {
    const userOf = async () => ((await ofPods('r.example', 'team/app')) as { username: string }).username;
    expect(await userOf()).toBe('newer');
    ofPods.refused?.(revoked.credential);
    expect(await userOf()).toBe('good');
    ofPods.refused?.(entry('good', '').credential);
    expect(await userOf()).toBe('newer');
    nowMs += 11 * 60_000;
    expect(await userOf()).toBe('newer');
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

test('is never larger than its readers take, however large secrets are; what was put by hand stays', async () => {
  const vault = await CredentialVault.open(paths(), clock, noLoss, 8_192);
  const large = (id: string, chars: number, more: Partial<NewEntry> = {}): Promise<void> => {
    nowMs += 1;
    return vault.put(entry(id, `r.example/${id}`, { credential: { username: 'u', password: 'x'.repeat(chars) }, ...more }));
  };
  await large('admin', 1_000, { origin: 'admin' });
  for (let i = 0; i < 12; i += 1) await large(`pod${i}`, 1_000);
  // In the place of a small one, too.
  await large('pod11', 3_000);
  expect((await fs.stat(paths().file)).size).toBeLessThanOrEqual(8_192);
  const ids = (await readVault(paths())).map(({ id }) => id);
  expect(ids).toEqual(expect.arrayContaining(['admin', 'pod10', 'pod11']));
  expect(ids).not.toContain('pod0');
  await expect(large('huge', 7_000)).rejects.toMatchObject({ code: 'ResourceExhausted' });
  expect(vault.list().map(({ id }) => id)).toEqual(expect.arrayContaining(ids));
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

test('a credential that a pod may bring, empty password or long name, is read back; one that nobody could read is refused alone', async () => {
  const vault = await CredentialVault.open(paths(), clock, noLoss);
  await vault.put(entry('good', 'r.example/team/good'));
  const reader = sealedSources(paths(), clock.nowMs);
  const token = { username: 'x'.repeat(5_000), password: '' };
  await vault.put(entry('token', 'r.example/team/token', { credential: token }));
  expect(await reader.ofPods('r.example', 'team/token')).toEqual(token);
  for (const credential of [{ username: 'u', password: SECRET.repeat(10_000) }, { identityToken: '' }, { registryToken: '' }]) {
    const refused = vault.put(entry('bad', 'r.example/team/bad', { credential }));
    await expect(refused).rejects.toMatchObject({ code: 'InvalidArgument', message: expect.not.stringContaining(SECRET) });
  }
  await vault.put(entry('last', 'r.example/team/last'));
  expect((await readVault(paths())).map(({ id }) => id)).toEqual(['good', 'token', 'last']);
});

test('an entry of another version costs no other its place', async () => {
  const key = await readOrMakeKey(paths().keyFile);
  const good = { ...entry('good', 'r.example'), savedMs: 1, usedMs: 1 };
  const entries = [{ id: 'strange' }, good, { ...good, id: 'other', origin: 'moon' }];
  await fs.writeFile(paths().file, seal(key, Buffer.from(JSON.stringify({ version: 1, entries }))));
  expect(await readVault(paths())).toEqual([good]);
});

test('what could not be written is written with the next put, also when that brings nothing new', async () => {
  const vault = await CredentialVault.open(paths(), clock, noLoss);
  await fs.mkdir(`${paths().file}.tmp`);
  await expect(vault.put(entry('a', 'r.example'))).rejects.toThrow(/EISDIR/);
  await expect(vault.put(entry('a', 'r.example'))).rejects.toThrow(/EISDIR/);
  await fs.rmdir(`${paths().file}.tmp`);
  await vault.put(entry('a', 'r.example'));
  expect((await readVault(paths())).map(({ id }) => id)).toEqual(['a']);
});

test('a put that proved wrong is taken back, but never what another has put in its place', async () => {
  const vault = await CredentialVault.open(paths(), clock, noLoss);
  const wrong = { username: 'wrong', password: SECRET };
  await vault.put(entry('a', 'r.example', { credential: wrong }));
  await vault.put(entry('a', 'r.example'));
  await vault.restore('a', undefined, wrong);
  expect(vault.get('a')?.credential).toEqual(entry('a', 'r.example').credential);
  const before = vault.get('a');
  await vault.put(entry('a', 'r.example', { credential: wrong }));
  await vault.restore('a', before, wrong);
  expect((await readVault(paths()))[0]?.credential).toEqual(before?.credential);
  await vault.put(entry('b', 'r.example', { credential: wrong }));
  await vault.restore('b', undefined, wrong);
  expect((await readVault(paths())).map(({ id }) => id)).toEqual(['a']);
});

test('full of what people put by hand, it takes no more and does not grow', async () => {
  const vault = await CredentialVault.open(paths(), clock, noLoss);
  const admin = (i: number): Promise<void> => vault.put(entry(`admin${i}`, `r.example/app${i}`, { origin: 'admin' }));
  await Promise.all(Array.from({ length: MAX_VAULT_ENTRIES }, (_, i) => admin(i)));
  await expect(admin(MAX_VAULT_ENTRIES)).rejects.toMatchObject({ code: 'ResourceExhausted' });
  await expect(vault.put(entry('pod', 'r.example/pod'))).rejects.toMatchObject({ code: 'ResourceExhausted' });
  await admin(5);
  expect(vault.list()).toHaveLength(MAX_VAULT_ENTRIES);
});
