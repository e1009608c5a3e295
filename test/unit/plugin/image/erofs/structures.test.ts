import { describe, expect, it } from 'vitest';
import { DeviceSpace, ROOT_END } from '../../../../../plugin/image/erofs/device-space.ts';
import { cutDirectory, decodeDirents, encodeDirents } from '../../../../../plugin/image/erofs/directory.ts';
import { decodeDevice, decodeInode, encodeDevice, encodeInode, encodeSuperblock } from '../../../../../plugin/image/erofs/format.ts';
import { ErofsReader } from '../../../../../plugin/image/erofs/reader.ts';
import { restoreTree } from '../../../../../plugin/image/erofs/restore-tree.ts';
import { decodeXattrs, encodeXattrs, XattrTable } from '../../../../../plugin/image/erofs/xattrs.ts';

describe('inodes', () => {
  it('keep their fields, times before 1970 and sizes beyond 4 GiB too', () => {
    const fields = {
      layout: 2,
      xattrBytes: 12 + 4 * 7,
      mode: 0o104755,
      sizeBytes: 2 ** 40 + 5,
      union: 0xffff_fffe,
      uid: 4_294_967_294,
      gid: 70_000,
      mtimeSeconds: -5,
      mtimeNanoseconds: 999_999_999,
      linkCount: 3,
    };
    for (const mtimeSeconds of [-5, -(2 ** 33), 0, 2 ** 34 + 1]) {
      const buffer = Buffer.alloc(80, 0xee);
      encodeInode(buffer, 8, { ...fields, mtimeSeconds }, 2 ** 39 + 3);
      expect(decodeInode(buffer, 8)).toEqual({ ...fields, mtimeSeconds, isExtended: true });
      expect(buffer.readUInt32LE(8 + 20)).toBe(3);
    }
  });

  it('hold device numbers as the kernel does', () => {
    expect(encodeDevice(8, 0)).toBe(0x800);
    expect(encodeDevice(10, 1000)).toBe(0x300ae8);
    for (const [major, minor] of [
      [0, 0],
      [4095, 1_048_575],
      [259, 5],
    ] as const)
      expect(decodeDevice(encodeDevice(major, minor))).toEqual({ major, minor });
  });
});

describe('extended attributes', () => {
  it('come back as they went in, in any order', () => {
    const set = new Map([
      ['user.k', Buffer.from('v')],
      ['trusted.long', Buffer.alloc(3000, 1)],
      ['security.capability', Buffer.alloc(20)],
      ['system.posix_acl_access', Buffer.from('acl')],
      ['user.\xff', Buffer.alloc(0)],
    ]);
    const bytes = encodeXattrs(set);
    expect(bytes.length % 4).toBe(0);
    const decoded = decodeXattrs(bytes, 'x');
    expect([...decoded.keys()].sort()).toEqual([...set.keys()].sort());
    for (const [name, value] of set) expect(Buffer.from(decoded.get(name)!).equals(value)).toBe(true);
    expect(encodeXattrs(new Map([...set].reverse())).equals(bytes)).toBe(true);
  });

  it('are kept once for all inodes that have them', () => {
    const table = new XattrTable();
    const label = encodeXattrs(new Map([['security.selinux', Buffer.from('label')]]));
    expect(table.intern(Buffer.alloc(0), 'x')).toBe(0);
    expect(table.intern(label, 'x')).toBe(table.intern(Buffer.from(label), 'y'));
    expect(table.bytesOf(1).equals(label)).toBe(true);
    expect(() => table.intern(Buffer.alloc(262_160), 'big')).toThrow(/store extended attributes big: .* at most 262148 fit/);
  });
});

describe('directories', () => {
  it('are cut into blocks whose entries come back', () => {
    const names = Array.from({ length: 900 }, (_, i) => `name-${String(i).padStart(4, '0')}${'x'.repeat(i % 50)}`);
    const starts = cutDirectory(names, 4096);
    const found: string[] = [];
    starts.forEach((start, i) => {
      const entries = names.slice(start, starts[i + 1]).map((name, k) => ({ name, nid: 2 ** 38 + start + k, type: 1 }));
      const block = Buffer.alloc(4096, 0xff);
      encodeDirents(block, 0, 4096, entries);
      expect(decodeDirents(block, 0, 4096, 'd')).toEqual(entries);
      found.push(...entries.map((entry) => entry.name));
    });
    expect(found).toEqual(names);
  });

  it('are refused when names lie outside or are impossible', () => {
    const good = Buffer.alloc(4096);
    encodeDirents(good, 0, 4096, [
      { name: '.', nid: 1, type: 2 },
      { name: 'a', nid: 2, type: 1 },
    ]);
    for (const [at, value] of [
      [8, 13],
      [8, 0],
      [8, 0x1000],
      [20, 0xffff],
      [20, 3],
    ] as const) {
      const bad = Buffer.from(good);
      bad.writeUInt16LE(value, at);
      expect(() => decodeDirents(bad, 0, 4096, 'd')).toThrow(/read erofs directory d/);
    }
    const slash = Buffer.from(good);
    slash[24] = 0x2f;
    expect(() => decodeDirents(slash, 0, 4096, 'd')).toThrow(/impossible name/);
  });
});

describe('devices', () => {
  it('end at 16 TiB with a clear error', () => {
    const space = new DeviceSpace();
    expect(space.allocate(5000)).toBe(ROOT_END);
    expect(space.allocate(1)).toBe(ROOT_END + 8192);
    expect(() => space.allocate(2 ** 44)).toThrow(/ResourceExhausted|format can address/);
  });

  it('of other builders, without magic or with a wrong checksum are not built upon', () => {
    const device = Buffer.alloc(8192);
    const read = (offset: number, length: number): Buffer => Buffer.from(device.subarray(offset, offset + length));
    expect(() => new ErofsReader(read)).toThrow(/the magic is missing/);
    encodeSuperblock(device, { rootNid: 36, inodeCount: 1, blockCount: 2, uuid: Buffer.alloc(16), volumeName: 'other' });
    expect(() => restoreTree(read)).toThrow(/FailedPrecondition|is named "other"/);
    device[3000] = 1;
    expect(() => new ErofsReader(read)).toThrow(/checksum/);
    encodeSuperblock(device, { rootNid: 36, inodeCount: 1, blockCount: 2, uuid: Buffer.alloc(16), volumeName: 'other' });
    device.writeUInt32LE(1, 1024 + 80);
    device.writeUInt32LE(0, 1024 + 8);
    expect(() => new ErofsReader(read)).toThrow(/features 0x1/);
  });
});
