/** The FUSE server with the real kernel: devices of the reference's layers, read and mounted through a connection of their own. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { promisify } from 'node:util';
import { afterEach, describe, expect, it } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { blobsOf, DeviceOpener, type DeviceTables } from '../../../../plugin/file/device-file.ts';
import type { BlobSource, DeviceSpec } from '../../../../plugin/file/device-spec.ts';
import { MissingList } from '../../../../plugin/file/file.ts';
import { ChunkStore } from '../../../../plugin/file/store/chunk-store.ts';
import type { FromWorker } from '../../../../plugin/fuse/messages.ts';
import { FusePool } from '../../../../plugin/fuse/pool.ts';
import { Connections } from '../../../../plugin/keeper/connections.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { descriptorSocketPair, receiveDescriptor } from '../../../../plugin/kernel/fd-passing.ts';
import { ERRNO } from '../../../../plugin/kernel/libc.ts';
import { listMountPoints, mountDevice, unmountDevice } from '../../../../plugin/kernel/mount-device.ts';
import { fixtureFile, fixtureManifest, fixturePath } from '../../../support/fixtures.ts';

const run = promisify(execFile);
const cleanUps: (() => Promise<void> | void)[] = [];

afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

function localBlob(name: string): BlobSource {
  const file = fixtureFile(name);
  return { digest: `sha256:${file.sha256}`, sizeBytes: file.size, repositories: [], localPath: fixturePath(name) };
}

/** Serves a device from local files; answers its path and the messages that its workers send. */
async function serveDevice(
  spec: DeviceSpec,
  change: (tables: DeviceTables) => DeviceTables = (tables) => tables,
): Promise<{ devicePath: string; target: string; messages: FromWorker[]; pool: FusePool; slot: number }> {
  const scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'obd-fuse-'));
  cleanUps.push(() => fs.rmSync(scratch, { recursive: true }));
  const store = await ChunkStore.open({
    rootDir: path.join(scratch, 'store'),
    budgetBytes: 2 ** 30,
    clock: systemClock,
    log: silentLogger,
  });
  const handles = await Promise.all(blobsOf(spec).map((blob) => store.acquire(blob)));
  const tables = new DeviceOpener(
    spec,
    handles.map((handle) => handle.file()),
    loadCodec(),
  ).tryOpen(new MissingList())!;
  const messages: FromWorker[] = [];
  const pool = new FusePool({
    workers: 4,
    maxBackground: 64,
    onMessage: (message) => messages.push(message),
    onFailure: (error) => {
      throw error;
    },
  });
  const connections = new Connections({}, process.pid, silentLogger);
  const devicePath = path.join(scratch, 'devices', spec.id);
  const target = path.join(scratch, 'mnt');
  connections.open(spec.id, devicePath);
  const [ours, theirs] = descriptorSocketPair();
  connections.send(spec.id, devicePath, ours);
  const slot = pool.add(
    receiveDescriptor(theirs, 1000)!.fd,
    change(tables),
    handles.map((handle) => handle.shared()),
    { isTakenOver: false },
  );
  cleanUps.push(async () => {
    await unmountDevice([target, devicePath], AbortSignal.timeout(20_000));
    connections.closeAll();
    await pool.remove(slot);
    await pool.close();
    for (const handle of handles) handle.release();
    await store.close();
    fs.closeSync(ours);
    fs.closeSync(theirs);
  });
  return { devicePath, target, messages, pool, slot };
}

const nativeSpec = (): DeviceSpec => ({
  version: 1,
  id: 'native',
  image: 'fixtures/native',
  layers: ['blob/l1.lz4-4k.tar', 'blob/l2.lz4-4k.tar', 'blob/l3.lz4-4k.tar'].map((name) => ({ kind: 'full', blob: localBlob(name) })),
});

