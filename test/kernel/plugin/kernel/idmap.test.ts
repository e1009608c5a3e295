/** Whether overlayfs takes idmapped lowers on this kernel: the probe's answer for file systems that can and cannot, and what it leaves. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { detachMounts, mount } from '../../../../plugin/kernel/mount.ts';
import { checkIdmappedLowers, listMountPoints } from '../../../../plugin/kernel/mount-device.ts';

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'obd-idmap-'));
});
afterEach(() => {
  detachMounts(directory);
  rmSync(directory, { recursive: true, force: true });
});

const probe = (): Promise<void> => checkIdmappedLowers(join(directory, 'probe'), AbortSignal.timeout(20_000));

test('a file system with idmapped mounts passes, and nothing is left behind', async () => {
  await probe();
  expect(readdirSync(directory)).toEqual([]);
  expect((await listMountPoints()).filter((path) => path.startsWith(directory))).toEqual([]);
});

test('one without them is refused, naming the option and the step', async () => {
  mount({ source: 'none', target: directory, fsType: 'ramfs', flags: 0, options: '' });
  await expect(probe()).rejects.toMatchObject({
    code: 'FailedPrecondition',
    message: expect.stringMatching(/snapshotter\.remap_ids: mount_setattr of .*EINVAL.*no idmapped mounts/),
  });
  expect(readdirSync(directory)).toEqual([]);
});
