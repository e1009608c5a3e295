/** Publication against a registry in memory: what is pushed and in which order, what is used again, and that failures publish nothing. */
import { gzipSync } from 'node:zlib';
import { afterEach, expect, test } from 'vitest';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { publishAccelerated } from '../../../../../plugin/convert/publish/publish.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../../../../plugin/image/oci/media-types.ts';
import type { FaultRegistry, FaultRegistryOptions } from '../../../../support/fault-registry.ts';
import { buildImage, type Image, layerOfEntries } from '../../../../support/oci-image.ts';
import { failureOf, testClient } from '../../../../support/registry-client.ts';
import { makeHostsDir } from '../../../../support/registry-hosts.ts';
import { manifestOf, type PublishBench, REPOSITORY, reads, startPublishBench, store } from './publish-bench.ts';

const cleanUps: (() => PromiseLike<void> | void)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0).reverse()) await cleanUp();
});

async function start(options: FaultRegistryOptions = {}): Promise<PublishBench> {
  const bench = await startPublishBench(options);
  cleanUps.push(() => bench[Symbol.asyncDispose]());
  return bench;
}

const layer = (name: string, size = 10_000) =>
  layerOfEntries([{ name: `${name}/` }, { name: `${name}/file`, content: Buffer.alloc(size, name) }, { name: 'top', content: name }], {
    gzip: true,
  });

const uploads = (registry: FaultRegistry): number =>
  registry.log.filter((e) => e.method === 'PUT' && e.url.includes('/blobs/uploads')).length;

test('an image gets its twin beside it: documents as the reference writes them, the tag last, the original untouched', async () => {
  const { registry, context, counter } = await start();
  const image = buildImage([await layer('a'), await layer('b')], { cmd: ['/bin/x', '&&'] });
  const source = store(registry, image, '1');
  const result = await publishAccelerated(context(), { tag: '1', expectedDigest: source });
  expect(result).toMatchObject({ sourceDigest: source, targetTag: '1_containerd_accelerated', isUnchanged: false });
  expect(result).toMatchObject({ sourceBytes: image.layersSizeBytes, resultBytes: counter().convertedBytes });
  expect(registry.api.tags.get(`${REPOSITORY}:1`)).toBe(source);
  expect(registry.api.tags.get(`${REPOSITORY}:1_containerd_accelerated`)).toBe(result.targetDigest);

  const manifest = manifestOf(registry, result.targetDigest);
  expect(Object.keys(manifest)).toEqual(['schemaVersion', 'mediaType', 'artifactType', 'config', 'layers', 'subject']);
  expect(manifest).toMatchObject({
    mediaType: MEDIA_TYPE.ociManifest,
    artifactType: ARTIFACT_TYPE.native,
    subject: { mediaType: image.manifest.mediaType, digest: source, size: image.manifest.bytes.length },
  });
  for (const { digest, size, mediaType, annotations } of manifest.layers) {
    expect(mediaType).toBe(MEDIA_TYPE.ociLayerTar);
    expect(annotations).toMatchObject({
      'containerd.io/snapshot/overlaybd/blob-digest': digest,
      'containerd.io/snapshot/overlaybd/blob-size': String(size),
      'containerd.io/snapshot/overlaybd/version': '0.1.0',
    });
    expect(registry.api.blobs.get(digest)?.length).toBe(size);
  }
  const config = registry.api.blobs.get(manifest.config.digest)!.toString();
  expect(config).toContain('\\u0026\\u0026');
  expect(JSON.parse(config).rootfs.diff_ids).toEqual(manifest.layers.map((l: { digest: string }) => l.digest));

  const writes = registry.log.filter((e) => e.method === 'PUT').map((e) => e.url.replace(/^.*\/(manifests\/|blobs\/uploads).*?$/, '$1'));
  expect(writes.at(-1)).toBe('manifests/');
  const tagAt = registry.log.findIndex((e) => e.method === 'PUT' && e.url.endsWith('/manifests/1_containerd_accelerated'));
  for (const { digest } of [...manifest.layers, manifest.config]) {
    const seenAt = registry.log.findLastIndex((e) => e.method === 'HEAD' && e.status === 200 && e.url.endsWith(`/blobs/${digest}`));
    expect(seenAt).toBeGreaterThan(-1);
    expect(seenAt).toBeLessThan(tagAt);
  }
  expect(counter()).toMatchObject({ imagesTotal: 1, imagesDone: 1, layersTotal: 2, layersDone: 2, layersReused: 0 });
  expect(counter().readBytes).toBe(image.layersSizeBytes);
  expect(counter().uploadedBytes).toBe(counter().convertedBytes);
});

