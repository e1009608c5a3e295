/** Ordinary images served from their accelerated twins: which one is found, what it must prove, and what is done when there is none. */
import fs from 'node:fs/promises';
import path from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../../../plugin/image/oci/media-types.ts';
import { TWIN_SUBJECT_ANNOTATION } from '../../../../plugin/snapshotter/twin-finder.ts';
import { type FakeLayer, indexLayer, ordinaryLayer, overlaybdLayer } from '../../../support/fake-image-resolver.ts';
import { SnapshotterHarness } from '../../../support/snapshotter-harness.ts';
import { tarOf } from '../../../support/tar.ts';

const IMAGE = 'r.example/team/app:1';
const FULL_TAG = 'r.example/team/app:1_containerd_accelerated';
const INDEX_TAG = 'r.example/team/app:1_accelerated';

let harness: SnapshotterHarness;
beforeEach(async () => {
  harness = await SnapshotterHarness.open();
});
afterEach(async () => {
  await harness[Symbol.asyncDispose]();
});

const base = (name: string): FakeLayer => ({
  ...ordinaryLayer(name),
  mediaType: MEDIA_TYPE.ociLayerGzip,
  diffId: sha256(`tar of ${name}`),
});
const LAYERS = [base('b0'), base('b1'), base('b2')];
const FULL = [overlaybdLayer('f0'), overlaybdLayer('f1'), overlaybdLayer('f2')];

/** A small blob as converters write it. */
async function turboBlob(name: string, files = ['erofs.fs.meta', 'ext4.fs.meta', 'gzip.meta']): Promise<{ digest: string; size: number }> {
  const entries = [...files, '.turbo.ociv1'].map((file) => ({ name: file, content: `${file} of ${name}` }));
  return harness.resolver.addBlob(gzipSync(await tarOf(entries)));
}

async function indexLayers(layers = LAYERS): Promise<FakeLayer[]> {
  return Promise.all(layers.map(async (layer) => indexLayer(await turboBlob(layer.digest), layer)));
}

const native = (subject: string) => ({ artifactType: ARTIFACT_TYPE.native, subject });
const turbo = (subject: string) => ({ artifactType: ARTIFACT_TYPE.turbo, subject });

async function pull(manifestDigest: string, layers = LAYERS, image = IMAGE) {
  const { top, steps } = await harness.pull(image, layers, { manifestDigest });
  return { top, steps: [...new Set(steps)].join() };
}

/** The kinds and digests of the device below a container. */
async function deviceOf(top: string, key = 'container') {
  const lowers = await harness.container(key, top);
  return harness.devices.attached.get(path.basename(lowers.at(-1)!))!.layers;
}

const lookups = () => harness.resolver.calls.filter((call) => call.startsWith('referrers')).length;
const lastReason = () => harness.service.resolutions(1)[0]?.reason;

test('a full twin among the referrers serves all layers under the names of the image, found with one look-up', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  const twin = harness.resolver.addImage(FULL_TAG, FULL, native(manifest));
  const { top, steps } = await pull(manifest);
  expect(steps).toBe('remote');
  expect((await deviceOf(top)).map((layer) => layer.kind === 'full' && layer.blob.digest)).toEqual(FULL.map((layer) => layer.digest));
  expect(lookups()).toBe(1);
  expect(harness.service.usersOf(twin, 10).map((user) => user.kind)).toEqual(['committed', 'committed', 'committed', 'active']);
  expect(harness.service.usersOf(manifest, 10)).toHaveLength(4);
  expect(harness.service.usersOf(FULL[0]!.digest, 10)).toHaveLength(4);
  expect(harness.service.usersOf(FULL[2]!.digest, 10).map((user) => user.kind)).toEqual(['committed', 'active']);
  expect(harness.service.usersOf(sha256('nobody'), 10)).toEqual([]);
});

