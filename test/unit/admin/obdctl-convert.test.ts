/** obdctl's conversion commands: through the service, and into OCI layouts without it. */
import { execFile } from 'node:child_process';
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { type AdminServer, startAdminServer } from '../../../admin/server.ts';
import { sha256 } from '../../../plugin/base/digest.ts';
import { buildImage, layerOfEntries } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { tarOf } from '../../support/tar.ts';
import { fakeApp } from './fake-app.ts';
import { DONE, fakeConvert, JOB } from './fake-convert.ts';

// Each test starts some ten processes, one after the other.
vi.setConfig({ testTimeout: 300_000 });

const program = join(import.meta.dirname, '../../../admin/obdctl.ts');
let scratch: Scratch;
let socket: string;
let server: AdminServer;
let isFailing = false;

beforeAll(async () => {
  scratch = await Scratch.create('ctl');
  socket = scratch.join('admin.sock');
  const convert = fakeConvert({
    watch: () =>
      (async function* () {
        yield JOB;
        yield isFailing
          ? { ...JOB, state: 'FAILED' as const, failure: { code: 'DataLoss' as const, message: 'layer 2 is cut\u001b[2J' } }
          : DONE;
      })(),
  });
  server = await startAdminServer({
    app: fakeApp({ convert }).app,
    socketPath: socket,
  });
});
afterAll(async () => {
  await server.close();
  await scratch[Symbol.asyncDispose]();
});

/** With the tables that a terminal shows. */
const tables = (...args: string[]) => obdctl('-o', 'table', ...args);

function obdctl(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [program, '--socket', socket, ...args], { timeout: 120_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, stdout, stderr });
    });
  });
}

test('convert tells each change as a line of JSON where there is no terminal, and its exit code tells the end', async () => {
  const done = await obdctl('convert', 'registry.example/team/app:1', '--platform', 'linux/amd64', '--compression', 'lz4');
  expect(done).toMatchObject({ code: 0, stderr: '' });
  const lines = done.stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { state: string });
  expect(lines.map((line) => line.state)).toEqual(['BUILDING', 'SUCCESS']);
  isFailing = true;
  const failed = await obdctl('convert', 'registry.example/team/app:1');
  isFailing = false;
  expect(failed).toMatchObject({ code: 1, stderr: 'obdctl: layer 2 is cut\\x1b[2J\n' });
  expect((await tables('convert', 'registry.example/team/app:1', '--detach')).stdout).toMatch(/^JOB 7\nstate +BUILDING/);
  expect((await tables('convert', 'registry.example/team/app:1')).stdout).toMatch(/^registry\.example\/team\/app:\S+@sha256:\S+\n$/);
  expect((await obdctl('convert', 'x:1', '--mode', 'best')).code).toBe(2);
  const strict = await obdctl('rule', 'add', 'r.example/a', '--mode', 'index-only', '--unindexable', 'refuse');
  expect(JSON.parse(strict.stdout)).toMatchObject({ request: { mode: 'index-only', unindexable: 'refuse' } });
  expect((await obdctl('convert', 'oci-layout:/x')).stderr).toMatch(/--output oci-layout:DIRECTORY/);
});

test('jobs, rules and notifications as tables', async () => {
  expect((await tables('job', 'list')).stdout).toMatch(/^JOB +STATE[\s\S]*7 +BUILDING +45 %/);
  expect((await tables('job', 'show', '7')).stdout).toContain('1 of 4 done');
  expect((await tables('job', 'log', '7')).stdout).toContain('asked for by hand');
  expect((await tables('job', 'cancel', '7')).stdout).toContain('FAILED (Canceled)');
  expect(await tables('job', 'show', '8')).toMatchObject({ code: 1, stderr: 'obdctl: find job 8: there is no such conversion\n' });
  expect((await tables('rule', 'add', 'registry.example/team/app', '--expression', '^v')).stdout).toMatch(
    /registry.example\/team\/app +\/\^v\//,
  );
  expect((await tables('rule', 'remove', '1')).code).toBe(0);
  expect((await tables('notify', 'add', 'ci', 'https://ci.example/x', '--secret-file', '/k')).stdout).toMatch(
    /ci +https:\/\/ci.example\/x +\/_accelerated\$\/ +all +yes/,
  );
  expect((await tables('notify', 'history')).stdout).toMatch(/^DELIVERY/);
});

