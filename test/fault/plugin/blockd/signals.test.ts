/** Readers that get signals while their registry is away: only a killed one gives up. */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { expect, it } from 'vitest';
import { BlockdClient } from '../../../../plugin/blockd/client.ts';
import { MissingList } from '../../../../plugin/file/file.ts';
import { memoryDevice, openMemoryDevice } from '../../../support/devices.ts';
import { readFixture } from '../../../support/fixtures.ts';
import { LazyHost, SNAPSHOTTER } from '../../../support/lazy-host.ts';
import { lazyPull } from '../../../support/lazy-pull.ts';
import { buildImage, layerOfOverlaybdBlob, pushImage } from '../../../support/oci-image.ts';
import { SnapshotView } from '../../../support/snapshot-view.ts';

const READ_BYTES = 8 * 1024 * 1024;
const soon = (): AbortSignal => AbortSignal.timeout(20_000);

it('a handled signal does not disturb a waiting read, and SIGKILL ends it at once', async () => {
  await using host = await LazyHost.start();
  const { registry, sidecar, containerd } = host;
  const layer = await layerOfOverlaybdBlob(readFixture('blob/l1.lz4-4k.tar'));
  const image = await pushImage(registry, 'test/signals', '1', buildImage([layer]));
  const { snapshotKey } = await lazyPull(containerd, image.reference, { snapshotter: SNAPSHOTTER });
  await using _view = await SnapshotView.mount(containerd, SNAPSHOTTER, snapshotKey);
  const client = new BlockdClient(`${sidecar.run}/blockd.sock`);
  try {
    const devicePath = (await client.devices(soon()))[0]!.devicePath;
    await registry.stop();

    const reader = (flags: string[]): { pid: number; ended: Promise<{ signal: NodeJS.Signals | null; digest: string }> } => {
      const args = [`if=${devicePath}`, 'bs=1M', 'count=8', 'status=none', ...flags];
      const child = spawn('dd', args, { stdio: ['ignore', 'pipe', 'ignore'] });
      const hash = createHash('sha256');
      child.stdout.on('data', (bytes: Buffer) => hash.update(bytes));
      const ended = new Promise<{ signal: NodeJS.Signals | null; digest: string }>((resolve) =>
        child.once('close', (_, signal) => resolve({ signal, digest: hash.digest('hex') })),
      );
      return { pid: child.pid!, ended };
    };
    const waiting = async (count: number): Promise<void> => {
      await expect.poll(async () => (await client.stats(soon())).waitingReads, { timeout: 20_000 }).toBe(count);
    };
    const patient = reader(['iflag=direct']);
    await waiting(1);
    const doomed = reader([]);
    await expect.poll(async () => (await client.stats(soon())).waitingReads, { timeout: 20_000 }).toBeGreaterThan(1);
    // dd has a handler for SIGUSR1; the kernel sends INTERRUPT for it as for any other.
    for (let i = 0; i < 5; i += 1) process.kill(patient.pid, 'SIGUSR1');
    process.kill(doomed.pid, 'SIGKILL');
    // While the registry is away, so not for an answer of it.
    expect((await doomed.ended).signal).toBe('SIGKILL');
    await registry.startAgain();
    const expected = Buffer.alloc(READ_BYTES);
    openMemoryDevice(memoryDevice([readFixture('blob/l1.lz4-4k.tar')])).file.readSync(0, READ_BYTES, expected, 0, new MissingList());
    expect(await patient.ended).toEqual({ signal: null, digest: createHash('sha256').update(expected).digest('hex') });
    expect((await client.devices(soon()))[0]).toMatchObject({ failures: 0 });
  } finally {
    await client.close();
  }
});
