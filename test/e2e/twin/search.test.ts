/**
 * The search for twins against a registry with the referrers API, which can be slow, broken or lying: what is found is checked, what is
 * not found in time costs no more than the budget, and every such pull is an ordinary one with a reason.
 */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest';
import { ARTIFACT_TYPE } from '../../../plugin/image/oci/media-types.ts';
import { type FaultRegistry, startFaultRegistry } from '../../support/fault-registry.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { type LazyPullResult, lazyPull } from '../../support/lazy-pull.ts';
import { buildImage, type Image, layerOfEntries, type PushedImage, pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { busyboxLayer } from '../../support/small-images.ts';
import { asArtifact, goldenTwins } from '../../support/twin-image.ts';
import { convertedImage, obdctl, runOnce } from '../lazy/lazy-images.ts';

let scratch: Scratch;
let host: LazyHost;
let registry: FaultRegistry;
beforeAll(async () => {
  scratch = await Scratch.create('search');
  host = await LazyHost.start({ sidecar: { config: { twins: { negative_ttl: '2s' } } } });
});
afterAll(async () => {
  await host?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});
beforeEach(async () => {
  registry = await startFaultRegistry();
});
afterEach(async () => {
  await registry?.[Symbol.asyncDispose]();
});

const target = () => ({ url: registry.origin, host: registry.host });
const pull = (image: PushedImage): Promise<LazyPullResult> => lazyPull(host.containerd, image.reference, { snapshotter: SNAPSHOTTER });
const isLazy = (pulled: LazyPullResult): boolean[] => pulled.layers.map((layer) => layer.isFetched === false);
const events = async (): Promise<string> => (await obdctl(host, 'events')).stdout;
const lookups = (): number => registry.requests('registry', 'GET').filter((entry) => entry.url.includes('/referrers/')).length;

let count = 0;
/** busybox and a file that makes each image another one, with the full twin of it. */
async function makeTwins(): Promise<{ base: Image; twin: Image; text: string }> {
  const text = `image ${++count}`;
  const config = { cmd: ['/bin/cat', '/who'] };
  const layers = [
    await busyboxLayer(),
    await layerOfEntries([
      { name: 'who', content: text },
      { name: `only-${count}`, content: text },
    ]),
  ];
  const base = buildImage(layers, config);
  const own = await convertedImage(scratch, layers, config);
  return { base, twin: asArtifact(own, ARTIFACT_TYPE.native, base), text };
}

/** Images of other tests leave their base behind, which then is there: looked at are the layers that are this image's own. */
const ownIsLazy = async (image: PushedImage): Promise<boolean | undefined> => isLazy(await pull(image)).at(-1);

test('a full twin from the referrers API: the named image runs on it, one look-up for all layers', async () => {
  const { base, twin, text } = await makeTwins();
  const image = await pushImage(target(), 'app', 'v1', base);
  await pushImage(target(), 'app', 'anything', twin);
  expect(isLazy(await pull(image))).toEqual([true, true]);
  expect(lookups()).toBe(1);
  expect(await runOnce(host, image.reference, 'full')).toBe(text);
});

test('full is preferred to index-only, and the kind is read from the artifact, not from the tag', async () => {
  const { base, turbo } = await goldenTwins(1, { gzip: true, config: { cmd: ['/preferred'] } });
  const { twin } = await makeTwins();
  const full = asArtifact({ ...twin }, ARTIFACT_TYPE.native, base);
  const image = await pushImage(target(), 'app', 'v1', base);
  await pushImage(target(), 'app', 'v1_containerd_accelerated', turbo);
  await pushImage(target(), 'app', 'v1_accelerated', full);
  // The full one has two layers and the image one: it is refused, and the index-only one serves.
  expect(isLazy(await pull(image))).toEqual([true]);
  expect(await events()).toContain(`served from ${turbo.manifest.digest}`);
});

test.each([
  [
    'of another image',
    async (base: Image, twin: Image) => asArtifact(twin, ARTIFACT_TYPE.native, { ...base, manifest: twin.manifest }),
    /belongs to sha256/,
  ],
  [
    'with a layer too few',
    async (base: Image, twin: Image) => asArtifact(buildImage(twin.layers.slice(0, 1)), ARTIFACT_TYPE.native, base),
    /1 layers, the image has 2/,
  ],
  [
    'that indexes another layer',
    async (base: Image) => {
      const { turbo } = await goldenTwins(2, { gzip: true });
      return asArtifact(turbo, ARTIFACT_TYPE.turbo, base);
    },
    /layer 0 indexes sha256/,
  ],
])('a twin %s is refused with the reason, and the image is pulled and runs', async (_, forge, reason) => {
  const { base, twin, text } = await makeTwins();
  const image = await pushImage(target(), 'app', 'v1', base);
  await pushImage(target(), 'app', 'v1_accelerated', await forge(base, twin));
  expect(await ownIsLazy(image)).toBe(false);
  expect(await events()).toMatch(new RegExp(`${image.reference}.*pulled as an ordinary image.*${reason.source}`));
  expect(await runOnce(host, image.reference, `forged-${count}`)).toBe(text);
});

test('a twin in another repository is not looked at', async () => {
  const { base, twin } = await makeTwins();
  const image = await pushImage(target(), 'app', 'v1', base);
  await pushImage(target(), 'other', 'v1_accelerated', twin);
  expect(await ownIsLazy(image)).toBe(false);
  expect(registry.log.some((entry) => entry.url.includes('/v2/other/') && entry.method === 'GET')).toBe(false);
});

test('no twin: asked once, believed for a while, then asked again and found', async () => {
  const { base, twin } = await makeTwins();
  const image = await pushImage(target(), 'app', 'v1', base);
  expect(await ownIsLazy(image)).toBe(false);
  const first = lookups();
  expect(first).toBe(1);
  await host.containerd.ctr(['images', 'rm', '--sync', image.reference]);
  await pushImage(target(), 'app', 'v1_accelerated', twin);
  await expect
    .poll(
      async () => {
        const found = await ownIsLazy(image);
        await host.containerd.ctr(['images', 'rm', '--sync', image.reference]);
        return found;
      },
      { timeout: 60_000, interval: 500 },
    )
    .toBe(true);
  expect(lookups()).toBe(first + 1);
});

test.each([
  ['answers 500', { kind: 'status', status: 500 } as const],
  ['does not answer', { kind: 'delay', delayMs: 60_000 } as const],
])(
  'a registry that %s about referrers and twins: an ordinary pull, late by the budget at most, and the next one is served',
  async (_, effect) => {
    const { base, twin, text } = await makeTwins();
    const image = await pushImage(target(), 'app', 'v1', base);
    await pushImage(target(), 'app', 'v1_accelerated', twin);
    registry.inject({ effect, path: /\/referrers\/|_accelerated|manifests\/sha256-/, times: 1000 });
    const started = performance.now();
    const pulled = await pull(image);
    expect(isLazy(pulled).at(-1)).toBe(false);
    // The pull itself, and one budget of 300 ms; a second one would be a second look-up.
    expect(performance.now() - started).toBeLessThan(50_000);
    expect(lookups()).toBeLessThanOrEqual(3);
    expect(await events()).toMatch(new RegExp(`${image.reference}.*pulled as an ordinary image.*(no answer within 300 ms|500)`));
    expect(await runOnce(host, image.reference, `trouble-${count}`)).toBe(text);
    registry.faults.clear();
    await host.containerd.ctr(['images', 'rm', '--sync', image.reference]);
    await expect
      .poll(
        async () => {
          const found = await ownIsLazy(image);
          await host.containerd.ctr(['images', 'rm', '--sync', image.reference]);
          return found;
        },
        { timeout: 60_000, interval: 500 },
      )
      .toBe(true);
  },
);