test('an index-only twin: small blobs are taken apart, the data comes from the original layers, EROFS is preferred', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  const layers = await indexLayers();
  harness.resolver.addImage(INDEX_TAG, layers, turbo(manifest), { isListed: false });
  const { top, steps } = await pull(manifest);
  expect(steps).toBe('remote');
  const device = await deviceOf(top);
  expect(device.map((layer) => layer.kind === 'index' && [layer.target.digest, layer.target.repositories[0]?.repository])).toEqual(
    LAYERS.map((layer) => [layer.digest, 'team/app']),
  );
  for (const [i, layer] of device.entries()) {
    if (layer.kind !== 'index') throw new Error('an index-only layer');
    expect(await fs.readFile(layer.meta.localPath!, 'utf8')).toBe(`erofs.fs.meta of ${LAYERS[i]!.digest}`);
    expect(await fs.readFile(layer.gzipIndex!.localPath!, 'utf8')).toBe(`gzip.meta of ${LAYERS[i]!.digest}`);
  }
  expect(harness.service.usersOf(LAYERS[1]!.digest, 10).map((user) => user.kind)).toEqual(['committed', 'committed', 'active']);
});

test('the metadata files stay while a snapshot or a device needs them, and go with the last', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  harness.resolver.addImage(INDEX_TAG, await indexLayers(), turbo(manifest));
  const { top } = await pull(manifest);
  await harness.container('c', top);
  const directory = path.join(harness.root, 'root/indexes');
  const count = async () => (await fs.readdir(directory)).length;
  await fs.writeFile(path.join(directory, `${'0'.repeat(64)}.tmp`), 'left by a killed writer');
  // As if an hour had passed since the resolution.
  const old = (): unknown => harness.service.database.client.prepare('UPDATE needed_digests SET touched_us = 0').run();
  old();
  await harness.snapshotter.cleanup();
  expect(await count()).toBe(6);
  const keys = [...harness.snapshotter.list([])].flat().map((info) => info.name);
  for (const key of keys.reverse()) harness.snapshotter.remove(key);
  const spec = [...harness.devices.attached.values()][0]!;
  await expect.poll(() => harness.devices.attached.size, { timeout: 30_000 }).toBe(0);
  // The kernel still holds the device.
  harness.devices.attached.set('held', spec);
  harness.service.database.client.prepare("UPDATE device_needs SET device_id = 'held'").run();
  old();
  harness.devices.isAway = true;
  await harness.snapshotter.cleanup();
  expect(await count()).toBe(6);
  harness.devices.isAway = false;
  harness.devices.attached.clear();
  await harness.snapshotter.cleanup();
  await harness.snapshotter.cleanup();
  expect(await count()).toBe(0);
});

test.each([
  ['full', ARTIFACT_TYPE.native],
  ['index', ARTIFACT_TYPE.turbo],
  ['index-only', ARTIFACT_TYPE.turbo],
] as const)(
  'with both kinds there and prefer = %s, the kind comes from the artifact type and not from the tag',
  async (prefer, expected) => {
    await harness[Symbol.asyncDispose]();
    harness = await SnapshotterHarness.open({
      twins: { isEnabled: true, prefer, lookupBudgetMs: 10_000, negativeTtlMs: 60_000, trusted: [], elsewhere: [] },
    });
    const manifest = harness.resolver.addImage(IMAGE, LAYERS);
    // The tags are the wrong way round.
    harness.resolver.addImage(INDEX_TAG, FULL, native(manifest), { isListed: false });
    harness.resolver.addImage(FULL_TAG, await indexLayers(), turbo(manifest), { isListed: false });
    const { top } = await pull(manifest);
    const kind = (await deviceOf(top))[0]!.kind;
    expect(kind === 'full' ? ARTIFACT_TYPE.native : ARTIFACT_TYPE.turbo).toBe(expected);
  },
);

test('a twin that names its image by annotation, behind a tag of a multi-platform index, is found', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  const text = (digest: string): string =>
    JSON.stringify({ layers: FULL, artifactType: ARTIFACT_TYPE.native, annotations: { [TWIN_SUBJECT_ANNOTATION]: digest } });
  const type = 'application/vnd.oci.image.manifest.v1+json';
  const other = harness.resolver.addBytes('r.example/team/app@other', text(sha256('another variant')), type);
  const twin = harness.resolver.addBytes('r.example/team/app@twin', text(manifest), type);
  const platform = { os: 'linux', architecture: process.arch === 'x64' ? 'amd64' : process.arch };
  const index = { manifests: [other, twin].map((digest) => ({ digest, platform })) };
  harness.resolver.addBytes(FULL_TAG, JSON.stringify(index), 'application/vnd.oci.image.index.v1+json');
  expect((await pull(manifest)).steps).toBe('remote');
});

