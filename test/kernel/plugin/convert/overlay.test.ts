/**
 * Random images against the real thing: GNU tar unpacks each layer into a directory, overlayfs stacks the directories, and the kernel's
 * view of our device must equal its view of that stack. Not compared, because overlayfs has its own: link counts (it counts names that
 * upper layers hide) and inode numbers (only which names share one).
 */
import { mkdirSync } from 'node:fs';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { errnoOf } from '../../../../plugin/base/errors.ts';
import { ALGORITHM } from '../../../../plugin/image/zfile/codec.ts';
import { MS_RDONLY, mount } from '../../../../plugin/kernel/mount.ts';
import { image, rawEntryOf, withPicks } from '../../../property/plugin/convert/images.ts';
import { type ModelEntry, ModelTree } from '../../../property/plugin/convert/model.ts';
import { forTime } from '../../../support/for-time.ts';
import { run } from '../../../support/process.ts';
import { Scratch } from '../../../support/scratch.ts';
import { buildLayers, writeDevice } from '../../../unit/plugin/convert/build/converted-device.ts';
import { rawTar } from '../../../unit/plugin/image/tar/raw-tar.ts';
import { listMounted, makeWhiteout, setXattr } from './mounted-tree.ts';

const TIME_MS = Number(process.env.OBD_PROPERTY_MS ?? 20_000);

/** VFS_CAP_REVISION_2 with cap_net_raw; the kernel refuses what is not well formed. */
const CAPABILITY = Buffer.from('0100000200200000000000000000000000000000', 'hex').toString('latin1');

/** Keeps what a layer directory under overlayfs can express and the scratch file system can store. */
class OverlayLayers {
  private readonly model = new ModelTree();
  private listed = new Map<string, ModelEntry['type']>();
  private accepted: ModelEntry[] = [];

  layer(entries: readonly ModelEntry[]): ModelEntry[] {
    this.model.beginLayer();
    this.listed = new Map();
    this.accepted = [];
    for (const one of entries) this.offer(storable(withPicks(one, this.model.paths())));
    return this.accepted;
  }

  private offer(one: ModelEntry): void {
    const key = one.path.join('/');
    if (one.path.length === 0 && one.type !== 'directory') return;
    // A mark beside an entry of the same name, and a link to another layer's file, have no form in a directory.
    if (one.type === 'whiteout' && (this.listed.has(key) || [...this.listed.keys()].some((path) => path.startsWith(`${key}/`)))) return;
    if (one.type !== 'whiteout' && this.listed.get(key) === 'whiteout') return;
    if (one.type === 'hardlink' && (!this.isOwnFile(one.targetPath) || one.targetPath.join('/') === key)) return;
    // Replacing what this layer listed already leaves other marks behind than a layer made from a directory would hold.
    const before = this.listed.get(key);
    if (one.type !== 'opaque' && before !== undefined && (one.type !== 'directory' || before !== 'directory')) return;
    const parents = one.type === 'opaque' ? one.path.length : one.path.length - 1;
    for (let depth = 1; depth <= parents; depth += 1) {
      const path = one.path.slice(0, depth);
      const name = path.join('/');
      if (this.listed.get(name) === 'whiteout') return;
      if (!this.listed.has(name)) {
        const kept = this.model.attributesAt(path);
        if (!this.accept({ ...one, type: 'directory', path, mode: 0o755, xattrs: {}, ...kept })) return;
      }
    }
    // GNU tar ignores what a link's header says of its file; in real layers it says what the file's own did.
    this.accept(one.type === 'hardlink' ? { ...one, ...this.model.attributesAt(one.targetPath) } : one);
  }

  private isOwnFile(path: readonly string[]): boolean {
    const type = this.listed.get(path.join('/'));
    return type === 'file' || type === 'hardlink';
  }

  private accept(one: ModelEntry): boolean {
    if (!this.model.apply(one)) return false;
    this.accepted.push(one);
    if (one.type !== 'opaque') this.listed.set(one.path.join('/'), one.type);
    return true;
  }
}

function storable(one: ModelEntry): ModelEntry {
  const isPlain = one.type === 'file' || one.type === 'directory';
  const xattrs: Record<string, string> = {};
  for (const [name, value] of Object.entries(one.xattrs)) {
    if (name.startsWith('user.') && isPlain) xattrs[name] = value.slice(0, 3500);
    if (name.startsWith('trusted.') && one.type !== 'hardlink') xattrs[name] = value.slice(0, 3500);
    if (name === 'security.capability' && one.type === 'file') xattrs[name] = CAPABILITY;
  }
  // GNU tar writes targets through; a link of 4095 bytes is the kernel's limit on both sides.
  return { ...one, xattrs };
}