test('where there is no referrers API, the twin is entered into the fallback tag', async () => {
  const { registry, context } = await start({ referrersApi: false });
  const source = store(registry, buildImage([await layer('a')]), '1');
  const { targetDigest } = await publishAccelerated(context(), { tag: '1' });
  const list = registry.api.tags.get(`${REPOSITORY}:${source.replace(':', '-')}`)!;
  expect(manifestOf(registry, list).manifests).toMatchObject([{ digest: targetDigest, artifactType: ARTIFACT_TYPE.native }]);
});

test('converting again sends and reads nothing: every layer is known, and looked at before it is trusted', async () => {
  const { registry, context, lines } = await start();
  const image = buildImage([await layer('a'), await layer('b')]);
  store(registry, image, '1');
  const first = await publishAccelerated(context(), { tag: '1' });
  registry.log.length = 0;
  expect(await publishAccelerated(context(), { tag: '1' })).toEqual({ ...first, isUnchanged: true });
  expect([uploads(registry), reads(registry, image)]).toEqual([0, 0]);
  expect(lines).toContain('2 of 2 layers are converted already');
  expect(registry.log.filter((e) => e.method === 'PUT' && e.url.includes('accelerated'))).toEqual([]);
});

test('a new layer on a converted chain is the only one converted, and the result is that of a whole conversion', async () => {
  const { registry, ledger, context, lines, counter } = await start();
  const [a, b, c] = [await layer('a', 300_000), await layer('b'), await layer('c')];
  store(registry, buildImage([a, b]), '1');
  await publishAccelerated(context(), { tag: '1' });
  const image = buildImage([a, b, c]);
  store(registry, image, '2');
  registry.log.length = 0;
  const onBase = await publishAccelerated(context(), { tag: '2' });
  expect(lines.join('\n')).not.toMatch(/anew/);
  expect(counter()).toMatchObject({ layersTotal: 3, layersDone: 3, layersReused: 2, sourceBytes: c.sizeBytes, readBytes: c.sizeBytes });
  expect(reads(registry, image)).toBe(1);
  expect(uploads(registry)).toBe(2);

  const whole = manifestOf(registry, onBase.targetDigest).layers;
  ledger.rows.clear();
  const again = await publishAccelerated(context(), { tag: '2' });
  expect(manifestOf(registry, again.targetDigest).layers).toEqual(whole);
});

test('a layer that the registry has lost is not trusted: the row goes and the layer is converted again', async () => {
  const { registry, context, counter } = await start();
  store(registry, buildImage([await layer('a'), await layer('b')]), '1');
  const first = await publishAccelerated(context(), { tag: '1' });
  registry.api.blobs.delete(manifestOf(registry, first.targetDigest).layers[1].digest);
  expect((await publishAccelerated(context(), { tag: '1' })).targetDigest).toBe(first.targetDigest);
  expect(counter()).toMatchObject({ layersReused: 1, layersDone: 2 });
});