test('without a twin the pull is ordinary, asked once for all layers, told once, and asked again when that has grown old', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  expect((await pull(manifest)).steps).toBe('downloaded');
  expect(lookups()).toBe(1);
  expect(lastReason()).toBe('it has no accelerated twin');
  expect(harness.service.events(10, IMAGE).map((event) => event.type)).toEqual(['image-resolved']);
  harness.service.database.client.prepare('UPDATE resolutions SET decided_us = decided_us - 61000000').run();
  await pull(manifest, [base('another base'), ...LAYERS.slice(1)]);
  expect(lookups()).toBe(2);
});

test('trouble is no answer: the layers of this pull go on without asking, the next pull asks again and gets its twin', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  harness.resolver.addImage(FULL_TAG, FULL, native(manifest));
  harness.resolver.isAway = true;
  expect((await pull(manifest)).steps).toBe('downloaded');
  expect(lookups()).toBe(1);
  expect(lastReason()).toMatch(/connection refused/);
  for (const { name } of [...harness.snapshotter.list([])].flat().reverse()) harness.snapshotter.remove(name);
  harness.resolver.isAway = false;
  expect((await pull(manifest)).steps).toBe('remote');
});

test('a registry that does not answer costs the time budget once, and the reason says so', async () => {
  await harness[Symbol.asyncDispose]();
  harness = await SnapshotterHarness.open({
    twins: { isEnabled: true, prefer: 'full', lookupBudgetMs: 50, negativeTtlMs: 60_000, trusted: [], elsewhere: [] },
  });
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  harness.resolver.addImage(FULL_TAG, FULL, native(manifest), { isListed: false });
  const { promise, resolve } = Promise.withResolvers<void>();
  harness.resolver.slowness = promise;
  // The tag answers in time, the list of referrers does not.
  expect((await pull(manifest)).steps).toBe('remote');
  for (const { name } of [...harness.snapshotter.list([])].flat().reverse()) harness.snapshotter.remove(name);
  harness.service.database.client.prepare('DELETE FROM resolutions').run();
  harness.resolver.isAway = true;
  expect((await pull(manifest)).steps).toBe('downloaded');
  expect(lastReason()).toMatch(/referrers in r\.example\/team\/app: no answer within 50 ms/);
  resolve();
});

/** Each makes a twin that lies. */
const forgeries: [string, RegExp, (manifest: string) => Promise<void>][] = [
  [
    'of another image',
    /belongs to sha256/,
    async (manifest) => {
      const digest = harness.resolver.addImage(FULL_TAG, FULL, native(sha256('another image')), { isListed: false });
      harness.resolver.list(manifest, { digest, artifactType: ARTIFACT_TYPE.native });
    },
  ],
  [
    'without a subject',
    /no image that it names/,
    async () => {
      harness.resolver.addBytes(
        FULL_TAG,
        JSON.stringify({ layers: FULL, artifactType: ARTIFACT_TYPE.native }),
        'application/vnd.oci.image.manifest.v1+json',
      );
    },
  ],
  [
    'that says nothing of its kind',
    /artifact type is "absent"/,
    async (manifest) => {
      const document = { layers: FULL, subject: { digest: manifest } };
      harness.resolver.addBytes(FULL_TAG, JSON.stringify(document), 'application/vnd.oci.image.manifest.v1+json');
    },
  ],
  [
    'with a layer too few',
    /2 layers, the image has 3/,
    async (manifest) => void harness.resolver.addImage(FULL_TAG, FULL.slice(0, 2), native(manifest)),
  ],
  [
    'that indexes another layer',
    /layer 1 indexes sha256/,
    async (manifest) => {
      const layers = await indexLayers([LAYERS[0]!, base('not of the image'), LAYERS[2]!]);
      harness.resolver.addImage(INDEX_TAG, layers, turbo(manifest));
    },
  ],
  [
    'that says it is index-only and brings block layers',
    /no layer of it is index-only/,
    async (manifest) => void harness.resolver.addImage(INDEX_TAG, FULL, turbo(manifest)),
  ],
  [
    'that says it is a full one and brings an index',
    /layer 0 is index-only/,
    async (manifest) => void harness.resolver.addImage(FULL_TAG, await indexLayers(), native(manifest)),
  ],
  ['that is not JSON', /not JSON/, async () => void harness.resolver.addBytes(FULL_TAG, '{', 'application/vnd.oci.image.manifest.v1+json')],
];

