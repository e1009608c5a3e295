/** Layers that an index must not take at their word: dirty padding, sparse files, damage, bombs; and what a failed scan leaves behind. */
import { randomFillSync } from 'node:crypto';
import { gzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { AppError, isAppError } from '../../../../../plugin/base/errors.ts';
import type { SourceLayer } from '../../../../../plugin/convert/build/options.ts';
import { ErofsReader } from '../../../../../plugin/image/erofs/reader.ts';
import { readFixture } from '../../../../support/fixtures.ts';
import { rawTar } from '../../image/tar/raw-tar.ts';
import { buildLayers, conversionFailure, deviceReader, sourceOf } from './converted-device.ts';
import { listTree } from './listed-tree.ts';

const ROOT = 36;

/** Bytes of the device behind the end of a file, up to the end of its block. */
function behindEnd(read: (offset: number, length: number) => Buffer, name: string): Buffer {
  const reader = new ErofsReader(read);
  const entry = [...reader.directory(reader.inode(ROOT))].find((one) => one.name === name)!;
  const inode = reader.inode(entry.nid);
  const end = inode.union * 4096 + inode.sizeBytes;
  return read(end, 4096 - (end % 4096));
}

describe('odd layers in index-only mode', () => {
  it('stores the end of a file itself when the tar does not pad it with zeros', async () => {
    const tar = rawTar([
      { name: 'dirty', content: 'x'.repeat(5000) },
      { name: 'clean', content: 'y'.repeat(5000) },
    ]);
    tar.fill(0xee, 512 + 5000, 512 + 5120);
    for (const source of [tar, gzipSync(tar)]) {
      const [built] = await buildLayers([source], { mode: 'index-only' });
      expect(built!.kind).toBe('index');
      expect(built!.statistics.dataBytes).toBe(512);
      const read = deviceReader([{ built: built!, source }]);
      for (const name of ['dirty', 'clean']) expect(behindEnd(read, name).every((byte) => byte === 0)).toBe(true);
      const [full] = await buildLayers([tar]);
      expect(listTree(read)).toEqual(listTree(deviceReader([full!.blob])));
    }
  });

  it('maps sparse files piece by piece, and copies those whose pieces lie in no sectors', async () => {
    const pieces = (first: number, second: number): string => `2\n${first}\n4096\n${second}\n700\n`;
    const sparse = (name: string, first: number, second: number) => {
      const map = Buffer.alloc(512);
      map.write(pieces(first, second), 'latin1');
      const size = String(second + 700);
      return {
        name,
        content: Buffer.concat([map, randomFillSync(Buffer.alloc(4796))]),
        pax: [
          ['GNU.sparse.major', '1'],
          ['GNU.sparse.minor', '0'],
          ['GNU.sparse.name', name],
          ['GNU.sparse.realsize', size],
        ] as const,
      };
    };
    const tar = rawTar([sparse('aligned', 8192, 1_000_448), sparse('askew', 8192, 1_000_001), { name: 'last', content: 'z'.repeat(3000) }]);
    const [built] = await buildLayers([gzipSync(tar)], { mode: 'index-only' });
    const [full] = await buildLayers([tar]);
    const read = deviceReader([{ built: built!, source: gzipSync(tar) }]);
    expect(listTree(read)).toEqual(listTree(deviceReader([full!.blob])));
    expect(built!.statistics.dataBytes).toBeGreaterThan(4096);
    expect(built!.statistics.dataBytes).toBeLessThan(20_000);
    expect(behindEnd(read, 'aligned').every((byte) => byte === 0)).toBe(true);
  });

  it('shows every odd layer of the fixtures as full mode does, or refuses it too', async () => {
    for (const name of [
      'posix-acl',
      'quirks',
      'gnu-sparse-type-S',
      'incompressible',
      'empty',
      'no-end-of-archive',
      'trailing-garbage',
      'whiteout-only',
      'user-xattr-on-symlink',
      'unknown-xattr-namespace',
      'symlink-target-cleaned',
      'truncated-mid-file',
      'dotdot-path',
      'bad-header-checksum',
      'hardlink-missing-target',
      'parent-is-symlink',
    ]) {
      const tar = readFixture(`oci/odd/${name}.tar`);
      const outcome = (mode: 'full' | 'index-only') =>
        buildLayers([tar], { mode }).then(
          (layers) => listTree(deviceReader([{ built: layers[0]!, source: tar }])),
          (error: unknown) => (isAppError(error) ? `${error.code}: ${error.message}` : Promise.reject(error)),
        );
      expect(await outcome('index-only'), name).toEqual(await outcome('full'));
    }
  });
});

const failure = (layer: Partial<SourceLayer> & Pick<SourceLayer, 'open'>, signal = new AbortController().signal): Promise<AppError> => {
  const good: SourceLayer = { name: 'a good layer', open: sourceOf(readFixture('oci/l1.tar.gz')) };
  return conversionFailure([{ name: 'the layer', ...layer }, good], { signal, mode: 'index-only' });
};

describe('bad input in index-only mode', () => {
  const tar = rawTar([{ name: 'dir/file', content: randomFillSync(Buffer.alloc(100_000)) }]);

  it('is refused when the gzip is cut anywhere, or damaged anywhere', async () => {
    const packed = gzipSync(tar);
    for (const cut of [5, 12, 3000, packed.length - 9, packed.length - 1]) {
      const error = await failure({ open: sourceOf(packed.subarray(0, cut)) });
      expect(error.code).toBe('DataLoss');
      expect(error.message).toMatch(/^decompress the layer: the gzip stream is damaged/);
    }
    // Zeros behind the stream are padding, and make it a layer for full mode; anything else no reader takes.
    const garbage = Buffer.concat([packed, Buffer.from('garbage')]);
    expect((await failure({ open: sourceOf(garbage) })).code).toBe('DataLoss');
    for (const at of [packed.length - 6, packed.length - 2]) {
      const damaged = Buffer.from(packed);
      damaged[at]! ^= 1;
      expect((await failure({ open: sourceOf(damaged) })).code).toBe('DataLoss');
    }
  });

  it('is refused when the tar in it is cut', async () => {
    const error = await failure({ open: sourceOf(gzipSync(tar.subarray(0, 3000))) });
    expect(error.code).toBe('DataLoss');
    expect(error.message).toMatch(/^convert the layer: .*the archive ends here/);
  });

  it('is refused when the digest or the diffID is another', async () => {
    const packed = gzipSync(tar);
    const wrong = sha256('something else');
    expect((await failure({ open: sourceOf(packed), digest: wrong })).message).toMatch(/digest is sha256:.*, expected sha256:/);
    expect((await failure({ open: sourceOf(packed), digest: sha256(packed), diffId: wrong })).message).toMatch(/diffID is sha256:/);
  });

  it('is refused when it decompresses beyond the limit', async () => {
    const bomb = gzipSync(Buffer.alloc(2 ** 26));
    expect(await failure({ open: sourceOf(bomb) })).toMatchObject({ code: 'ResourceExhausted', subject: 'the layer' });
  });

  it('passes on the error of its source, and the reason of an abort', async () => {
    const lost = new AppError('Unavailable', { op: 'read', subject: 'registry', what: 'reset' });
    const open = async function* () {
      yield gzipSync(tar).subarray(0, 50);
      throw lost;
    };
    expect((await failure({ open })).code).toBe('Unavailable');
    const controller = new AbortController();
    const endless = async function* () {
      for (let i = 0; ; i += 1) {
        if (i === 10) controller.abort(new AppError('Canceled', { op: 'convert', subject: 'image', what: 'the user asked for it' }));
        yield rawTar([{ name: `file-${i}`, content: 'x'.repeat(100_000) }]).subarray(0, -1024);
      }
    };
    expect((await failure({ open: endless }, controller.signal)).code).toBe('Canceled');
  });
});
