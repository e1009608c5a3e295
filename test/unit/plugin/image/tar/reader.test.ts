import { describe, expect, it } from 'vitest';
import { isAppError } from '../../../../../plugin/base/errors.ts';
import { readFixture } from '../../../../support/fixtures.ts';
import { collectTar } from './collect.ts';
import { base256, padded, type RawEntry, rawEntry, rawHeader, rawTar } from './raw-tar.ts';

const one = (entry: RawEntry) => collectTar(rawTar([entry]))[0]!;

function failure(tar: Uint8Array): { code: string; message: string } {
  try {
    collectTar(tar);
  } catch (error) {
    if (isAppError(error)) return { code: error.code, message: error.message };
    throw error;
  }
  return { code: 'none', message: 'it was accepted' };
}

describe('tar entries', () => {
  it('reads the fields of a ustar header and says where the content lies in the tar', () => {
    const entries = collectTar(
      rawTar([
        { name: 'dir/', type: '5', mode: 0o1777, uid: 7, gid: 8, mtime: 12 },
        { name: 'dir/file', content: 'hello', mode: 0o4755 },
        { name: 'null', type: '3', devMajor: 1, devMinor: 3 },
        { name: 'link', type: '2', linkName: './a/../b' },
      ]),
    );
    expect(entries).toMatchObject([
      { type: 'directory', name: 'dir/', mode: 0o1777, uid: 7, gid: 8, mtimeSeconds: 12, sizeBytes: 0 },
      { type: 'file', name: 'dir/file', mode: 0o4755, sizeBytes: 5, headerOffset: 512, contentOffset: 1024 },
      { type: 'char', devMajor: 1, devMinor: 3 },
      { type: 'symlink', linkName: './a/../b' },
    ]);
    expect(entries[1]!.content.toString()).toBe('hello');
  });

  it('joins the ustar prefix, and not what GNU and star headers hold in its place', () => {
    expect(one({ name: 'name', patch: { 345: 'some/prefix' } }).name).toBe('some/prefix/name');
    expect(one({ name: 'name', magic: 'ustar  \0', patch: { 345: '00000001234' } }).name).toBe('name');
    expect(one({ name: 'name', patch: { 345: 'star', 476: '00000000001\0', 508: 'tar\0' } }).name).toBe('star/name');
    expect(one({ name: 'name', magic: '', patch: { 345: 'v7 has no prefix' } }).name).toBe('name');
  });

  it('takes PAX path, link, owner, size and times before the header, whatever their bytes', () => {
    const entry = one({
      name: 'short',
      type: '0',
      content: 'abc',
      size: 0,
      pax: [
        ['path', 'caf\xe9/\xff'],
        ['uid', '4000000000'],
        ['gid', '3'],
        ['mtime', '1700000001.25'],
        ['size', '3'],
        ['SCHILY.xattr.user.k', Uint8Array.of(0, 1, 10, 0)],
        ['comment', 'ignored'],
      ],
    });
    expect(entry).toMatchObject({
      name: 'caf\xe9/\xff',
      uid: 4_000_000_000,
      gid: 3,
      mtimeSeconds: 1_700_000_001,
      mtimeNanoseconds: 250_000_000,
    });
    expect(entry.content.toString()).toBe('abc');
    expect(entry.xattrs?.get('user.k')).toEqual(Uint8Array.of(0, 1, 10, 0));
    expect(one({ name: 'a', pax: [['mtime', '-1.5']] })).toMatchObject({ mtimeSeconds: -2, mtimeNanoseconds: 500_000_000 });
    expect(one({ name: 'a', pax: [['mtime', '1.1234567899']] })).toMatchObject({ mtimeSeconds: 1, mtimeNanoseconds: 123_456_789 });
    expect(one({ name: 'header', pax: [['path', '']] }).name).toBe('header');
  });

  it('takes GNU long names and links before PAX ones, as Go does, and skips global headers', () => {
    const tar = Buffer.concat([
      rawEntry({ name: 'g', type: 'g', content: '18 path=everywhere' }),
      rawEntry({ name: '././@LongLink', type: 'L', content: `${'n'.repeat(200)}\0` }),
      rawEntry({ name: '././@LongLink', type: 'K', content: `${'t'.repeat(300)}\0` }),
      rawEntry({ name: 'cut', type: '2', linkName: 'cut', pax: [['path', 'pax']] }),
      Buffer.alloc(1024),
    ]);
    expect(collectTar(tar)[0]).toMatchObject({ name: 'n'.repeat(200), linkName: 't'.repeat(300) });
  });

  it('reads base-256 numbers, negative times too', () => {
    const entry = one({ name: 'a', patch: { 108: base256(5_000_000n, 8), 136: base256(-100n, 12) } });
    expect(entry).toMatchObject({ uid: 5_000_000, mtimeSeconds: -100 });
  });

  it('accepts the signed sum that old writers made', () => {
    expect(one({ name: 'caf\xe9', checksum: 'signed' }).name).toBe('caf\xe9');
  });

  it('takes a file whose name ends in a slash for a directory, and ignores sizes of links', () => {
    expect(one({ name: 'old/', type: '\0' }).type).toBe('directory');
    expect(collectTar(rawTar([{ name: 'h', type: '1', linkName: 'x', size: 4096 }, { name: 'b' }]))).toHaveLength(2);
  });

  it('gives the same entries however the input is cut', () => {
    const tar = readFixture('oci/l1.tar');
    const whole = collectTar(tar);
    for (const chunk of [1, 7, 511, 512, 513, 65_536]) expect(collectTar(tar, chunk)).toEqual(whole);
  }, 60_000);

  it('ends at two zero blocks, at the end of input, or at one zero block at the end of input', () => {
    const entry = rawEntry({ name: 'a', content: 'x' });
    for (const end of [
      Buffer.alloc(0),
      Buffer.alloc(512),
      Buffer.alloc(10_240),
      Buffer.concat([Buffer.alloc(1024), Buffer.from('garbage')]),
    ]) {
      expect(collectTar(Buffer.concat([entry, end]))).toHaveLength(1);
    }
  });
});