test.each(forgeries)('a twin %s is refused, the reason is told, and the pull is ordinary', async (_, reason, forge) => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  await forge(manifest);
  expect((await pull(manifest)).steps).toBe('downloaded');
  expect(lastReason()).toMatch(reason);
  expect(harness.service.events(10, IMAGE)[0]?.message).toMatch(reason);
});

test('a forged twin does not hide a true one', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  harness.resolver.addImage('r.example/team/app:forged', FULL.slice(0, 2), native(manifest));
  harness.resolver.addImage(FULL_TAG, FULL, native(manifest), { isListed: false });
  expect((await pull(manifest)).steps).toBe('remote');
});

test('an image whose configuration claims the chain of another one is not served in its place', async () => {
  const plain = (name: string, diffId: string): FakeLayer => ({ ...ordinaryLayer(name), mediaType: MEDIA_TYPE.ociLayerTar, diffId });
  const evil = [plain('evil', sha256('victim'))];
  const manifest = harness.resolver.addImage(IMAGE, evil);
  harness.resolver.addImage(FULL_TAG, [overlaybdLayer('evil device')], native(manifest));
  expect((await pull(manifest, evil)).steps).toBe('downloaded');
  expect(lastReason()).toMatch(/configuration says that layer 0/);
  // Neither when the pull asks for a chain that its own documents do not give.
  const honest = harness.resolver.addImage('r.example/team/app:2', LAYERS);
  harness.resolver.addImage('r.example/team/app:2_accelerated', FULL, native(honest));
  const asked = LAYERS.map((layer, i) => (i === 0 ? { ...layer, diffId: sha256('another victim') } : layer));
  expect((await pull(honest, asked, 'r.example/team/app:2')).steps).toBe('downloaded');
  expect(harness.service.events(20, 'r.example/team/app:2').map((event) => event.message)).toContainEqual(
    expect.stringMatching(/are not the chain/),
  );
});

test.each([
  [['r.example/other'], [], 'downloaded', /is not trusted to supply twins/],
  [['r.example'], [], 'remote', null],
  [['r.example/team'], [], 'remote', null],
  [['r.example/te'], [], 'downloaded', /is not trusted/],
  [['r.example/other'], ['mirror.example/twins'], 'remote', null],
] as const)('with trusted = %j and elsewhere = %j the pull is %s', async (trusted, elsewhere, steps, reason) => {
  await harness[Symbol.asyncDispose]();
  harness = await SnapshotterHarness.open({
    twins: { isEnabled: true, prefer: 'full', lookupBudgetMs: 10_000, negativeTtlMs: 60_000, trusted, elsewhere },
  });
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  const place = elsewhere.length > 0 ? 'mirror.example/twins/team/app' : 'r.example/team/app';
  harness.resolver.addImage(`${place}:1_accelerated`, FULL, native(manifest), { isListed: false });
  expect((await pull(manifest)).steps).toBe(steps);
  if (reason === null) expect(lastReason()).toBeNull();
  else expect(lastReason()).toMatch(reason);
});

test('a twin found for one repository is not used for the same image in another', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  harness.resolver.addImage(FULL_TAG, FULL, native(manifest), { isListed: false });
  await pull(manifest);
  harness.resolver.addImage('r.example/other/app:1', LAYERS);
  for (const { name } of [...harness.snapshotter.list([])].flat().reverse()) harness.snapshotter.remove(name);
  expect((await pull(manifest, LAYERS, 'r.example/other/app:1')).steps).toBe('downloaded');
});

test('a layer of the twin that cannot be read is pulled ordinarily with all above it, on the device of those below', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  harness.resolver.addImage(FULL_TAG, FULL, native(manifest));
  harness.devices.badBlobs.add(FULL[1]!.digest);
  const { top, steps } = await harness.pull(IMAGE, LAYERS, { manifestDigest: manifest });
  expect(steps).toEqual(['remote', 'downloaded', 'downloaded']);
  const lowers = await harness.container('c', top);
  expect(lowers).toHaveLength(3);
  expect(lowers[2]).toMatch(/\/mounts\//);
});

