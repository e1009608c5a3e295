/**
 * What happens to one image stays with it: a registry that hangs delays only the images it serves, and a container's private mount
 * namespace keeps its device alive after everybody else has let go, while the same image is attached anew beside it.
 */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { BlockdClient } from '../../../plugin/blockd/client.ts';
import type { DeviceStatus } from '../../../plugin/blockd/devices.ts';
import { pushImage } from '../../support/oci-image.ts';
import { Daemon, descendantsOf, killPid, readTail } from '../../support/process.ts';
import { startRegistryProxy } from '../../support/registry-proxy.ts';
import { SurvivalHost } from '../../support/survival-host.ts';
import { fileSystemOf, imageOfFileSystem, makeTree, type SurvivalTree } from '../../support/survival-image.ts';
import { waitServing } from '../../support/survival-run.ts';
import { dropCaches } from '../../support/verifying-reader.ts';
import { waitFor } from '../../support/wait.ts';

/** A read of another image through its own, quick registry takes milliseconds; this is far from the hanging one's minutes. */
const UNDISTURBED_MS = 30_000;

let host: SurvivalHost;
let tree: SurvivalTree;
let fileSystem: Buffer;
let staging: string;
/** Images are told apart by it, also those of another try: what was read once does not hang. */
let copies = 0;

beforeAll(async () => {
  // A body that stands still is asked for again soon, so that the hanging image recovers within the test.
  host = await SurvivalHost.start({ config: { registry: { stall_timeout: '2s', response_timeout: '2s' } } });
  tree = await makeTree(host.scratch.join('tree'), 4 * 1024 * 1024);
  staging = host.scratch.join('staging');
  fileSystem = await fileSystemOf(tree, 'erofs', staging);
});
afterAll(() => host[Symbol.asyncDispose]());

async function devices(): Promise<DeviceStatus[]> {
  const client = new BlockdClient(join(host.sidecar.run, 'blockd.sock'));
  try {
    return await client.devices(AbortSignal.timeout(20_000));
  } finally {
    await client.close();
  }
}

test('an image whose registry hangs in the middle of reads does not delay the reads and starts of another one', async () => {
  const hanging = await startRegistryProxy({ upstream: host.registry.host });
  await using _ = { [Symbol.asyncDispose]: () => hanging.close() };
  const image = await pushImage(host.registry, 'survival/hanging', 'v1', await imageOfFileSystem(fileSystem, staging, ++copies));
  const stuck = await host.startContainer({ ...image, reference: `${hanging.host}/survival/hanging:v1` });
  // From here on the link takes minutes for anything.
  hanging.setLink({ rateBytesPerS: 1, roundTripMs: 1 });
  const victims: Daemon[] = [];
  try {
    // As many readers as no pool of threads could hold.
    for (const [n, file] of tree.files.slice(0, 40).entries())
      victims.push(
        await Daemon.start({
          name: `victim ${n}`,
          command: 'cat',
          args: [join(stuck.path, file.path)],
          logPath: host.scratch.join(`victim-${copies}-${n}.log`),
        }),
      );
    await waitFor(async () => (await devices()).some((d) => d.waiting >= 8), { what: 'reads to wait for the hanging registry' });
    const startedMs = performance.now();
    const other = await host.startContainer(await host.push('undisturbed', await imageOfFileSystem(fileSystem, staging, ++copies)));
    const startMs = performance.now() - startedMs;
    await using reader = await host.reader(other, 'read', tree, 1);
    await reader.waitPasses(1);
    await dropCaches();
    await reader.waitPasses(1);
    const seen = await reader.stop();
    console.log(
      `beside ${victims.length} hanging readers: start in ${Math.round(startMs)} ms, longest read ${Math.round(seen.longestStallMs)} ms`,
    );
    expect(seen).toMatchObject({ errors: [], wrong: [] });
    expect(seen.longestStallMs).toBeLessThan(UNDISTURBED_MS);
    await host.removeContainer(other);
  } finally {
    hanging.setLink({ rateBytesPerS: Number.POSITIVE_INFINITY });
    for (const victim of victims) await victim.stop({ signal: 'SIGKILL' });
  }
  await host.removeContainer(stuck);
});

test('a private mount namespace keeps a device alive and its blobs in use, beside a new device of the same image, until it ends', async () => {
  const name = `pinned-${++copies}`;
  const image = await host.push(name, await imageOfFileSystem(fileSystem, staging, copies));
  const first = await host.startContainer(image);
  const file = tree.files[0]!;
  const logPath = host.scratch.join(`${name}.log`);
  // A process that reads on demand. It stands in the old root: removing the mount point detaches the mount in every namespace.
  const script = `cd ${first.path}; trap 'sha256sum ${file.path}' USR1; echo here; while :; do sleep 1000 & wait $!; done`;
  const pin = await Daemon.start({
    name: 'pin',
    command: 'unshare',
    args: ['--mount', '--propagation', 'private', 'sh', '-c', script],
    logPath,
  });
  try {
    await waitFor(() => readTail(logPath, 5).includes('here'), { what: 'the pinning process' });
    const id = (await devices()).find((d) => d.image.includes(name))!.id;
    await host.removeContainer(first);
    await waitFor(async () => (await devices()).some((d) => d.id === id && d.state === 'releasing'), {
      what: 'the device to be let go',
      timeoutMs: 60_000,
      details: () => host.sidecar.logTail(),
    });
    const second = await host.startContainer(image);
    const both = (await devices()).filter((d) => d.id === id);
    expect(both.map((d) => d.state).sort()).toEqual(['attached', 'releasing']);
    expect(new Set(both.map((d) => d.instance)).size).toBe(2);
    await using reader = await host.reader(second, 'read', tree, 1);
    await reader.waitPasses(1);
    expect(await reader.stop()).toMatchObject({ errors: [], wrong: [] });
    // The data plane is replaced: it serves both again.
    const pid = await host.sidecar.kill('blockd');
    await waitServing(host.sidecar, pid);
    await host.removeContainer(second);
    await waitFor(async () => (await devices()).filter((d) => d.id === id).length === 1, {
      what: 'the second device to go',
      timeoutMs: 60_000,
    });
    await dropCaches();
    pin.signal('SIGUSR1');
    await waitFor(() => readTail(logPath, 20).includes(file.sha256), {
      what: 'a read through the old mount',
      details: () => readTail(logPath, 20),
    });
    expect((await devices()).filter((d) => d.id === id)[0]!.blobBytes).toBeGreaterThan(0);
    // The shell first: it would start another sleep.
    const children = descendantsOf(pin.pid);
    await pin.stop({ signal: 'SIGKILL' });
    for (const child of children) await killPid(child.pid);
    await waitFor(async () => (await devices()).every((d) => d.id !== id), { what: 'the device to be released', timeoutMs: 60_000 });
    const directory = join(host.sidecar.run, 'devices');
    expect(existsSync(directory) ? readdirSync(directory).filter((name) => name.startsWith(id)) : []).toEqual([]);
  } finally {
    const left = descendantsOf(pin.pid);
    await pin.stop({ signal: 'SIGKILL' });
    for (const child of left) await killPid(child.pid);
  }
});
