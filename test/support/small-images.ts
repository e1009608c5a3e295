/** Tiny images that tests run: Debian's static busybox, a pause image for pods, and images of many layers. Ours. */
import { readFile } from 'node:fs/promises';
import { buildImage, type Image, type ImageConfig, type Layer, layerOfEntries } from './oci-image.ts';
import { run } from './process.ts';
import type { TarEntry } from './tar.ts';

const BUSYBOX = '/bin/busybox';

/** A root file system of one static busybox with a link for each of its applets, as one layer. */
export async function busyboxLayer(options: { gzip?: boolean } = {}): Promise<Layer> {
  const { bytes, applets } = await busybox();
  const entries: TarEntry[] = [
    ...['bin/', 'dev/', 'etc/', 'proc/', 'root/', 'sys/', 'tmp/', 'var/'].map((name) => ({ name })),
    { name: 'bin/busybox', content: bytes, mode: 0o755 },
    ...applets.filter((name) => name !== 'busybox').map((name) => ({ name: `bin/${name}`, target: 'busybox' })),
    { name: 'etc/passwd', content: 'root:x:0:0:root:/root:/bin/sh\n' },
    { name: 'etc/group', content: 'root:x:0:\n' },
  ];
  return layerOfEntries(entries, options);
}

/** Fails when the system's busybox is not static: a dynamic one would not run in an otherwise empty root. */
async function busybox(): Promise<{ bytes: Buffer; applets: string[] }> {
  const bytes = await readFile(BUSYBOX);
  // PT_INTERP names the dynamic loader.
  if (bytes.includes('/lib64/ld-linux')) throw new Error(`${BUSYBOX} is not static; install busybox-static`);
  const applets = (await run(BUSYBOX, ['--list'])).stdout.split('\n').filter(Boolean);
  return { bytes, applets };
}

/** busybox alone, or with layers on top. */
export async function busyboxImage(options: { config?: ImageConfig; gzip?: boolean; above?: readonly Layer[] } = {}): Promise<Image> {
  const base = await busyboxLayer({ gzip: options.gzip ?? true });
  return buildImage([base, ...(options.above ?? [])], options.config ?? { cmd: ['/bin/sh'] });
}

/** An image that prints its name and ends; no two names have the same top layer. */
export async function namedImage(name: string): Promise<Image> {
  const above = [await layerOfEntries([{ name: 'name', content: `${name}\n` }])];
  return busyboxImage({ above, config: { cmd: ['/bin/cat', '/name'] } });
}

/** What CRI runs to hold a pod's namespaces: sleeps until it is told to end. */
export async function pauseImage(): Promise<Image> {
  const { bytes } = await busybox();
  const layer = await layerOfEntries([
    { name: 'bin/' },
    { name: 'bin/busybox', content: bytes, mode: 0o755 },
    { name: 'bin/sh', target: 'busybox' },
    { name: 'bin/sleep', target: 'busybox' },
  ]);
  return buildImage([layer], { entrypoint: ['/bin/sh', '-c', 'trap "exit 0" TERM INT; sleep 1000000000 & wait'] });
}

/** `count` layers over busybox: each adds `layers/<n>` and rewrites `top`, which so names the last one. */
export async function manyLayersImage(count: number, config: ImageConfig = { cmd: ['/bin/cat', '/top'] }): Promise<Image> {
  const above: Layer[] = [];
  for (let n = 1; n <= count; n++) {
    above.push(
      await layerOfEntries([{ name: 'layers/' }, { name: `layers/${n}`, content: `layer ${n}\n` }, { name: 'top', content: `${n}\n` }]),
    );
  }
  return busyboxImage({ above, config });
}
