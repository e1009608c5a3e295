/** containerd, the product and the host start again: containers' snapshots, with what they wrote, work as before. */
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { unmountUnder } from '../../support/mounts.ts';
import { layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxImage } from '../../support/small-images.ts';
import { waitFor } from '../../support/wait.ts';
import { lazyBusybox, obdctl, runOnce } from './lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;
let lazy: PushedImage;
let plain: PushedImage;

const exec = async (name: string, id: string, ...command: string[]) =>
  (await host.containerd.ctr(['tasks', 'exec', '--exec-id', id, name, ...command])).stdout;

beforeAll(async () => {
  scratch = await Scratch.create('restarts');
  host = await LazyHost.start();
  const config = { cmd: ['/bin/sleep', '600'] };
  lazy = await pushImage(
    host.registry,
    'again/lazy',
    '1',
    await lazyBusybox(scratch, [await layerOfEntries([{ name: 'who', content: 'lazy\n' }])], config),
  );
  plain = await pushImage(
    host.registry,
    'again/plain',
    '1',
    await busyboxImage({ config, above: [await layerOfEntries([{ name: 'who', content: 'plain\n' }])] }),
  );
  for (const [name, image] of [
    ['lazy', lazy],
    ['plain', plain],
  ] as const) {
    await lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
    await host.containerd.ctr(['run', '--detach', '--snapshotter', SNAPSHOTTER, image.reference, name]);
    await exec(name, 'write', '/bin/sh', '-c', 'echo mine > /own');
  }
});

afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

test('containerd starts again: running containers go on, new ones start', async () => {
  await host.containerd.restart();
  expect(await exec('lazy', 'e1', '/bin/cat', '/who', '/own')).toBe('lazy\nmine\n');
  expect(await exec('plain', 'e1', '/bin/cat', '/who', '/own')).toBe('plain\nmine\n');
  expect(await runOnce(host, lazy.reference, 'new-1', '/bin/cat', '/who')).toBe('lazy\n');
});

test('the control plane is killed: running containers go on, new ones start', async () => {
  const pid = await host.sidecar.kill('sidecar');
  await host.sidecar.waitProcess('sidecar', pid);
  expect(await exec('lazy', 'e2', '/bin/cat', '/who', '/own')).toBe('lazy\nmine\n');
  let tries = 0;
  const start = () => runOnce(host, lazy.reference, `new-2-${++tries}`, '/bin/cat', '/who');
  const said = await waitFor(start, { what: 'a start', timeoutMs: 60_000 });
  expect(said).toBe('lazy\n');
});

test('the host starts again, every mount gone and /run empty: stopped containers start with what they wrote', async () => {
  const { containerd, sidecar } = host;
  for (const name of ['lazy', 'plain']) await containerd.ctr(['tasks', 'rm', '--force', name]);
  await containerd.stop('SIGKILL');
  await sidecar.killAll();
  await unmountUnder(sidecar.root);
  await unmountUnder(sidecar.run);
  for (const name of await readdir(sidecar.run)) await rm(join(sidecar.run, name), { recursive: true });
  await sidecar.startAgain();
  await containerd.startAgain();
  for (const name of ['lazy', 'plain']) {
    await containerd.ctr(['tasks', 'start', '--detach', name]);
    expect(await exec(name, 'e3', '/bin/cat', '/who', '/own')).toBe(`${name}\nmine\n`);
  }
  expect(await runOnce(host, lazy.reference, 'new-3', '/bin/cat', '/who')).toBe('lazy\n');
  expect((await obdctl(host, 'snapshots', '--broken')).stdout).not.toContain('broken:');
});
