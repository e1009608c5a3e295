/**
 * A real program of more than 200 MB made from Debian packages: Python with Django, numpy and what images usually carry along (git, perl,
 * a shell). The program is a web service: it loads several hundred modules, answers a request to itself and prints one line; as with most
 * images, much of what is installed (numpy, Pillow, git) is not needed for that. Layers: base, runtime, compiled modules, application.
 */
import { cp, mkdir, rm, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { downloadPackages, unpackPackages } from './debian-packages.ts';
import { type LayeredImage, layeredImage } from './layered-image.ts';
import { run } from './process.ts';
import { keyOf } from './test-cache.ts';

const SUITE = 'bookworm';

export const BASE_PACKAGES = [
  'base-files',
  'bash',
  'coreutils',
  'dash',
  'findutils',
  'grep',
  'gzip',
  'libc-bin',
  'login',
  'mount',
  'passwd',
  'perl',
  'procps',
  'sed',
  'tar',
  'util-linux',
] as const;

const RUNTIME_PACKAGES = ['ca-certificates', 'git', 'openssl', 'python3', 'python3-django', 'python3-numpy', 'python3-pil'] as const;

/** What the program prints first, whatever the versions. */
export const DEBIAN_IMAGE_READY = /^ready: \d+ modules/;

const PROGRAM = `import json, sqlite3, ssl, sys, time
from django.conf import settings
settings.configure(DEBUG=False, ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="test",
                   DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
                   INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"])
import django
django.setup()
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.urls import path
from wsgiref.util import setup_testing_defaults

urlpatterns = [path("", lambda request: HttpResponse("hello"))]
environ = {}
setup_testing_defaults(environ)
body = b"".join(WSGIHandler()(environ, lambda status, headers: None)).decode()
print(f"ready: {len(sys.modules)} modules, django says {body}", flush=True)
if "--stay" in sys.argv:
    while True:
        time.sleep(3600)
`;

/** Packages of Debian 12 with all they depend on, fetched below `work`. Paths of the .deb files, sorted. */
export function bookwormPackages(work: string, name: string, packages: readonly string[]): Promise<string[]> {
  return downloadPackages(join(work, `apt-${name}`), SUITE, packages);
}

async function make(work: string): Promise<string[]> {
  const base = await bookwormPackages(work, 'base', BASE_PACKAGES);
  const all = await bookwormPackages(work, 'all', [...BASE_PACKAGES, ...RUNTIME_PACKAGES]);
  const inBase = new Set(base.map((deb) => basename(deb)));
  const layers = ['base', 'runtime', 'compiled', 'app'].map((name) => join(work, name));
  const [baseLayer, runtimeLayer, compiledLayer, appLayer] = layers as [string, string, string, string];
  await unpackPackages(base, baseLayer);
  const runtime = all.filter((deb) => !inBase.has(basename(deb)));
  await unpackPackages(runtime, runtimeLayer);
  for (const directory of ['proc', 'sys', 'dev', 'tmp', 'run', 'root']) await mkdir(join(baseLayer, directory), { recursive: true });

  // Debian compiles modules when it installs them. Hash-based files name no time, so that equal sources give equal bytes.
  const merged = join(work, 'merged');
  await unpackPackages([...base, ...runtime], merged);
  const compile = ['-m', 'compileall', '-q', '-f', '--invalidation-mode', 'unchecked-hash', '/usr/lib/python3', '/usr/lib/python3.11'];
  // Exit code 1: some packages carry sources of other versions on purpose (tests of parsers).
  await run('/usr/sbin/chroot', [merged, '/usr/bin/python3', ...compile], {
    env: { PATH: '/usr/bin', PYTHONHASHSEED: '0' },
    timeoutMs: 300_000,
    okCodes: [0, 1],
  });
  await mkdir(compiledLayer);
  const script =
    'cd "$1" && find usr/lib -type d -name __pycache__ -print0 | sort -z | tar --create --null --files-from=- | tar --extract --directory "$2"';
  await run('bash', ['-o', 'pipefail', '-c', script, 'bash', merged, compiledLayer]);

  await mkdir(join(appLayer, 'app'), { recursive: true });
  await writeFile(join(appLayer, 'app/main.py'), PROGRAM);
  await mkdir(join(appLayer, 'etc'), { recursive: true });
  await writeFile(join(appLayer, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/bash\n');
  await cp(join(merged, 'usr/share/doc/python3'), join(appLayer, 'app/doc'), { recursive: true, dereference: false });
  await rm(merged, { recursive: true });
  return layers;
}

/** The image; made at the first call of a machine (about a minute), then taken from the cache. */
export function debianImage(): Promise<LayeredImage> {
  const inputs = [SUITE, ...BASE_PACKAGES, ...RUNTIME_PACKAGES, PROGRAM, make.toString()];
  return layeredImage({
    name: `debian-image-${keyOf(...inputs)}`,
    make,
    config: {
      entrypoint: ['/usr/bin/python3', '/app/main.py'],
      env: [
        'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
        'LANG=C.UTF-8',
        'PYTHONDONTWRITEBYTECODE=1',
        // Installing would have pointed the alternatives there.
        'LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/blas:/usr/lib/x86_64-linux-gnu/lapack',
      ],
      workingDir: '/app',
    },
  });
}
