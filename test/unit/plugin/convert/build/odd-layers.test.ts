/**
 * Strange and malicious layers of the reference's fixture set: what we make of each, beside what the reference does (manifest.json,
 * `odd_layers`).
 */
import { describe, expect, it } from 'vitest';
import { isAppError } from '../../../../../plugin/base/errors.ts';
import { MemoryBuilder } from '../../../../property/plugin/convert/builder.ts';
import { readFixture } from '../../../../support/fixtures.ts';
import { type RawEntry, rawTar } from '../../image/tar/raw-tar.ts';

function list(...tars: Uint8Array[]) {
  const builder = new MemoryBuilder();
  for (const tar of tars) builder.addLayer(Buffer.from(tar), 2048);
  return builder.list();
}

function failure(...tars: Uint8Array[]): string {
  try {
    list(...tars);
  } catch (error) {
    if (isAppError(error)) return `${error.code} ${error.message}`;
    throw error;
  }
  return 'accepted';
}

const odd = (name: string): Buffer => readFixture(`oci/odd/${name}.tar`);

describe('odd fixtures', () => {
  it('accepts what the reference accepts', () => {
    expect([...list(odd('empty')).keys()]).toEqual(['']);
    expect([...list(odd('whiteout-only')).keys()]).toEqual(['', '/etc', '/etc/app']);
    expect([...list(odd('no-end-of-archive')).keys()]).toEqual(['', '/a']);
    expect([...list(odd('trailing-garbage')).keys()]).toEqual(['', '/a']);
    expect(list(odd('incompressible')).get('/rnd/random-256k.bin')!.links).toBe(1);
    const acl = Buffer.from('AgAAAAEABgD/////AgAEAOgDAAAEAAQA/////xAABgD/////IAAEAP////8=', 'base64').toString('latin1');
    expect(list(odd('posix-acl')).get('/acl/file')!.xattrs).toEqual({ 'system.posix_acl_access': acl });
  });

  it('takes PAX owner and time and base-256 numbers, which the reference ignores', () => {
    const listed = list(odd('quirks'));
    expect(listed.get('/q/pax-uid')).toMatchObject({ uid: expect.any(Number) });
    expect(listed.get('/q/pax-uid')!.uid).toBeGreaterThan(2_097_151);
    expect(listed.get('/q/gnu-base256-uid')!.uid).toBeGreaterThan(2_097_151);
    expect(listed.get('/q/pax-mtime')!.nanoseconds).toBeGreaterThan(0);
    expect(listed.get('/q/mtime-2100')!.mtime).toBe(4_102_444_800);
    expect(listed.get('/q/mtime-1960')!.mtime).toBeLessThan(0);
  });

  it('gives to root what belongs to the owner that is none', () => {
    const owner = (id: string) => [['uid', id] as const, ['gid', id] as const];
    const listed = list(
      rawTar([
        { name: 'none', pax: owner('4294967295') },
        { name: 'last', pax: owner('4294967294') },
      ]),
    );
    expect(listed.get('/none')).toMatchObject({ uid: 0, gid: 0 });
    expect(listed.get('/last')).toMatchObject({ uid: 4_294_967_294, gid: 4_294_967_294 });
  });

  it('keeps targets of symbolic links as they are written, which the reference cleans', () => {
    const listed = list(odd('symlink-target-cleaned'));
    const targets = ['dots', 'empty-components', 'root-dotdot', 'up'].map((name) => listed.get(`/sl/${name}`)!.value);
    for (const cleaned of ['b/c', 'p/q/r', '/x/y']) expect(targets).not.toContain(cleaned);
  });

  it('leaves out attributes of unknown namespaces and counts them', () => {
    expect(list(odd('unknown-xattr-namespace')).get('/weird')!.xattrs).toEqual({ 'user.ok': '1' });
  });

  it('leaves out attributes of users on what is neither file nor directory: overlayfs could not copy it up', () => {
    expect(list(odd('user-xattr-on-symlink')).get('/sx')!.xattrs).toEqual({});
    const pax = [
      ['SCHILY.xattr.user.a', '1'],
      ['SCHILY.xattr.trusted.b', '2'],
    ] as const;
    const listed = list(
      rawTar([
        { name: 'file', pax: [...pax] },
        { name: 'dir/', type: '5', pax: [...pax] },
        { name: 'fifo', type: '6', pax: [...pax] },
        { name: 'dev', type: '3', pax: [...pax] },
        { name: 'plain', type: '6' },
        { name: 'link', type: '1', linkName: 'plain', pax: [...pax] },
      ]),
    );
    const all = { 'user.a': '1', 'trusted.b': '2' };
    const { 'user.a': _, ...some } = all;
    expect(['/file', '/dir', '/fifo', '/dev', '/link'].map((path) => listed.get(path)!.xattrs)).toEqual([all, all, some, some, some]);
  });

  it('leaves out access lists where they have no place', () => {
    const [access, standard] = ['system.posix_acl_access', 'system.posix_acl_default'];
    const pax = [access, standard].map((name) => [`SCHILY.xattr.${name}`, '1'] as const);
    const listed = list(
      rawTar([
        { name: 'f', pax },
        { name: 'd/', type: '5', pax },
        { name: 'l', type: '2', linkName: 'f', pax },
      ]),
    );
    const names = (path: string) => Object.keys(listed.get(path)!.xattrs).sort();
    expect([names('/f'), names('/d'), names('/l')]).toEqual([[access], [access, standard], []]);
  });

  it('stores GNU sparse files, at which the reference stops', () => {
    expect([...list(odd('gnu-sparse-type-S')).values()].filter(({ type }) => type === 'file')).toHaveLength(1);
  });

  it('refuses with entry and offset what climbs, goes through links, is damaged or points nowhere', () => {
    expect(failure(odd('dotdot-path'))).toMatch(/^InvalidArgument read tar entry .*: at byte \d+: path climbs above the root/);
    expect(failure(odd('parent-is-symlink'))).toMatch(
      /^InvalidArgument .*alias\/through-symlink: at byte \d+: its parent "alias" is a symbolic link/,
    );
    expect(failure(odd('bad-header-checksum'))).toMatch(/^InvalidArgument .*header checksum/);
    expect(failure(odd('hardlink-missing-target'))).toMatch(/^NotFound .*hard link to "no-such-target", which does not exist/);
    expect(failure(odd('truncated-mid-file'))).toMatch(/^DataLoss .*ends here/);
  });
});