const erofsSpec = (): DeviceSpec => ({
  version: 1,
  id: 'erofs',
  image: 'fixtures/erofs',
  layers: ['e1', 'e2', 'e3'].map((name) => ({
    kind: 'index',
    meta: localBlob(`turbo/erofs/${name}.erofs.fs.meta`),
    target: localBlob(`oci/small/${name}.tar`),
  })),
});

describe('devices through the kernel', () => {
  it('reads the same bytes as the reference, with 1 MiB reads, direct reads and readers in parallel', async () => {
    const { devicePath, pool, slot } = await serveDevice(nativeSpec());
    const { device_size, device_sha256 } = fixtureManifest().devices['native:l1+l2+l3']!;
    expect(fs.statSync(devicePath).size).toBe(device_size);
    const hash = async (flags: string): Promise<string> =>
      (await run('bash', ['-c', `set -o pipefail; dd if=${devicePath} bs=1M status=none ${flags} | sha256sum`])).stdout.split(' ')[0]!;
    expect(await Promise.all([hash(''), hash('iflag=direct'), hash('')])).toEqual([device_sha256, device_sha256, device_sha256]);
    expect(pool.countsOf(slot).bytes).toBeGreaterThanOrEqual(device_size);
    // Read-ahead may still be under way.
    const apart = (): number => {
      const [device, all] = [pool.countsOf(slot), pool.totals()];
      return Math.abs(all.reads - device.reads) + Math.abs(all.bytes - device.bytes);
    };
    await expect.poll(apart, { timeout: 20_000 }).toBe(0);
  });

  it('hands a read that a fault of ours ends to the main thread, and serves on', async () => {
    const { devicePath, messages, pool } = await serveDevice(nativeSpec(), (tables) => ({ ...tables, sources: [] }));
    const reading = run('dd', [`if=${devicePath}`, 'of=/dev/null', 'bs=4096', 'count=1', 'iflag=direct']);
    await expect.poll(() => messages.filter(({ type }) => type === 'miss'), { timeout: 20_000 }).toHaveLength(1);
    const [miss] = messages.filter((message) => message.type === 'miss');
    pool.answer(miss!.slot, { low: miss!.uniqueLow, high: miss!.uniqueHigh }, ERRNO.EIO, Buffer.alloc(16), 0);
    await expect(reading).rejects.toThrow(/Input\/output error/);
    expect(fs.statSync(devicePath).size).toBeGreaterThan(0);
  });

  it('mounts ext4 on a loop device that goes with the mount', async () => {
    const { devicePath, target } = await serveDevice(nativeSpec());
    const mounted = await mountDevice({ devicePath, target, readAheadKib: 128 }, AbortSignal.timeout(20_000));
    expect(mounted.fsType).toBe('ext4');
    expect(mounted.loopDevice).toMatch(/^\/dev\/loop\d+$/);
    expect(fs.readdirSync(target)).toContain('lost+found');
    await unmountDevice([target], AbortSignal.timeout(20_000));
    await expect.poll(async () => (await run('losetup', ['-a'])).stdout.includes(devicePath), { timeout: 20_000 }).toBe(false);
  });

  it('mounts EROFS straight on the file, without a loop device, and reports when the last user is gone', async () => {
    const { devicePath, target, messages } = await serveDevice(erofsSpec());
    const mounted = await mountDevice({ devicePath, target, readAheadKib: 128 }, AbortSignal.timeout(20_000));
    expect(mounted).toEqual({ fsType: 'erofs' });
    const names = fs.readdirSync(target);
    expect(names.length).toBeGreaterThan(0);
    // The connection's own mount goes first: the file system above keeps it alive.
    await unmountDevice([devicePath], AbortSignal.timeout(20_000));
    expect(messages).toEqual([]);
    expect(fs.readdirSync(target)).toEqual(names);
    await unmountDevice([target], AbortSignal.timeout(20_000));
    await expect.poll(() => messages, { timeout: 20_000 }).toEqual([{ type: 'gone', slot: 1 }]);
    expect(await listMountPoints()).not.toContain(target);
  });
});
