/**
 * Builds the Go programs of the tests with Debian's Go against Debian's packages of containerd (GOPATH mode, no network), and keeps the
 * binaries by the hash of their source and compiler. Ours.
 */
import { existsSync } from 'node:fs';
import { cp, mkdir, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from './process.ts';
import { cached, keyOf } from './test-cache.ts';

const GO_SOURCES = join(import.meta.dirname, 'go');
const DEBIAN_GOCODE = '/usr/share/gocode';

/**
 * The binary of `test/support/go/<name>` (or of `sourceDirectory`). `kind` "test" compiles the package's tests instead.
 * Building takes about a minute the first time on two cores.
 */
export async function goBinary(name: string, options: { sourceDirectory?: string; kind?: 'program' | 'test' } = {}): Promise<string> {
  const { sourceDirectory = join(GO_SOURCES, name), kind = 'program' } = options;
  if (!existsSync(join(DEBIAN_GOCODE, 'src/github.com/containerd/containerd/client.go'))) {
    throw new Error(`${DEBIAN_GOCODE} lacks containerd's client; install golang-github-containerd-containerd-dev`);
  }
  const files = (await readdir(sourceDirectory)).filter((file) => file.endsWith('.go')).sort();
  if (files.length === 0) throw new Error(`${sourceDirectory} holds no Go source`);
  const inputs: (string | Uint8Array)[] = [kind, (await run('go', ['version'])).stdout];
  for (const file of files) inputs.push(file, await readFile(join(sourceDirectory, file)));
  const directory = await cached(`go-${name}-${keyOf(...inputs)}`, async (made) => {
    const source = join(made, 'gopath/src', name);
    await mkdir(source, { recursive: true });
    for (const file of files) await cp(join(sourceDirectory, file), join(source, file));
    const env = {
      ...process.env,
      GO111MODULE: 'off',
      GOFLAGS: '',
      CGO_ENABLED: '0',
      GOPATH: `${join(made, 'gopath')}:${DEBIAN_GOCODE}`,
    };
    const args = kind === 'test' ? ['test', '-c'] : ['build'];
    await run('go', [...args, '-o', join(made, name), name], { env, timeoutMs: 600_000, cwd: made });
  });
  return join(directory, name);
}
