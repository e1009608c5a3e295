/**
 * kube-apiserver and kubelet, built from Debian's source package of Kubernetes with Debian's Go, and kept between runs by the version. Run
 * as a program (`node test/support/kube-binaries.ts`) it builds them and says where they are: 5 to 10 minutes of two processors the first
 * time, nothing afterwards. Source: Debian bookworm, source package kubernetes (the last whose vendor tree Debian ships whole).
 */
import { mkdir, mkdtemp, readdir, readFile, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { downloadSource } from './debian-packages.ts';
import { run } from './process.ts';
import { cached, keyOf, TEST_CACHE } from './test-cache.ts';

const SUITE = 'bookworm';
const VERSION = '1.20.2';
const PACKAGE = 'k8s.io/kubernetes';
const PROGRAMS = ['kube-apiserver', 'kubelet'] as const;
/** Clouds and docker are a third of the code, and nothing here uses them. */
const TAGS = 'providerless,dockerless';
/** Debian's Go on two busy processors takes half of it. */
const BUILD_MS = 60 * 60_000;

export interface KubeBinaries {
  version: string;
  apiServer: string;
  kubelet: string;
}

/** Builds what is not there; a caller in a test therefore wants `.ci/setup-k8s` to have run before. */
export async function kubeBinaries(): Promise<KubeBinaries> {
  const compiler = (await run('go', ['version'])).stdout;
  const directory = await cached(`kubernetes-${VERSION}-${keyOf(compiler, TAGS)}`, build);
  return { version: VERSION, apiServer: join(directory, 'kube-apiserver'), kubelet: join(directory, 'kubelet') };
}

async function build(into: string): Promise<void> {
  await mkdir(TEST_CACHE, { recursive: true });
  const work = await mkdtemp(join(TEST_CACHE, 'kubernetes-build-'));
  try {
    const source = join(work, 'gopath/src', PACKAGE);
    await mkdir(join(source, '..'), { recursive: true });
    await rename(await downloadSource(join(work, 'apt'), SUITE, 'kubernetes'), source);
    const env = { ...process.env, GO111MODULE: 'off', CGO_ENABLED: '0', GOPATH: join(work, 'gopath') };
    const go = (...args: string[]): Promise<unknown> => run('go', args, { env, cwd: source, timeoutMs: BUILD_MS });

    // The one generated file that the source package lacks: the API's schema. Its generator reads the packages that ask for it.
    const generator = join(work, 'openapi-gen');
    await go('build', '-o', generator, './vendor/k8s.io/kube-openapi/cmd/openapi-gen');
    const generated = `${PACKAGE}/pkg/generated/openapi`;
    await run(
      generator,
      [
        ...['--input-dirs', (await packagesWithSchema(source)).join(',')],
        ...['--output-base', join(work, 'gopath/src'), '--output-package', generated, '--output-file-base', 'zz_generated.openapi'],
        ...['--go-header-file', 'vendor/k8s.io/code-generator/hack/boilerplate.go.txt'],
        ...['--report-filename', join(work, 'violations')],
      ],
      { env, cwd: source, timeoutMs: BUILD_MS },
    );

    // A kubelet that names no version cannot register: the API server parses it.
    const variables = { gitVersion: `v${VERSION}`, gitMajor: '1', gitMinor: '20' };
    const flags = ['k8s.io/component-base/version', 'k8s.io/client-go/pkg/version'].flatMap((one) =>
      Object.entries(variables).map(([name, value]) => `-X ${PACKAGE}/vendor/${one}.${name}=${value}`),
    );
    for (const program of PROGRAMS) {
      await go('build', '-tags', TAGS, '-ldflags', `-s -w ${flags.join(' ')}`, '-o', join(into, program), `./cmd/${program}`);
    }
  } finally {
    await rm(work, { recursive: true, force: true });
  }
}

/** Go packages with the tag `+k8s:openapi-gen=`, except those of example programs. */
async function packagesWithSchema(source: string): Promise<string[]> {
  const found: string[] = [];
  // Links of vendor/k8s.io lead to staging, where the sources of those packages lie.
  for (const [root, shownAs] of [
    ['pkg', 'pkg'],
    ['cmd', 'cmd'],
    ['staging/src', 'vendor'],
  ] as const) {
    for (const entry of await readdir(join(source, root), { recursive: true, withFileTypes: true })) {
      if (!entry.isFile() || !entry.name.endsWith('.go') || entry.name.endsWith('_test.go')) continue;
      if (/\/k8s\.io\/(code-generator|sample-apiserver)\//.test(`${entry.parentPath}/`)) continue;
      if (!(await readFile(join(entry.parentPath, entry.name), 'utf8')).includes('+k8s:openapi-gen=')) continue;
      found.push(entry.parentPath.replace(join(source, root), `${PACKAGE}/${shownAs}`));
    }
  }
  return [...new Set(found)].sort();
}

if (import.meta.main) {
  const { version, apiServer, kubelet } = await kubeBinaries();
  process.stdout.write(`Kubernetes ${version}: ${apiServer} ${kubelet}\n`);
}