test.each([
  ['twin first', true],
  ['ordinary first', false],
])(
  'images that share their base, one with a full twin, one with an index-only one and one with none: each its own device (%s)',
  async (_, twinFirst) => {
    const images = ['a', 'b', 'c'].map((name) => ({ image: `r.example/team/${name}:1`, layers: [LAYERS[0]!, base(`top of ${name}`)] }));
    const digests = images.map(({ image, layers }) => harness.resolver.addImage(image, layers));
    harness.resolver.addImage('r.example/team/a:1_accelerated', [overlaybdLayer('a0'), overlaybdLayer('a1')], native(digests[0]!));
    harness.resolver.addImage('r.example/team/b:1_accelerated', await indexLayers(images[1]!.layers), turbo(digests[1]!));
    const tops = new Map<string, string>();
    for (const i of twinFirst ? [0, 1, 2] : [2, 1, 0]) {
      tops.set(images[i]!.image, (await harness.pull(images[i]!.image, images[i]!.layers, { manifestDigest: digests[i]! })).top);
    }
    const own = async (i: number) => (await deviceOf(tops.get(images[i]!.image)!, `c${i}`)).map((layer) => layer.kind);
    expect(await own(0)).toEqual(['full', 'full']);
    expect(await own(1)).toEqual(['index', 'index']);
    const lowers = await harness.container('c2', tops.get(images[2]!.image)!);
    expect(lowers).toHaveLength(2);
    expect(lowers[0]).toMatch(/snapshots/);
    // The base is what was there first: the image's own directory, or the device of the image that brought it.
    expect(lowers[1]).toMatch(twinFirst ? /\/mounts\// : /\/snapshots\//);
  },
);

test('an index-only image that is named itself is served; its chain is that of its small blobs', async () => {
  const originals = LAYERS.map((layer) => ({ ...layer, ...harness.resolver.addBlob(new TextEncoder().encode(`blob of ${layer.digest}`)) }));
  const layers = await indexLayers(originals);
  const tars = await Promise.all(
    originals.map(async (layer) =>
      tarOf(
        ['erofs.fs.meta', 'ext4.fs.meta', 'gzip.meta', '.turbo.ociv1'].map((name) => ({
          name,
          content: name === '.turbo.ociv1' ? `${name} of ${layer.digest}` : `${name} of ${layer.digest}`,
        })),
      ),
    ),
  );
  const named = layers.map((layer, i) => ({ ...layer, diffId: sha256(tars[i]!) }));
  const manifest = harness.resolver.addImage(INDEX_TAG, named);
  const { top, steps } = await harness.pull(INDEX_TAG, named, { manifestDigest: manifest });
  expect(steps).toEqual(['remote', 'remote', 'remote']);
  const device = await deviceOf(top);
  expect(device.map((layer) => layer.kind === 'index' && layer.target.sizeBytes)).toEqual(originals.map((layer) => layer.size));
  expect(harness.resolver.calls.filter((call) => call.startsWith('size'))).toHaveLength(3);
});

test.each([
  ['whose bottom has ext4 alone', ['ext4.fs.meta', 'gzip.meta'], ['ext4.fs.meta', 'erofs.fs.meta', 'gzip.meta'], 3, /^$/],
  ['that changes its file system', ['erofs.fs.meta', 'gzip.meta'], ['ext4.fs.meta', 'gzip.meta'], 1, /no erofs metadata/],
  ['without an index of its gzip layers', ['erofs.fs.meta'], ['erofs.fs.meta'], 0, /carries no index of it/],
] as const)('an index-only twin %s', async (_, bottom, others, lazyCount, reason) => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  const layers = await Promise.all(
    LAYERS.map(async (layer, i) => indexLayer(await turboBlob(layer.digest, [...(i === 0 ? bottom : others)]), layer)),
  );
  harness.resolver.addImage(INDEX_TAG, layers, turbo(manifest));
  const { steps } = await harness.pull(IMAGE, LAYERS, { manifestDigest: manifest });
  expect(steps.filter((step) => step === 'remote')).toHaveLength(lazyCount);
  expect(lastReason() ?? '').toMatch(reason);
});

