/**
 * The registry goes away between a pull and a start: Prepare fails within its deadline with UNAVAILABLE and names the image, other images
 * start meanwhile, and when the registry is back the same start works.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { layerOfEntries, pushImage } from '../../support/oci-image.ts';
import { referenceImage } from '../../support/reference-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxImage } from '../../support/small-images.ts';
import { SnapshotsClient } from '../../support/snapshots-client.ts';
import { waitFor } from '../../support/wait.ts';
import { lazyBusybox, obdctl, runOnce } from './lazy-images.ts';

const DEADLINE_MS = 4_000;

test('a start without registry ends in its deadline with UNAVAILABLE, others go on, and it works when the registry is back', async () => {
  await using scratch = await Scratch.create('outage');
  await using host = await LazyHost.start({ sidecar: { config: { snapshotter: { prepare_deadline: `${DEADLINE_MS / 1000}s` } } } });
  const { registry, containerd } = host;
  const config = { cmd: ['/bin/echo', 'runs'] };
  const late = await pushImage(registry, 'outage/late', '1', await referenceImage(3));
  const open = await pushImage(
    registry,
    'outage/open',
    '1',
    await lazyBusybox(scratch, [await layerOfEntries([{ name: 'o', content: 'o' }])], config),
  );
  const plain = await pushImage(registry, 'outage/plain', '1', await busyboxImage({ config }));
  const latePull = await lazyPull(containerd, late.reference, { snapshotter: SNAPSHOTTER });
  for (const image of [open, plain]) await lazyPull(containerd, image.reference, { snapshotter: SNAPSHOTTER });
  // A pull leaves heads and indexes in the store, which for small images is all that a mount reads: they go, as by eviction.
  await host.sidecar.stop();
  await rm(join(host.sidecar.root, 'store'), { recursive: true });
  await host.sidecar.startAgain();
  // The container of this image reads what such containers read.
  let tries = 0;
  expect(await waitFor(() => runOnce(host, open.reference, `before-${++tries}`), { what: 'a start after the restart' })).toBe('runs\n');

  await registry.stop();
  using client = new SnapshotsClient(host.sidecar.snapshotterSocket);
  const parent = (await client.list()).find((info) => info.name.endsWith(latePull.snapshotKey))!.name;
  const startedAt = performance.now();
  const failing = client.prepare('start-without-registry', parent).then(
    () => undefined,
    (error: unknown) => ({ error, elapsedMs: performance.now() - startedAt }),
  );
  // Meanwhile: an open image, an ordinary one.
  expect(await runOnce(host, open.reference, 'meanwhile-open')).toBe('runs\n');
  expect(await runOnce(host, plain.reference, 'meanwhile-plain')).toBe('runs\n');
  const failed = await failing;
  expect(failed?.error).toMatchObject({ code: 14, details: expect.stringContaining(late.reference) });
  // A machine that is busy, and nothing that would wait for the registry.
  expect(failed!.elapsedMs).toBeLessThan(DEADLINE_MS + 20_000);
  // As people see it, from containerd and from the service.
  await expect(runOnce(host, late.reference, 'fails')).rejects.toThrow(/outage\/late:1 cannot be served.*unavailable/s);
  expect((await obdctl(host, 'events')).stdout).toMatch(/device-not-open.*outage\/late:1/);

  await registry.startAgain();
  expect(await client.prepare('start-with-registry', parent)).toMatchObject([{ type: 'overlay' }]);
  await client.remove('start-with-registry');
});