describe('entries that mean harm or nothing', () => {
  const tar = (...entries: RawEntry[]): Buffer => rawTar(entries);

  it('refuses them by name', () => {
    expect(failure(tar({ name: 'a' }, { name: 'a/b' }))).toMatch(/its parent "a" is not a directory/);
    expect(failure(tar({ name: 'd/', type: '5' }, { name: 'h', type: '1', linkName: 'd' }))).toMatch(
      /hard link to "d", which is a directory/,
    );
    expect(failure(tar({ name: 'l', type: '2', linkName: '.' }, { name: 'x' }, { name: 'h', type: '1', linkName: 'l/x' }))).toMatch(
      /does not exist/,
    );
    expect(failure(tar({ name: 'h', type: '1', linkName: '../x' }))).toMatch(/climbs above the root/);
    expect(failure(tar({ name: 'd/x' }, { name: 'd', type: '1', linkName: 'd/x' }))).toMatch(/NotFound .*which it replaces/);
    expect(failure(tar({ name: './' }))).toMatch(/accepted/);
    expect(failure(tar({ name: '.', type: '2', linkName: 'x' }))).toMatch(/a symlink cannot replace the root directory/);
    for (const name of ['.wh.', '.wh..', '.wh...'])
      expect(failure(tar({ name: `d/${name}` }))).toMatch(/a whiteout of this name hides nothing/);
  });

  it('refuses attributes that no inode can hold', () => {
    const value = 'v'.repeat(65_536);
    expect(failure(tar({ name: 'a', pax: [['SCHILY.xattr.user.a', value]] }))).toMatch(/ResourceExhausted .*65536 bytes, at most 65535/);
    const pax = Array.from({ length: 5 }, (_, i) => [`SCHILY.xattr.user.${i}`, value.slice(1)] as const);
    expect(failure(tar({ name: 'a', pax }))).toMatch(/ResourceExhausted store extended attributes a/);
  });

  it('skips the bookkeeping of aufs', () => {
    expect([
      ...list(tar({ name: '.wh..wh.plnk/', type: '5' }, { name: '.wh..wh.plnk/1.2' }, { name: '.wh..wh.aufs' }, { name: 'a' })).keys(),
    ]).toEqual(['', '/a']);
  });

  it('does not pass on marks that overlayfs would act upon', () => {
    const listed = list(
      tar({
        name: 'd/',
        type: '5',
        pax: [
          ['SCHILY.xattr.trusted.overlay.redirect', '/etc'],
          ['SCHILY.xattr.user.overlay.opaque', 'y'],
          ['SCHILY.xattr.user.k', 'v'],
        ],
      }),
    );
    expect(listed.get('/d')!.xattrs).toEqual({ 'user.k': 'v' });
  });

  it('hides below a whiteout what lower layers put there and keeps what the layer itself lists, in any order', () => {
    const lower = tar({ name: 'd/', type: '5' }, { name: 'd/old' }, { name: 'd/sub/', type: '5' }, { name: 'd/sub/old' });
    const before = tar({ name: '.wh.d' }, { name: 'd/sub/new' });
    const after = tar({ name: 'd/sub/new' }, { name: '.wh.d' });
    expect([...list(lower, before).keys()]).toEqual(['', '/d', '/d/sub', '/d/sub/new']);
    expect([...list(lower, after).keys()]).toEqual(['', '/d', '/d/sub', '/d/sub/new']);
  });
});