async function unpack(directory: string, entries: readonly ModelEntry[], scratch: Scratch): Promise<void> {
  await mkdir(directory);
  const bytesOf = (path: readonly string[]): Buffer => Buffer.from(`${directory}/${path.join('/')}`, 'latin1');
  // Before the unpacking, which sets the times of directories at its end.
  for (const one of entries.filter(({ type }) => type === 'whiteout')) {
    mkdirSync(bytesOf(one.path.slice(0, -1)), { recursive: true });
    makeWhiteout(bytesOf(one.path));
  }
  const objects = entries.filter(({ type }) => type !== 'whiteout' && type !== 'opaque');
  const tar = await scratch.file('layer.tar', rawTar(objects.map(rawEntryOf)));
  await run(
    'tar',
    ['-xpf', tar, '-C', directory, '--numeric-owner', '--xattrs', '--xattrs-include=*', '--same-owner', '--delay-directory-restore'],
    {
      env: { ...process.env, LC_ALL: 'C' },
    },
  );
  for (const one of entries.filter(({ type }) => type === 'opaque'))
    setXattr(bytesOf(one.path), 'trusted.overlay.opaque', Buffer.from('y'));
}

describe('random images, mounted by the kernel', () => {
  it('show what overlayfs shows of the unpacked layers, on every prefix, and satisfy fsck.erofs', async () => {
    await using scratch = await Scratch.create('overlay');
    const store = await scratch.dir('store');
    // Keeps every time and attribute, whatever lies below the temporary directory.
    mount({ source: 'tmpfs', target: store, fsType: 'tmpfs', flags: 0, options: 'size=1g' });
    let count = 0;
    await forTime(
      TIME_MS,
      fc.asyncProperty(image, fc.constantFrom(4096, 65_536), async (layers, blockSizeBytes) => {
        count += 1;
        const place = await scratch.dir('store', `case-${count}`);
        const source = new OverlayLayers();
        const accepted = layers.map((entries) => source.layer(entries));
        const built = await buildLayers(
          accepted.map((entries) => rawTar(entries.map(rawEntryOf))),
          { compression: { algorithm: ALGORITHM.zstd, blockSizeBytes }, threads: 1 },
        );
        const lowers: string[] = [];
        for (let i = 0; i < accepted.length; i += 1) {
          lowers.unshift(`${place}/l${i}`);
          await unpack(`${place}/l${i}`, accepted[i]!, scratch);
          await compareMounts(place, i, lowers, built);
        }
        await run('rm', ['-rf', place]);
      }),
      { isEnough: () => count > 3 },
    );
  });
});

async function compareMounts(
  place: string,
  top: number,
  lowers: readonly string[],
  built: Awaited<ReturnType<typeof buildLayers>>,
): Promise<void> {
  // Not on the tmpfs, which EROFS does not mount files of.
  const device = `${place.replace('/store/', '/')}-device-${top}`;
  writeDevice(
    built.slice(0, top + 1).map((layer) => layer.blob),
    built[top]!.statistics.deviceBytes,
    device,
  );
  await run('fsck.erofs', ['--extract', device]);
  const ours = `${place}/ours-${top}`;
  const theirs = `${place}/theirs-${top}`;
  await mkdir(ours);
  await mkdir(theirs);
  await writeFile(`${place}/empty`, '');
  mount({ source: device, target: ours, fsType: 'erofs', flags: MS_RDONLY, options: '' });
  // overlayfs wants two lower directories at least.
  await mkdir(`${place}/none-${top}`);
  mount({
    source: 'overlay',
    target: theirs,
    fsType: 'overlay',
    flags: MS_RDONLY,
    options: `lowerdir=${[...lowers, `${place}/none-${top}`].join(':')}`,
  });
  try {
    expect(comparable(ours)).toEqual(comparable(theirs, isMark));
  } finally {
    await run('umount', [ours, theirs]);
    await rm(device);
  }
}

/** overlayfs lists its own marks where a directory comes from one layer; looked at, they are not there. */
const isMark = (error: unknown): boolean => errnoOf(error) === 'ENOENT';

function comparable(root: string, maySkip?: (error: unknown) => boolean): Record<string, unknown> {
  const groups = new Map<bigint, string>();
  const found: Record<string, unknown> = {};
  for (const [path, object] of [...listMounted(root, maySkip)].sort(([a], [b]) => (a < b ? -1 : 1))) {
    // Nobody listed the root: its attributes are then those of a fresh directory.
    if (path === '.') continue;
    if (!groups.has(object.ino)) groups.set(object.ino, path);
    const { links: _, ino, ...rest } = object;
    found[path] = { ...rest, mtimeNs: String(rest.mtimeNs), sameAs: object.type === 'dir' ? path : groups.get(ino) };
  }
  return found;
}