describe('sparse files', () => {
  const stored = Buffer.concat([Buffer.alloc(700, 1), Buffer.alloc(300, 2)]);
  const wanted = Buffer.concat([Buffer.alloc(1000), stored.subarray(0, 700), Buffer.alloc(3300), stored.subarray(700), Buffer.alloc(700)]);
  const check = (tar: Buffer): void => {
    for (const chunk of [tar.length, 100, 512]) {
      const entry = collectTar(tar, chunk)[0]!;
      expect(entry).toMatchObject({ name: 'sparse', type: 'file', sizeBytes: 6000, storedBytes: 1000 });
      expect(entry.content.equals(wanted)).toBe(true);
      expect(collectTar(tar, chunk)[1]!.name).toBe('after');
    }
  };
  const after = rawTar([{ name: 'after', content: 'x' }]);

  it('reads GNU type S with pairs in the header and in extension blocks', () => {
    const pair = (offset: number, length: number): string =>
      `${offset.toString(8).padStart(11, '0')}\0${length.toString(8).padStart(11, '0')}\0`;
    const real = `${(6000).toString(8).padStart(11, '0')}\0`;
    const base = { name: 'sparse', type: 'S', magic: 'ustar  \0', size: 1000 };
    const inHeader = { 386: pair(1000, 700) + pair(5000, 300), 483: real };
    check(Buffer.concat([rawHeader({ ...base, patch: inHeader }), padded(stored), after]));
    const extension = Buffer.alloc(512);
    extension.write(pair(5000, 300), 'latin1');
    const extended = { 386: pair(1000, 700), 482: '\x01', 483: real };
    check(Buffer.concat([rawHeader({ ...base, patch: extended }), extension, padded(stored), after]));
  });

  it('reads PAX formats 0.0, 0.1 and 1.0', () => {
    const zero: [string, string][] = [
      ['GNU.sparse.size', '6000'],
      ['GNU.sparse.numblocks', '2'],
      ['GNU.sparse.offset', '1000'],
      ['GNU.sparse.numbytes', '700'],
      ['GNU.sparse.offset', '5000'],
      ['GNU.sparse.numbytes', '300'],
    ];
    check(Buffer.concat([rawEntry({ name: 'sparse', content: stored, pax: zero }), after]));
    const one: [string, string][] = [
      ['GNU.sparse.name', 'sparse'],
      ['GNU.sparse.size', '6000'],
      ['GNU.sparse.map', '1000,700,5000,300'],
    ];
    check(Buffer.concat([rawEntry({ name: 'GNUSparseFile.1/sparse', content: stored, pax: one }), after]));
    const inline: [string, string][] = [
      ['GNU.sparse.major', '1'],
      ['GNU.sparse.minor', '0'],
      ['GNU.sparse.name', 'sparse'],
      ['GNU.sparse.realsize', '6000'],
    ];
    const content = Buffer.concat([padded(Buffer.from('2\n1000\n700\n5000\n300\n')), stored]);
    check(Buffer.concat([rawEntry({ name: 'x', content, pax: inline }), after]));
  });

  it('reads an inline map that takes several blocks', () => {
    const count = 400;
    const lines = [String(count)];
    for (let i = 0; i < count; i += 1) lines.push(String(i * 100), '10');
    const content = Buffer.concat([padded(Buffer.from(`${lines.join('\n')}\n`)), Buffer.alloc(count * 10, 7)]);
    const pax: [string, string][] = [
      ['GNU.sparse.major', '1'],
      ['GNU.sparse.minor', '0'],
      ['GNU.sparse.realsize', '50000'],
    ];
    for (const chunk of [100_000, 1000, 512]) {
      const entry = collectTar(rawTar([{ name: 'many', content, pax }]), chunk)[0]!;
      expect(entry.segments).toHaveLength(count);
      expect(entry.content.subarray(3990, 4010)).toEqual(Buffer.from([...Buffer.alloc(10), ...Buffer.alloc(10, 7)]));
    }
  });

  it('skips stored bytes that the map does not name', () => {
    const pax = [
      ['GNU.sparse.size', '10'],
      ['GNU.sparse.map', '3,2'],
    ] as const;
    const entries = collectTar(rawTar([{ name: 's', content: `ab${'x'.repeat(600)}`, pax }, { name: 'after' }]));
    expect(entries.map(({ name, content }) => [name, content.toString('latin1')])).toEqual([
      ['s', '\0\0\0ab\0\0\0\0\0'],
      ['after', ''],
    ]);
  });

  it('refuses maps that overlap, leave the file or are not stored', () => {
    const sparse = (map: string): Buffer =>
      rawTar([
        {
          name: 's',
          content: 'abcd',
          pax: [
            ['GNU.sparse.size', '100'],
            ['GNU.sparse.map', map],
          ],
        },
      ]);
    for (const map of ['0,2,1,2', '0,2,98,3', '0,5', '0', '5,2,0,2', '0,x']) expect(failure(sparse(map)).code).toBe('InvalidArgument');
  });
});

