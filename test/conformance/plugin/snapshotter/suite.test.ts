/**
 * containerd's own snapshotter conformance suite: over our socket through its proxy client, and through whole containerd daemons of
 * three release lines that have us as proxy plugin. The suite's Go program is built from Debian's packaged sources of containerd 1.6.
 */
import os from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';
import { Containerd } from '../../../support/containerd.ts';
import { CONTAINERD_LINES } from '../../../support/containerd-versions.ts';
import { goBinary } from '../../../support/go-build.ts';
import { Daemon, run } from '../../../support/process.ts';
import { Scratch } from '../../../support/scratch.ts';
import { SnapshotterClient } from '../../../support/snapshotter-client.ts';

const MAIN = path.resolve(import.meta.dirname, '../../../../plugin/main.ts');
const NAME = 'overlaybd';

/** Runs all cases and checks their counts: 21, of which Rename skips itself as on overlayfs (it asks for `redirect_dir`). */
async function runSuite(env: Record<string, string>, parallel: number): Promise<void> {
  const sourceDirectory = path.join(import.meta.dirname, 'go');
  const binary = await goBinary('snapshotter-suite', { sourceDirectory, kind: 'test' });
  const args = ['-test.v', '-test.root', '-test.parallel', String(parallel), '-test.timeout', '250s'];
  const { code, stdout, stderr } = await run(binary, args, {
    cwd: os.tmpdir(),
    env: { ...process.env, ...env },
    timeoutMs: 260_000,
    okCodes: [0, 1, 2],
  });
  const cases = [...stdout.matchAll(/^ {4}--- (PASS|FAIL|SKIP): TestSuite\/(\S+)/gm)].map(([, result, name]) => ({ result, name }));
  const named = (wanted: string) => cases.filter(({ result }) => result === wanted).map(({ name }) => name);
  const output = (stdout + stderr).slice(-20_000);
  expect(named('FAIL'), output).toEqual([]);
  expect(code, output).toBe(0);
  expect(named('SKIP')).toEqual(['Rename']);
  expect(named('PASS')).toHaveLength(20);
}

test('20 cases pass over our socket through containerd 1.6’s proxy client, each on a fresh process', async () => {
  await runSuite({ OBD_SIDECAR: [process.execPath, MAIN].join('\n') }, 2);
});

test.each(CONTAINERD_LINES)('20 cases pass through a containerd %s that has us as proxy plugin', async (line) => {
  await using scratch = await Scratch.create('suite');
  const config = `[paths]\nroot = "${scratch.join('root')}"\nrun = "${scratch.join('run')}"\n`;
  await using sidecar = await Daemon.start({
    name: 'sidecar',
    command: process.execPath,
    args: [MAIN, '--config', await scratch.file('config.toml', config)],
    logPath: scratch.join('log'),
  });
  const socket = scratch.join('run', 'snapshotter.sock');
  await sidecar.waitReady('its socket', async () => {
    using client = new SnapshotterClient(socket);
    return (await client.list()).length === 0;
  });
  await using containerd = await Containerd.start({ line, proxySnapshotters: { [NAME]: { socket, root: scratch.join('root') } } });
  await runSuite({ OBD_CONTAINERD: containerd.socket }, 1);
});
