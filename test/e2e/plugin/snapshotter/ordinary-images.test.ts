/**
 * Ordinary images through real containerd and runc on our snapshotter, with the control plane alone: no data plane runs, and none is
 * needed. What containerd's overlayfs snapshotter does for these images, ours does too.
 */
import { readdir } from 'node:fs/promises';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { Containerd } from '../../../support/containerd.ts';
import { Cri } from '../../../support/cri.ts';
import { DockerRegistry } from '../../../support/docker-registry.ts';
import { layerOfEntries, type PushedImage, pushImage } from '../../../support/oci-image.ts';
import { Daemon } from '../../../support/process.ts';
import { Scratch } from '../../../support/scratch.ts';
import { busyboxImage, manyLayersImage, pauseImage } from '../../../support/small-images.ts';
import { SnapshotterClient } from '../../../support/snapshotter-client.ts';
import { waitFor } from '../../../support/wait.ts';

const MAIN = path.resolve(import.meta.dirname, '../../../../plugin/main.ts');
const NAME = 'overlaybd';

let scratch: Scratch;
let sidecar: Daemon;
let registry: DockerRegistry;
let containerd: Containerd;
let busybox: PushedImage;
let config: string;

const socket = () => scratch.join('run', 'snapshotter.sock');
const snapshotDirs = () => readdir(scratch.join('root', 'snapshots'));

async function startSidecar(): Promise<void> {
  sidecar = await Daemon.start({
    name: 'sidecar',
    command: process.execPath,
    args: [MAIN, '--config', config],
    logPath: scratch.join('log'),
  });
  await sidecar.waitReady('its socket', async () => {
    using client = new SnapshotterClient(socket());
    await client.list();
    return true;
  });
}

async function pull(image: PushedImage): Promise<void> {
  await containerd.ctr(['images', 'pull', '--plain-http', '--snapshotter', NAME, image.reference]);
}

function runOnce(image: PushedImage, id: string, ...command: string[]): Promise<{ stdout: string }> {
  return containerd.ctr(['run', '--rm', '--snapshotter', NAME, image.reference, id, ...command]);
}

beforeAll(async () => {
  scratch = await Scratch.create('ordinary');
  config = await scratch.file('config.toml', `[paths]\nroot = "${scratch.join('root')}"\nrun = "${scratch.join('run')}"\n`);
  await startSidecar();
  registry = await DockerRegistry.start();
  const pause = await pushImage(registry, 'test/pause', '1', await pauseImage());
  busybox = await pushImage(registry, 'test/busybox', '1', await busyboxImage());
  containerd = await Containerd.start({
    registries: [{ host: registry.host }],
    sandboxImage: pause.reference,
    criSnapshotter: NAME,
    proxySnapshotters: { [NAME]: { socket: socket(), root: scratch.join('root') } },
  });
});
beforeEach(async () => {
  await containerd.removeEverything();
  if (sidecar.endedHow !== undefined) await startSidecar();
  await pull(busybox);
});

afterAll(async () => {
  await containerd?.[Symbol.asyncDispose]();
  await registry?.[Symbol.asyncDispose]();
  await sidecar?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

test('an image runs, and what a container writes stays its own', async () => {
  expect((await runOnce(busybox, 'one', '/bin/sh', '-c', 'echo x > /etc/passwd; cat /etc/passwd')).stdout).toBe('x\n');
  expect((await runOnce(busybox, 'two', '/bin/cat', '/etc/passwd')).stdout).toBe('root:x:0:0:root:/root:/bin/sh\n');
});

test('an image of 127 layers runs: mount options stay below a page', async () => {
  const image = await pushImage(registry, 'test/layers', '127', await manyLayersImage(126));
  await pull(image);
  expect((await runOnce(image, 'deep')).stdout).toBe('126\n');
  expect((await runOnce(image, 'deeper', '/bin/ls', '/layers')).stdout.split('\n').filter(Boolean)).toHaveLength(126);
});

test('CRI pulls an image with its snapshot labels and runs a pod; usage of all snapshots is answered', async () => {
  await using cri = await Cri.connect(containerd.socket);
  const image = await pushImage(registry, 'test/cri', '1', await busyboxImage({ config: { cmd: ['/bin/sleep', '600'], env: ['A=b'] } }));
  await cri.pullImage(image.reference);
  const pod = await cri.runPod('ordinary');
  const container = await cri.startContainer(pod, image.reference, { command: ['/bin/sleep', '600'] });
  expect(await cri.exec(container.id, ['/bin/cat', '/etc/group'])).toMatchObject({ stdout: 'root:x:0:\n', exitCode: 0 });
  const { stdout } = await containerd.ctr(['snapshots', '--snapshotter', NAME, 'usage'], { namespace: 'k8s.io' });
  expect(stdout.trim().split('\n').length).toBeGreaterThan(3);
  await cri.removeContainer(container.id);
});

test('a change in a container becomes a layer (ctr snapshots diff), as commands that commit containers make it', async () => {
  await containerd.ctr(['run', '--snapshotter', NAME, busybox.reference, 'changed', '/bin/sh', '-c', 'echo new > /added; rm /etc/group']);
  const { stdoutBytes } = await containerd.ctr(['snapshots', '--snapshotter', NAME, 'diff', 'changed']);
  const names = gunzipSync(stdoutBytes).toString('latin1');
  expect(names).toContain('added');
  expect(names).toContain('.wh.group');
  await containerd.ctr(['containers', 'rm', 'changed']);
});

test('a kill of the control plane disturbs no running container, and later calls work: containerd finds the new process', async () => {
  await containerd.ctr(['run', '--detach', '--snapshotter', NAME, busybox.reference, 'runs', '/bin/sleep', '600']);
  await sidecar.stop({ signal: 'SIGKILL' });
  const said = await containerd.ctr(['task', 'exec', '--exec-id', 'e1', 'runs', '/bin/cat', '/etc/group']);
  expect(said.stdout).toBe('root:x:0:\n');
  await startSidecar();
  let tries = 0;
  const again = await waitFor(() => runOnce(busybox, `after-${++tries}`, '/bin/echo', 'again'), {
    what: 'a container after the restart',
    timeoutMs: 60_000,
  });
  expect(again.stdout).toBe('again\n');
  await containerd.ctr(['task', 'kill', '--signal', 'SIGKILL', 'runs']);
  await waitFor(async () => (await containerd.ctr(['task', 'rm', 'runs'])).code === 0, { what: 'the task to end' });
  await containerd.ctr(['container', 'rm', 'runs']);
});

test('removing an image frees its directories by garbage collection, and nothing else', async () => {
  const image = await pushImage(
    registry,
    'test/gone',
    '1',
    await busyboxImage({ above: [await layerOfEntries([{ name: 'alone', content: 'x' }])] }),
  );
  const before = new Set(await snapshotDirs());
  await pull(image);
  const made = (await snapshotDirs()).filter((name) => !before.has(name));
  expect(made).toHaveLength(1);
  await containerd.ctr(['images', 'rm', '--sync', image.reference]);
  await waitFor(async () => !(await snapshotDirs()).includes(made[0]!), { what: 'its directory to go', timeoutMs: 60_000 });
  expect((await runOnce(busybox, 'still', '/bin/echo', 'here')).stdout).toBe('here\n');
});
