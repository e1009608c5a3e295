/**
 * The reference's own layer tars, built by us: on every prefix of layers `fsck.erofs` is clean and the kernel shows what the listing of
 * the reference's device says. The differences are listed here, each with its reason.
 */
import { lchown, lstat, mkdir, rename } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { MS_RDONLY, mount } from '../../../../plugin/kernel/mount.ts';
import { readFixture } from '../../../support/fixtures.ts';
import { run } from '../../../support/process.ts';
import { Scratch } from '../../../support/scratch.ts';
import { buildLayers, writeDevice } from '../../../unit/plugin/convert/build/converted-device.ts';
import { listMounted, type MountedObject } from './mounted-tree.ts';

interface ListedFixture {
  path?: string;
  path_b64?: string;
  type: string;
  mode: string;
  uid: number;
  gid: number;
  mtime: number;
  size?: number;
  nlink?: number;
  hardlink_group?: number;
  sha256?: string;
  target?: string;
  rdev?: [number, number];
  xattrs_b64?: Record<string, string>;
}

/** One object as comparable text. */
function describeMounted(object: MountedObject): Record<string, unknown> {
  return {
    type: object.type,
    mode: object.mode,
    owner: `${object.uid}:${object.gid}`,
    mtime: Number(object.mtimeNs / 1_000_000_000n),
    links: object.type === 'dir' ? 0 : object.links,
    value: object.value,
    xattrs: object.xattrs,
  };
}

function describeFixture(listed: ListedFixture): [string, Record<string, unknown>] {
  const path = listed.path === undefined ? Buffer.from(listed.path_b64!, 'base64') : Buffer.from(listed.path, 'utf8');
  const value =
    listed.sha256 ?? listed.rdev?.join(':') ?? (listed.target === undefined ? '' : Buffer.from(listed.target).toString('latin1'));
  const described = {
    type: listed.type,
    mode: Number.parseInt(listed.mode, 8),
    owner: `${listed.uid}:${listed.gid}`,
    mtime: listed.mtime,
    links: listed.type === 'dir' ? 0 : (listed.nlink ?? 1),
    value,
    xattrs: listed.xattrs_b64 ?? {},
  };
  return [path.toString('latin1'), described];
}

/** Applies what we do differently to the reference's listing. */
type Deliberate = (expected: Map<string, Record<string, unknown>>) => void;

async function compare(
  mode: 'full' | 'index-only',
  tars: string[],
  listings: (string | undefined)[],
  deliberate: Deliberate,
): Promise<void> {
  await using scratch = await Scratch.create('fixtures');
  const sources = tars.map(readFixture);
  const layers = await buildLayers(sources, { mode });
  expect(new Set(layers.map((layer) => layer.kind))).toEqual(new Set([mode === 'full' ? 'full' : 'index']));
  for (let count = 1; count <= layers.length; count += 1) {
    const device = scratch.join(`device-${count}`);
    writeDevice(
      layers.slice(0, count).map((layer, i) => ({ built: layer, source: sources[i]! })),
      layers[count - 1]!.statistics.deviceBytes,
      device,
    );
    await run('fsck.erofs', ['--extract', device]);
    const listing = listings[count - 1];
    if (listing === undefined) continue;
    const target = scratch.join(`mount-${count}`);
    await mkdir(target);
    mount({ source: device, target, fsType: 'erofs', flags: MS_RDONLY, options: '' });
    const expected = new Map((JSON.parse(readFixture(listing).toString('utf8')) as ListedFixture[]).map(describeFixture));
    deliberate(expected);
    const found = new Map([...listMounted(target)].map(([path, object]) => [path, describeMounted(object)]));
    expect(Object.fromEntries([...found].sort())).toEqual(Object.fromEntries([...expected].sort()));
  }
}

describe.each(['full', 'index-only'] as const)('fixtures in %s mode, mounted by the kernel', (mode) => {
  it('l1..l3 look like the reference on ext4', async () => {
    await compare(
      mode,
      ['oci/l1.tar.gz', 'oci/l2.tar', 'oci/l3.tar.gz'],
      ['listing/native-l1.json', 'listing/native-l1+l2.json', 'listing/native-l1+l2+l3.json'],
      (expected) => {
        // A directory of ext4, not of the image.
        expected.delete('lost+found');
        // An overlayfs mark inside a layer is not passed on: overlayfs would act upon it.
        delete (expected.get('meta/xdir')!.xattrs as Record<string, string>)['trusted.overlay.opaque'];
      },
    );
  });

  it('e1..e3 look like the reference on EROFS, where it is right', async () => {
    await compare(
      mode,
      ['oci/small/e1.tar', 'oci/small/e2.tar', 'oci/small/e3.tar'],
      [undefined, undefined, 'listing/erofs-e1+e2+e3.json'],
      (expected) => {
        // The reference leaves a root of mode 0777 and loses the times of directories that upper layers do not list.
        expected.get('.')!.mode = 0o755;
        for (const [path, mtime] of [
          ['a', 1_600_000_001],
          ['a/b', 1_600_000_003],
          ['a/b/c', 1_600_000_005],
          ['opq', 1_600_000_003],
          ['rep', 1_600_000_003],
        ] as const) {
          expected.get(path)!.mtime = mtime;
        }
        // It does not lower the link count when one of two names is replaced.
        expected.get('a/hard-one')!.links = 1;
      },
    );
  });
});

it('links that brought attributes of users can be changed and moved in a container', async () => {
  await using scratch = await Scratch.create('copy-up');
  const [layer] = await buildLayers([readFixture('oci/odd/user-xattr-on-symlink.tar')]);
  const device = scratch.join('device');
  writeDevice([layer!.blob], layer!.statistics.deviceBytes, device);
  const [lower, upper, work, merged] = await Promise.all(['lower', 'upper', 'work', 'merged'].map((name) => scratch.dir(name)));
  mount({ source: device, target: lower!, fsType: 'erofs', flags: MS_RDONLY, options: '' });
  mount({
    source: 'overlay',
    target: merged!,
    fsType: 'overlay',
    flags: 0,
    options: `lowerdir=${lower},upperdir=${upper},workdir=${work}`,
  });
  await lchown(`${merged}/sx`, 5, 5);
  await rename(`${merged}/sx`, `${merged}/moved`);
  expect((await lstat(`${merged}/moved`)).uid).toBe(5);
  expect((await lstat(`${merged}/moved`)).isSymbolicLink()).toBe(true);
});
