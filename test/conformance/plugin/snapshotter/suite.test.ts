/**
 * containerd's own snapshotter conformance suite against our socket. The Go program is built from Debian's packaged sources of
 * containerd, so "containerd 1.6" here means what a host of that release runs.
 */
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { expect, test } from 'vitest';

const REPOSITORY = path.resolve(import.meta.dirname, '../../../..');
const SOURCE = path.join(import.meta.dirname, 'go', 'suite_test.go');
const GOCODE = '/usr/share/gocode';
const CACHE = '/var/cache/overlaybd-sidecar-test';

interface Run {
  code: number | null;
  output: string;
}

function run(program: string, args: string[], options: { cwd: string; env: NodeJS.ProcessEnv; deadlineMs: number }): Promise<Run> {
  return new Promise((resolve, reject) => {
    const { cwd, env, deadlineMs } = options;
    const child = spawn(program, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'], signal: AbortSignal.timeout(deadlineMs) });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8');
      stream.on('data', (text: string) => {
        output += text;
      });
    }
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, output }));
  });
}

/** Builds the suite once per source text and containerd version. */
async function buildSuite(): Promise<string> {
  const source = await fs.readFile(SOURCE);
  const version = await fs
    .readFile(path.join(GOCODE, 'src/github.com/containerd/containerd/version/version.go'), 'utf8')
    .catch((cause: unknown) => {
      throw new Error(
        `containerd's sources are missing under ${GOCODE}: apt-get install golang-go golang-github-containerd-containerd-dev`,
        { cause },
      );
    });
  const key = createHash('sha256').update(source).update(version).digest('hex').slice(0, 24);
  const binary = path.join(CACHE, `snapshotter-suite-${key}`);
  const isBuilt = await fs.access(binary).then(
    () => true,
    () => false,
  );
  if (isBuilt) return binary;
  await fs.mkdir(CACHE, { recursive: true });
  const work = await fs.mkdtemp(path.join(os.tmpdir(), 'obd-suite-'));
  try {
    const pkg = path.join(work, 'src', 'conformance');
    await fs.mkdir(pkg, { recursive: true });
    await fs.copyFile(SOURCE, path.join(pkg, 'suite_test.go'));
    const env = { ...process.env, GO111MODULE: 'off', GOPATH: `${work}:${GOCODE}`, GOFLAGS: '', GOCACHE: path.join(CACHE, 'go-build') };
    const built = await run('go', ['test', '-c', '-o', `${binary}.${process.pid}`, '.'], { cwd: pkg, env, deadlineMs: 280_000 });
    if (built.code !== 0) throw new Error(`go cannot build the suite:\n${built.output}`);
    await fs.rename(`${binary}.${process.pid}`, binary);
  } finally {
    await fs.rm(work, { recursive: true, force: true });
  }
  return binary;
}

test("containerd's snapshotter suite passes through its proxy client: every case, but Rename, which skips itself as on overlayfs", async () => {
  const binary = await buildSuite();
  const env = { ...process.env, OBD_SIDECAR: [process.execPath, path.join(REPOSITORY, 'plugin', 'main.ts')].join('\n') };
  const suite = await run(binary, ['-test.v', '-test.root', '-test.parallel', '2', '-test.timeout', '250s'], {
    cwd: os.tmpdir(),
    env,
    deadlineMs: 260_000,
  });
  const cases = [...suite.output.matchAll(/^ {4}--- (PASS|FAIL|SKIP): TestSuite\/(\S+)/gm)].map(([, result, name]) => ({ result, name }));
  const named = (wanted: string) => cases.filter(({ result }) => result === wanted).map(({ name }) => name);
  expect(named('FAIL'), suite.output.slice(-20_000)).toEqual([]);
  expect(suite.code, suite.output.slice(-20_000)).toBe(0);
  expect(named('SKIP')).toEqual(['Rename']);
  expect(named('PASS')).toHaveLength(20);
});