test('a damaged base is noticed by its chunk list and not built upon', async () => {
  const { registry, context, lines, counter } = await start();
  const [a, b] = [await layer('a', 300_000), await layer('b')];
  store(registry, buildImage([a]), '1');
  const first = await publishAccelerated(context(), { tag: '1' });
  const { digest } = manifestOf(registry, first.targetDigest).layers[0];
  const blob = registry.api.blobs.get(digest)!;
  const damaged = Buffer.from(blob);
  damaged[3_000] = damaged[3_000]! ^ 1;
  registry.api.blobs.set(digest, damaged);
  store(registry, buildImage([a, b]), '2');
  await publishAccelerated(context(), { tag: '2' });
  expect(lines.join('\n')).toMatch(/the chunk at 0 is not the one that the layer's list names[\s\S]*all layers are converted anew/);
  expect(counter()).toMatchObject({ layersTotal: 2, layersDone: 2, layersReused: 0 });
});

test('layers of another repository of the registry are mounted, not read or sent', async () => {
  const { registry, ledger, context, lines, counter } = await start();
  const image = buildImage([await layer('a')]);
  store(registry, image, '1');
  await publishAccelerated(context(), { tag: '1' });
  store(registry, image, '1', 'team/other');
  const { digest } = [...ledger.rows.values()][0]!;
  // The other repository does not have it yet.
  registry.inject({ method: 'HEAD', path: new RegExp(`/blobs/${digest}`), times: 1, effect: { kind: 'status', status: 404 } });
  registry.log.length = 0;
  await publishAccelerated(context('team/other'), { tag: '1' });
  expect(registry.log.filter((e) => e.method === 'POST').map((e) => /mount=.*&from=team%2Fapp/.test(e.url))).toEqual([true]);
  expect([uploads(registry), reads(registry, image)]).toEqual([0, 0]);
  expect(lines).toContain(`layer ${digest} was mounted from another repository`);
  expect(counter()).toMatchObject({ layersTotal: 1, layersReused: 1 });
  expect([...ledger.rows.keys()].map((key) => key.split(' ')[0])).toEqual(['team/app', 'team/other']);
});

test('an image that claims the tars of another one, or names layers that it does not have, is not given what was made of those', async () => {
  for (const mode of ['full', 'index-only'] as const) {
    const { registry, context } = await start();
    const secret = buildImage([await layer('secret'), await layer('more')]);
    store(registry, secret, '1', 'team/private');
    await publishAccelerated(context('team/private', { mode }), { tag: '1' });
    const [own, second] = [await layer('own'), await layer('second')];
    const claimed = secret.layers.map(({ diffId }, i) => ({ ...[own, second][i]!, diffId }));
    store(registry, buildImage(claimed), '1', 'team/public');
    registry.log.length = 0;
    const failure = await failureOf(publishAccelerated(context('team/public', { mode }), { tag: '1' }));
    expect(failure.message).toMatch(/diffID is/);
    expect(registry.log.filter((entry) => entry.url.includes('mount='))).toEqual([]);

    store(registry, secret, '2', 'team/public');
    const original = secret.layers[0]!.digest;
    registry.inject({ path: new RegExp(`/v2/team/public/blobs/${original}`), times: 100, effect: { kind: 'status', status: 404 } });
    expect((await failureOf(publishAccelerated(context('team/public', { mode }), { tag: '2' }))).code).toBe('NotFound');
    expect(registry.log.filter((entry) => entry.url.includes('mount='))).toEqual([]);
  }
});

test('an index is converted platform by platform; attestations, other systems and unwanted platforms stay', async () => {
  const { registry, context, lines } = await start();
  const amd = buildImage([await layer('amd')]);
  const arm = buildImage([await layer('arm')]);
  const att = buildImage([await layer('att')]);
  for (const image of [amd, arm, att]) store(registry, image, undefined);
  const entry = (image: Image, architecture: string, more: object = {}) => ({
    mediaType: image.manifest.mediaType,
    digest: image.manifest.digest,
    size: image.manifest.bytes.length,
    platform: { architecture, os: 'linux' },
    ...more,
  });
  const attestation = entry(att, 'unknown', {
    platform: { architecture: 'unknown', os: 'unknown' },
    annotations: { 'vnd.docker.reference.type': 'attestation-manifest', 'vnd.docker.reference.digest': amd.manifest.digest },
  });
  const unknown = { mediaType: 'application/vnd.example', digest: sha256('x'), size: 1 };
  const bytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPE.dockerIndex,
      manifests: [entry(amd, 'amd64', { annotations: { a: 'b' } }), entry(arm, 'arm64'), attestation, unknown],
    }),
  );
  const source = registry.api.storeManifest(REPOSITORY, 'multi', bytes, MEDIA_TYPE.dockerIndex);
  const all = await publishAccelerated(context(), { tag: 'multi' });
  const index = manifestOf(registry, all.targetDigest);
  expect(index).toMatchObject({ mediaType: MEDIA_TYPE.ociIndex, artifactType: ARTIFACT_TYPE.native, subject: { digest: source } });
  expect(index.manifests).toHaveLength(4);
  expect(index.manifests[0]).toMatchObject({ platform: { architecture: 'amd64', os: 'linux' }, annotations: { a: 'b' } });
  expect(index.manifests[2]).toEqual(attestation);
  expect(index.manifests[3]).toEqual(unknown);
  for (const [i, image] of [amd, arm].entries()) {
    expect(manifestOf(registry, index.manifests[i].digest)).toMatchObject({
      artifactType: ARTIFACT_TYPE.native,
      subject: { digest: image.manifest.digest },
    });
  }
  expect(lines.join('\n')).toMatch(/stays as it is: its platform is unknown\/unknown/);

  const one = await publishAccelerated(context(REPOSITORY, { platforms: ['linux/arm64'] }), { tag: 'multi' });
  const partial = manifestOf(registry, one.targetDigest);
  expect(partial.manifests[0]).toEqual(entry(amd, 'amd64', { annotations: { a: 'b' } }));
  expect(partial.manifests[1].digest).toBe(index.manifests[1].digest);
  const none = await failureOf(publishAccelerated(context(REPOSITORY, { platforms: ['linux/s390x'] }), { tag: 'multi' }));
  expect(none).toMatchObject({ code: 'InvalidArgument' });
});