describe('hostile tars', () => {
  const cases: [string, Buffer, string, RegExp][] = [
    ['a wrong checksum', rawTar([{ name: 'a', checksum: 'wrong' }]), 'InvalidArgument', /byte 0: header checksum/],
    ['a size that is no number', rawTar([{ name: 'a', patch: { 124: '12345678z' } }]), 'InvalidArgument', /size is/],
    ['a size beyond 53 bits', rawTar([{ name: 'a', patch: { 124: base256(1n << 60n, 12) } }]), 'InvalidArgument', /53 bits/],
    ['a negative size', rawTar([{ name: 'a', patch: { 124: base256(-1n, 12) } }]), 'InvalidArgument', /size is -1/],
    ['a PAX size that is no number', rawTar([{ name: 'a', pax: [['size', '1e3']] }]), 'InvalidArgument', /PAX size/],
    ['a PAX header of 2 MiB', rawHeader({ name: 'x', type: 'x', size: 2 ** 21 }), 'ResourceExhausted', /extended header of/],
    ['a GNU name of 1 GiB', rawHeader({ name: 'x', type: 'L', size: 2 ** 30 }), 'ResourceExhausted', /extended header of/],
    [
      'endless PAX headers',
      Buffer.concat(Array.from({ length: 100 }, () => rawEntry({ name: 'x', type: 'x', content: '9 a=bcde\n' }))),
      'ResourceExhausted',
      /more than 32 extended headers/,
    ],
    ['a PAX record of length 0', rawTar([{ name: 'x', type: 'x', content: '0 a=b\n' }]), 'InvalidArgument', /no valid length/],
    ['a PAX record longer than its header', rawTar([{ name: 'x', type: 'x', content: '99 a=b\n' }]), 'InvalidArgument', /no valid length/],
    ['a NUL in a PAX path', rawTar([{ name: 'a', pax: [['path', 'a\0b']] }]), 'InvalidArgument', /NUL/],
    ['a type that no layer holds', rawTar([{ name: 'a', type: 'V' }]), 'Unimplemented', /type "V"/],
    ['an owner beyond 32 bits', rawTar([{ name: 'a', pax: [['uid', '4294967296']] }]), 'InvalidArgument', /owner/],
    ['a device beyond the kernel', rawTar([{ name: 'a', type: '3', devMajor: 5000 }]), 'InvalidArgument', /device 5000/],
    ['a link to nowhere', rawTar([{ name: 'a', type: '2' }]), 'InvalidArgument', /link target/],
    ['the end in a header', rawEntry({ name: 'a' }).subarray(0, 300), 'DataLoss', /ends here/],
    [
      'the end in content',
      rawEntry({ name: 'abc', content: 'x'.repeat(600) }).subarray(0, 700),
      'DataLoss',
      /read tar entry abc: at byte 700/,
    ],
    ['the end after a PAX header', rawEntry({ name: 'x', type: 'x', content: '9 a=bcde\n' }), 'DataLoss', /ends here/],
    ['a header after one zero block', Buffer.concat([Buffer.alloc(512), rawEntry({ name: 'a' })]), 'InvalidArgument', /single zero block/],
  ];
  it.each(cases)('%s ends in a clear error', (_, tar, code, message) => {
    const found = failure(tar);
    expect(found.code).toBe(code);
    expect(found.message).toMatch(message);
  });
});