/** The manifest under a name in a layout, with its blobs checked. */
async function readLayout(directory: string, name: string) {
  const read = async (digest: string): Promise<Buffer> => {
    const bytes = await readFile(join(directory, 'blobs/sha256', digest.slice(7)));
    expect(sha256(bytes)).toBe(digest);
    return bytes;
  };
  const index = JSON.parse(await readFile(join(directory, 'index.json'), 'utf8')) as {
    manifests: { digest: string; annotations: Record<string, string> }[];
  };
  const entry = index.manifests.find((one) => one.annotations['org.opencontainers.image.ref.name'] === name);
  const manifest = JSON.parse((await read(entry!.digest)).toString()) as {
    artifactType: string;
    layers: { digest: string }[];
    config: { digest: string };
  };
  await read(manifest.config.digest);
  for (const layer of manifest.layers) await read(layer.digest);
  return { digest: entry!.digest, manifest };
}

test('an image of an OCI layout and the same as an archive of docker save become equal layers in a layout, without the service', async () => {
  const tars = await Promise.all(
    ['a', 'b'].map((name) => tarOf([{ name: `${name}/` }, { name: `${name}/file`, content: name.repeat(5000) }])),
  );
  const image = buildImage(
    await Promise.all(
      ['a', 'b'].map((name) =>
        layerOfEntries([{ name: `${name}/` }, { name: `${name}/file`, content: name.repeat(5000) }], { gzip: true }),
      ),
    ),
  );
  const layout = await scratch.dir('layout/blobs/sha256').then(() => scratch.join('layout'));
  for (const [digest, bytes] of [
    ...image.layers.map((l) => [l.digest, l.blob] as const),
    [image.config.digest, image.config.bytes] as const,
    [image.manifest.digest, image.manifest.bytes] as const,
  ]) {
    await writeFile(join(layout, 'blobs/sha256', digest.slice(7)), bytes);
  }
  const entry = { mediaType: image.manifest.mediaType, digest: image.manifest.digest, size: image.manifest.bytes.length };
  const named = { ...entry, annotations: { 'org.opencontainers.image.ref.name': '1.0' } };
  await writeFile(join(layout, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  await writeFile(join(layout, 'index.json'), JSON.stringify({ schemaVersion: 2, manifests: [named] }));
  const output = scratch.join('out');
  const config = await scratch.file('config.toml', '');
  const done = await obdctl('--config', config, 'convert', `oci-layout:${layout}`, '--output', `oci-layout:${output}`);
  expect(done).toMatchObject({ code: 0, stderr: '' });
  const last = JSON.parse(done.stdout.trim().split('\n').at(-1)!) as { state: string; name: string; digest: string };
  expect(last).toMatchObject({ state: 'SUCCESS', name: '1.0_containerd_accelerated' });
  const converted = await readLayout(output, last.name);
  expect(converted.digest).toBe(last.digest);

  const saved = await scratch.file(
    'saved.tar',
    await tarOf([
      {
        name: 'manifest.json',
        content: JSON.stringify([{ Config: 'config.json', RepoTags: ['app:1.0'], Layers: ['0/layer.tar', '1/layer.tar'] }]),
      },
      { name: 'config.json', content: image.config.bytes },
      ...tars.map((content, i) => ({ name: `${i}/layer.tar`, content })),
    ]),
  );
  const archive = await obdctl('--config', config, 'convert', `docker-archive:${saved}`, '--output', `oci-layout:${output}`);
  expect(archive).toMatchObject({ code: 0, stderr: '' });
  const fromArchive = await readLayout(output, 'app:1.0_containerd_accelerated');
  expect(fromArchive.manifest.layers).toEqual(converted.manifest.layers);
  expect((await readdir(output)).filter((name) => name.startsWith('.staging'))).toEqual([]);
  // A result is never an input.
  const again = await obdctl(
    '--config',
    config,
    'convert',
    `oci-layout:${output}`,
    '--name',
    last.name,
    '--output',
    `oci-layout:${scratch.join('out2')}`,
  );
  expect(again).toMatchObject({ code: 1, stderr: expect.stringMatching(/converted image itself/) });
});

test('what a killed conversion left in a layout is removed by the next one', async () => {
  const output = scratch.join('out3');
  await mkdir(join(output, '.staging-4194305'), { recursive: true });
  const missing = await obdctl('convert', `docker-archive:${scratch.join('none.tar')}`, '--output', `oci-layout:${output}`);
  expect(missing).toMatchObject({ code: 1, stderr: expect.stringMatching(/there is no such file/) });
  const saved = await scratch.file('empty.tar', await tarOf([{ name: 'manifest.json', content: '[]' }]));
  expect((await obdctl('convert', `docker-archive:${saved}`, '--output', `oci-layout:${output}`)).stderr).toMatch(/0 of its images fit/);
});

test('image rm tells what is gone', async () => {
  const gone = await tables('image', 'rm', 'registry.example/team/app:1');
  const digest = `sha256:${'2'.repeat(64)}`;
  const stdout = `deleted registry.example/team/app:1\ndeleted registry.example/team/app@${digest}\n`;
  expect(gone).toEqual({ code: 0, stderr: '', stdout });
});