test('a mirror that is behind is not asked what a tag names, nor what the registry has', async () => {
  const [mirror, upstream] = [await start(), await start()];
  const [old, moved] = [buildImage([await layer('old')]), buildImage([await layer('moved')])];
  store(mirror.registry, old, '1');
  store(upstream.registry, old, undefined);
  const expectedDigest = store(upstream.registry, moved, '1');
  const { certsDir, cleanUp } = makeHostsDir({ 'r.test': [mirror.registry.origin, upstream.registry.origin] });
  const client = testClient({ hostsDirs: [certsDir] });
  cleanUps.push(cleanUp, () => client.close());
  const context = { ...upstream.context(), client, repository: { host: 'r.test', repository: REPOSITORY } };
  expect(await publishAccelerated(context, { tag: '1', expectedDigest })).toMatchObject({ sourceDigest: expectedDigest });
  expect(upstream.registry.api.tags.has(`${REPOSITORY}:1_containerd_accelerated`)).toBe(true);
  expect(mirror.registry.log.filter((entry) => entry.method === 'HEAD')).toEqual([]);
});

test('a result is never an input', async () => {
  const { registry, context } = await start();
  store(registry, buildImage([await layer('a')]), '1');
  const { targetDigest } = await publishAccelerated(context(), { tag: '1' });
  registry.api.tags.set(`${REPOSITORY}:disguised`, targetDigest);
  expect(await failureOf(publishAccelerated(context(), { tag: 'disguised' }))).toMatchObject({ code: 'FailedPrecondition' });
  expect(await failureOf(publishAccelerated(context(), { tag: '1_containerd_accelerated' }))).toMatchObject({ code: 'InvalidArgument' });
});

test('a tag that moves during the conversion gets no result: Conflict, and nothing under the target tag', async () => {
  const { registry, context } = await start();
  store(registry, buildImage([await layer('a')]), '1');
  const other = buildImage([await layer('b')]);
  const failure = await failureOf(publishAccelerated(context(), { tag: '1' }, () => void store(registry, other, '1')));
  expect(failure).toMatchObject({ code: 'Conflict', details: { movedTo: other.manifest.digest } });
  expect(registry.api.tags.has(`${REPOSITORY}:1_containerd_accelerated`)).toBe(false);
  expect(await failureOf(publishAccelerated(context(), { tag: '1', expectedDigest: sha256('x') }))).toMatchObject({ code: 'Conflict' });
});

test('bad layers publish nothing and are named: truncated gzip, wrong diffID, wrong digest', async () => {
  const { registry, context } = await start();
  const good = await layer('a', 100_000);
  const cut = Buffer.from(good.blob as Buffer).subarray(0, 60);
  const cases = [
    { ...good, blob: cut, digest: sha256(cut), sizeBytes: cut.length },
    { ...good, diffId: sha256('other') },
    {
      ...good,
      blob: gzipSync(Buffer.alloc(512, 1)),
      digest: sha256(gzipSync(Buffer.alloc(512, 1))),
      sizeBytes: gzipSync(Buffer.alloc(512, 1)).length,
    },
  ];
  for (const bad of cases) {
    store(registry, buildImage([bad]), 'bad');
    const failure = await failureOf(publishAccelerated(context(), { tag: 'bad' }));
    expect(failure.message).toContain(bad.digest);
    expect(registry.api.tags.has(`${REPOSITORY}:bad_containerd_accelerated`)).toBe(false);
  }
});

test('an abort in the middle ends everything, and the next attempt goes on from the layers that are there', async () => {
  const { registry, context, counter } = await start();
  const image = buildImage([await layer('a'), await layer('b'), await layer('c')]);
  store(registry, image, '1');
  const controller = new AbortController();
  const first = context(REPOSITORY, {}, controller.signal);
  const { record } = first.ledger;
  first.ledger.record = async (...args) => {
    await record(...args);
    controller.abort(new Error('stop'));
  };
  await expect(publishAccelerated(first, { tag: '1' })).rejects.toThrow();
  expect(registry.api.tags.has(`${REPOSITORY}:1_containerd_accelerated`)).toBe(false);
  await publishAccelerated(context(), { tag: '1' });
  expect(counter().layersReused).toBeGreaterThan(0);
});
