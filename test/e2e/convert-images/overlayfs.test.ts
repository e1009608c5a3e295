/**
 * Images of Debian packages, converted by us, against what containerd's overlayfs snapshotter unpacks of the originals: on every prefix of
 * layers `fsck.erofs` is clean and the mounted trees are equal in path, type, mode, owner, size, time, attributes, link groups and content.
 *
 * Inherent differences, each checked for what it is:
 * - The time of a directory that a layer changes something in without listing it: containerd leaves the time of unpacking, which differs with
 *   every host; we keep the time that the layers below gave it. One that no layer lists at all has the time of
 *   unpacking there, and 0 with us.
 * - The time of the root: containerd passes over a layer's entry for the root, so that its time is that of unpacking; ours is the entry's.
 * - Attributes `trusted.*`: containerd sets none from a layer ("admin attributes from archive not supported"); we keep them, not compared.
 * - Link counts: overlayfs counts names that upper layers hide. Which names are one file is compared instead.
 */
import { createReadStream, readFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { errnoOf } from '../../../plugin/base/errors.ts';
import { convertLayers } from '../../../plugin/convert/build/convert-layers.ts';
import { MS_RDONLY, mount } from '../../../plugin/kernel/mount.ts';
import { chainIdOf } from '../../../plugin/snapshotter/chain-id.ts';
import { listMounted, type MountedObject } from '../../kernel/plugin/convert/mounted-tree.ts';
import { Containerd } from '../../support/containerd.ts';
import { DockerRegistry } from '../../support/docker-registry.ts';
import { type Image, pushImage } from '../../support/oci-image.ts';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import { SnapshotView } from '../../support/snapshot-view.ts';
import { writeDevice } from '../../unit/plugin/convert/build/converted-device.ts';
import { REAL_IMAGES, realImage } from './real-images.ts';

/** One image on a machine whose cores are all taken; idle it takes a tenth. The images themselves may have to be downloaded. */
const LIMIT_MS = 280_000;

let scratch: Scratch;
let registry: DockerRegistry;
let containerd: Containerd;
const images = new Map<string, Image>();

beforeAll(async () => {
  for (const source of REAL_IMAGES) images.set(source.name, await realImage(source));
  scratch = await Scratch.create('convert-images');
  registry = await DockerRegistry.start();
  containerd = await Containerd.start();
}, 1_200_000);

afterAll(async () => {
  await containerd?.[Symbol.asyncDispose]();
  await registry?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

test.each(REAL_IMAGES)('$name is what overlayfs shows, with any number of layers', { timeout: LIMIT_MS }, async ({ name, loneFiles }) => {
  const image = images.get(name)!;
  expect(image.layers.length).toBeGreaterThanOrEqual(3);
  const { reference } = await pushImage(registry, `real/${name}`, '1', image);
  await containerd.ctr(['images', 'pull', '--plain-http', '--snapshotter', 'overlayfs', reference], { timeoutMs: LIMIT_MS });
  const built = await convert(name, image);
  const diffIds = image.layers.map(({ diffId }) => diffId);
  let below: Tree = new Map();
  for (let count = 1; count <= built.length; count += 1) {
    const device = scratch.join(`${name}-${count}`);
    writeDevice(
      built.slice(0, count).map(({ blob }) => blob),
      built[count - 1]!.deviceBytes,
      device,
    );
    const isTop = count === built.length;
    // Extracting reads all content, which the comparison does too.
    await run('fsck.erofs', [...(isTop ? ['--extract'] : []), device]);
    const target = await scratch.dir(`mount-${name}-${count}`);
    mount({ source: device, target, fsType: 'erofs', flags: MS_RDONLY, options: '' });
    const ours = treeAt(target);
    await run('umount', [target]);
    await run('rm', [device]);
    const theirs = await unpackedTree(chainIdOf(diffIds.slice(0, count)));
    theirs.get('.')!.mtime = ours.get('.')?.mtime;
    if (isTop) takeTimesOfUnlisted(loneFiles, { below, ours, theirs });
    expect(differences(theirs, ours)).toEqual([]);
    expect(ours.size).toBeGreaterThan(500);
    below = ours;
  }
});

async function convert(name: string, image: Image): Promise<{ blob: Buffer; deviceBytes: number }[]> {
  const stagingDirectory = await scratch.dir(`staging-${name}`);
  const sources = image.layers.map(({ digest, diffId, blob }, index) => ({
    name: `layer ${index}`,
    digest,
    diffId,
    open: () => createReadStream(blob as string, { highWaterMark: 1024 * 1024 }),
  }));
  const built: { blob: Buffer; deviceBytes: number }[] = [];
  for await (const layer of convertLayers(sources, { stagingDirectory, signal: AbortSignal.timeout(LIMIT_MS) })) {
    expect(layer.warnings).toEqual([]);
    built.push({ blob: readFileSync(layer.path), deviceBytes: layer.statistics.deviceBytes });
  }
  await run('rm', ['-r', stagingDirectory]);
  return built;
}

type Tree = Map<string, Record<string, unknown>>;

async function unpackedTree(chainId: string): Promise<Tree> {
  await using view = await SnapshotView.mount(containerd, 'overlayfs', chainId);
  // overlayfs lists its own marks where a directory comes from one layer; looked at, they are not there.
  return treeAt(view.path, (error) => errnoOf(error) === 'ENOENT');
}

/** Everything that is compared, by path; of files with several names, `sameAs` is the first. */
function treeAt(root: string, maySkip?: (error: unknown) => boolean): Tree {
  const groups = new Map<bigint, string>();
  const tree: Tree = new Map();
  const byPath = ([a]: [string, MountedObject], [b]: [string, MountedObject]): number => (a < b ? -1 : 1);
  for (const [path, { links: _, ino, mtimeNs, xattrs, ...rest }] of [...listMounted(root, maySkip)].sort(byPath)) {
    if (rest.type !== 'dir' && !groups.has(ino)) groups.set(ino, path);
    const compared = Object.entries(xattrs).filter(([name]) => !name.startsWith('trusted.'));
    const attributes = JSON.stringify(compared.sort());
    tree.set(path, { ...rest, mtime: String(mtimeNs), xattrs: attributes, sameAs: rest.type === 'dir' ? path : groups.get(ino) });
  }
  return tree;
}

/** One line for each field that differs. */
function differences(expected: Tree, actual: Tree): string[] {
  const lines: string[] = [];
  for (const path of new Set([...expected.keys(), ...actual.keys()])) {
    const [want, have] = [expected.get(path), actual.get(path)];
    if (want === undefined || have === undefined) lines.push(`${path}: ${want === undefined ? 'not expected' : 'missing'}`);
    else
      for (const field of Object.keys(want))
        if (want[field] !== have[field]) lines.push(`${path}: ${field} ${have[field]}, not ${want[field]}`);
  }
  return lines;
}

/** The directories that the top layer changes without listing them: ours keep their time, and new ones have 0. */
function takeTimesOfUnlisted(loneFiles: readonly string[], { below, ours, theirs }: Record<'below' | 'ours' | 'theirs', Tree>): void {
  for (const file of loneFiles) {
    const names = file.split('/');
    for (let depth = 1; depth < names.length; depth += 1) {
      const directory = names.slice(0, depth).join('/');
      const kept = below.get(directory)?.mtime ?? '0';
      expect(`${directory} ${ours.get(directory)?.mtime}`).toBe(`${directory} ${kept}`);
      theirs.get(directory)!.mtime = kept;
    }
  }
}
