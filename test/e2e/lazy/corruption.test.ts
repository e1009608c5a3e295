/**
 * A registry that sends wrong bytes: they never reach a container. With another mirror the read is repeated there once and succeeds; without
 * one it ends in an I/O error and an event. Shown for our own layers (list of SHA-256 per chunk) and for plain ZFile layers (CRC-32C).
 */
import { mkdir, open, readFile, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { sha256 } from '../../../plugin/base/digest.ts';
import { DockerRegistry } from '../../support/docker-registry.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { buildImage, type Image, layerOfEntries, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { filledBytes, lazyBusybox, obdctl, runOnce } from './lazy-images.ts';

const SIZE_BYTES = 4_000_000;

let scratch: Scratch;
let host: LazyHost;
let mirror: DockerRegistry;

beforeAll(async () => {
  scratch = await Scratch.create('corrupt');
  // Nothing waits long for bytes that will not come.
  host = await LazyHost.start({ sidecar: { config: { fetch: { patience: '5s' } } } });
  mirror = await DockerRegistry.start();
  // The registry that will be damaged is asked first, the mirror next.
  const directory = join(dirname(host.sidecar.configPath), 'certs.d', host.registry.host);
  await mkdir(directory, { recursive: true });
  const place = (registry: DockerRegistry): string => `[host."${registry.url}"]\n  capabilities = ["pull", "resolve"]\n`;
  await writeFile(join(directory, 'hosts.toml'), `server = "${host.registry.url}"\n${place(host.registry)}${place(mirror)}`);
});

afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await mirror?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

/** Flips a byte in every 4 KiB of the middle half of a blob on a registry's disk: the data, not heads, trailers and tables. */
async function damage(registry: DockerRegistry, digest: string): Promise<void> {
  const path = registry.blobPath(digest);
  const bytes = await readFile(path);
  for (let at = Math.floor(bytes.length / 4); at < (bytes.length * 3) / 4; at += 4096) bytes[at] = bytes[at]! ^ 0xff;
  await using file = await open(path, 'r+');
  await file.write(bytes, 0, bytes.length, 0);
}

let images = 0;
/** The image with one large file on top, which no other image has, not even that of another try. */
async function imageWithData(): Promise<{ image: Image; digest: string }> {
  const content = filledBytes(SIZE_BYTES, 10 + ++images);
  const image = await lazyBusybox(scratch, [await layerOfEntries([{ name: 'data', content }])]);
  return { image, digest: sha256(content).slice('sha256:'.length) };
}

/** Takes away what tells of the list of chunks: the layer is then as the reference implementation writes it. */
function withoutChunkLists(image: Image): Image {
  const layers = image.layers.map((layer) => ({
    ...layer,
    annotations: Object.fromEntries(Object.entries(layer.annotations ?? {}).filter(([key]) => !key.includes('overlaybd-sidecar'))),
  }));
  return buildImage(layers, { cmd: ['/bin/sh'] });
}

for (const [name, change] of [
  ['chunk-list', (image: Image) => image],
  ['crc', withoutChunkLists],
] as const) {
  test(`${name}: when no place has good bytes, reads end in an I/O error with an event, never in data, and other files can be read`, async () => {
    const { image } = await imageWithData();
    const pushed = await pushImage(host.registry, `corrupt/${name}-alone`, '1', change(image));
    await damage(host.registry, pushed.layers.at(-1)!.digest);
    await lazyPull(host.containerd, pushed.reference, { snapshotter: SNAPSHOTTER });
    const script = 'cat /data > /copy; echo status $?; wc -c < /copy; cat /etc/group';
    const seen = await runOnce(host, pushed.reference, `${name}-alone-${images}`, '/bin/sh', '-c', script);
    expect(seen).toMatch(/^status 1\n\d+\nroot:x:0:\n$/);
    // What was read before the first wrong block is right: the file's beginning.
    expect(Number(seen.split('\n')[1])).toBeLessThan(SIZE_BYTES);
    expect((await obdctl(host, 'events')).stdout).toMatch(new RegExp(`device\\.read-failed.*${pushed.repository}`));
  });

  test(`${name}: with a good mirror the wrong bytes are fetched again there, and the container reads what it should`, async () => {
    const { image, digest } = await imageWithData();
    const pushed = await pushImage(host.registry, `corrupt/${name}-mirror`, '1', change(image));
    await pushImage(mirror, `corrupt/${name}-mirror`, '1', change(image));
    await damage(host.registry, pushed.layers.at(-1)!.digest);
    await lazyPull(host.containerd, pushed.reference, { snapshotter: SNAPSHOTTER });
    const seen = await runOnce(host, pushed.reference, `${name}-mirror-${images}`, '/bin/sha256sum', '/data');
    expect(seen).toBe(`${digest}  /data\n`);
    expect(await mirror.blobBytesSent(pushed.layers.at(-1)!.digest)).toBeGreaterThan(0);
  });
}