test('originals that cannot be read at random are refused; a whole layer in their place is taken', async () => {
  const zstd = { ...base('z'), mediaType: MEDIA_TYPE.ociLayerZstd };
  const layers = [LAYERS[0]!, zstd];
  const manifest = harness.resolver.addImage(IMAGE, layers);
  const [first, second] = await indexLayers(layers);
  harness.resolver.addImage(INDEX_TAG, [first!, second!], turbo(manifest), { isListed: false });
  expect((await harness.pull(IMAGE, layers, { manifestDigest: manifest })).steps).toEqual(['remote', 'downloaded']);
  expect(lastReason()).toMatch(/compressed with zstd/);
  const other = harness.resolver.addImage('r.example/team/app:2', [LAYERS[1]!, zstd]);
  const [third] = await indexLayers([LAYERS[1]!]);
  harness.resolver.addImage('r.example/team/app:2_accelerated', [third!, overlaybdLayer('whole')], turbo(other));
  const { steps } = await harness.pull('r.example/team/app:2', [LAYERS[1]!, zstd], { manifestDigest: other });
  expect(steps).toEqual(['remote', 'remote']);
});

test('a tar whose media type says gzip is read as the tar that its checked index knows; an unchecked index is no proof', async () => {
  for (const [files, steps] of [
    [['erofs.fs.meta', 'sha256.chunks'], 'remote'],
    [['erofs.fs.meta'], 'downloaded'],
  ] as const) {
    const layer = base(`tar ${files.length}`);
    const image = `r.example/team/app:${files.length}`;
    const manifest = harness.resolver.addImage(image, [layer]);
    const index = indexLayer(await turboBlob(`tar ${files.length}`, [...files]), layer);
    harness.resolver.addImage(`${image}_accelerated`, [index], turbo(manifest));
    expect((await pull(manifest, [layer], image)).steps).toBe(steps);
  }
});

test.each([
  ['no gzip', () => new Uint8Array([0x1f, 0x8b, 8, 0]), /does not uncompress/],
  ['a bomb', () => gzipSync(Buffer.alloc(200 * 1024 * 1024)), /does not uncompress to at most/],
  ['a tar of something else', () => gzipSync(Buffer.alloc(1024)), /marker/],
])('a small blob that is %s is refused', async (_, make, reason) => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  const blob = harness.resolver.addBlob(make());
  harness.resolver.addImage(
    INDEX_TAG,
    LAYERS.map((layer) => indexLayer(blob, layer)),
    turbo(manifest),
  );
  expect((await pull(manifest)).steps).toBe('downloaded');
  expect(lastReason()).toMatch(reason);
});

test('a trace layer on an accelerated image is downloaded and not part of the stack', async () => {
  const trace = overlaybdLayer('trace', { 'containerd.io/snapshot/overlaybd/acceleration-layer': 'yes' });
  const layers = [overlaybdLayer('0'), overlaybdLayer('1'), trace];
  const { top, steps } = await harness.pull(IMAGE, layers, { manifestDigest: harness.resolver.add(IMAGE, layers) });
  expect(steps).toEqual(['remote', 'remote', 'downloaded']);
  const lowers = await harness.container('c', top);
  expect(lowers).toHaveLength(1);
  expect(await deviceOf(top, 'd')).toHaveLength(2);
});

test('an image that is mounted on a lost connection is mounted anew for the next container', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  harness.resolver.addImage(FULL_TAG, FULL, native(manifest));
  const { top } = await pull(manifest);
  await harness.container('before', top);
  await harness.restart();
  await harness.container('same connection', top);
  expect(harness.mounter.mountCount).toBe(1);
  harness.devices.connection = 'second';
  await harness.container('after', top);
  expect(harness.mounter.mountCount).toBe(2);
});

test('decisions survive a restart, and files that are missing make them void', async () => {
  const manifest = harness.resolver.addImage(IMAGE, LAYERS);
  harness.resolver.addImage(INDEX_TAG, await indexLayers(), turbo(manifest));
  await pull(manifest);
  for (const { name } of [...harness.snapshotter.list([])].flat().reverse()) harness.snapshotter.remove(name);
  await harness.restart();
  expect((await pull(manifest)).steps).toBe('remote');
  expect(lookups()).toBe(1);
  for (const { name } of [...harness.snapshotter.list([])].flat().reverse()) harness.snapshotter.remove(name);
  await fs.rm(path.join(harness.root, 'root/indexes'), { recursive: true });
  await fs.mkdir(path.join(harness.root, 'root/indexes'));
  expect((await pull(manifest)).steps).toBe('remote');
  expect(lookups()).toBe(2);
  expect(await fs.readdir(path.join(harness.root, 'root/indexes'))).toHaveLength(9);
});
