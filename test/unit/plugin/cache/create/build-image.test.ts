/** Putting an image into containerd: lazy layers are not fetched, ordinary ones are unpacked and checked, nothing passes the reservation. */
import { expect, test } from 'vitest';
import { parseConfig } from '../../../../../plugin/base/config/config.ts';
import { type Digest, sha256 } from '../../../../../plugin/base/digest.ts';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { buildImage } from '../../../../../plugin/cache/create/build-image.ts';
import type { Work } from '../../../../../plugin/cache/create/protocol.ts';
import type { RegistryClient } from '../../../../../plugin/registry/client.ts';
import { chainIdOf } from '../../../../../plugin/snapshotter/chain-id.ts';
import type { ImageClient } from '../../../../../plugin/snapshotter/containerd/image-client.ts';
import { type Image, layerOfEntries, buildImage as ociImage } from '../../../../support/oci-image.ts';
import { waitFor } from '../../../../support/wait.ts';

async function image(): Promise<Image> {
  const layers = await Promise.all([1, 2].map((n) => layerOfEntries([{ name: `file${n}`, content: `${n}` }], { gzip: true })));
  return ociImage(layers, { cmd: ['/bin/sh'] });
}

const chains = (of: Image): Digest[] => of.layers.map((_, i) => chainIdOf(of.layers.slice(0, i + 1).map(({ diffId }) => diffId)));

function work(of: Image): Work {
  return {
    registry: { registry: parseConfig('', 'defaults').registry, vault: { file: '/x', keyFile: '/x' } },
    access: { credentials: [], plainHttp: [], insecure: [] },
    ...{ containerdAddress: '/x', namespace: 'k8s.io', snapshotter: 'overlaybd', lease: 'own', buildLease: 'build' },
    ...{ reference: 'registry.example/app:1', digest: of.manifest.digest, platformDigest: of.manifest.digest },
    ...{ reservationBytes: 10_000, logLevel: 'info' },
  };
}

/** containerd in memory; `lazy`: chain ids that the snapshotter serves without a download. */
function containerd(of: Image, options: { lazy?: readonly string[]; layerBytes?: number; diffIds?: readonly Digest[] } = {}) {
  /** What somebody else who pulls has brought, and what he unpacks: chain ids, each for so many looks more. */
  const others = { content: new Set<string>(), unpacking: new Map<string, number>(), lists: 0, helps: false };
  const content = new Map<string, { bytes: Uint8Array; labels: Record<string, string> }>();
  const snapshots = new Map<string, number>();
  const leased: string[] = [];
  const applied: string[] = [];
  const active = new Set<string>();
  const client = {
    contentInfo: async (_: string, digest: string) => {
      const found = content.get(digest);
      return found && { sizeBytes: found.bytes.length, labels: found.labels };
    },
    readContent: async (_: string, digest: string) => content.get(digest)!.bytes,
    writeContent: async (
      _: string,
      _lease: string,
      made: { digest: string; source: { bytes?: Uint8Array }; labels: Record<string, string> },
    ) => {
      content.set(made.digest, { bytes: made.source.bytes ?? new Uint8Array(), labels: { ...made.labels } });
    },
    shareContent: async (_: string, _lease: string, made: { digest: string; bring(): Promise<string | undefined> }) => {
      if (others.content.has(made.digest)) return 'awaited';
      if (content.has(made.digest)) return 'there';
      if ((await made.bring()) === undefined) {
        told.push(`${made.digest} yielded`);
        if (others.helps) return 'awaited';
        await made.bring();
      }
      content.set(made.digest, { bytes: new Uint8Array(), labels: {} });
      return 'brought';
    },
    unpackingOf: async (_: string, _s: string, chainId: string) => {
      others.lists += 1;
      return [...active, ...(others.unpacking.has(chainId) ? ['extract-1 of somebody'] : [])];
    },
    labelContent: async (_: string, digest: string, labels: Record<string, string>) =>
      void Object.assign(content.get(digest)!.labels, labels),
    addToLease: async (_: string, lease: string, { id }: { id: string }) => void leased.push(`${lease} ${id}`),
    hasSnapshot: async (_: string, _s: string, key: string) => {
      const looks = others.unpacking.get(key) ?? 0;
      others.unpacking.delete(key);
      if (looks > 1) others.unpacking.set(key, looks - 1);
      if (looks === 1) snapshots.set(key, options.layerBytes ?? 100);
      return snapshots.has(key);
    },
    prepareSnapshot: async (_: unknown, { key, labels }: { key: string; labels: Record<string, string> }) => {
      const chainId = labels['containerd.io/snapshot.ref']!;
      if (options.lazy?.includes(chainId)) {
        snapshots.set(chainId, 0);
        return undefined;
      }
      active.add(key);
      return [];
    },
    commitSnapshot: async (_: unknown, { key, name }: { key: string; name: string }) => {
      active.delete(key);
      snapshots.set(name, options.layerBytes ?? 100);
    },
    removeSnapshot: async (_: string, _s: string, key: string) => void active.delete(key),
    snapshotBytes: async (_: string, _s: string, key: string) => snapshots.get(key),
    apply: async (_: string, { digest }: { digest: string }) => {
      applied.push(digest);
      return (options.diffIds ?? of.layers.map(({ diffId }) => diffId))[of.layers.findIndex((layer) => layer.digest === digest)];
    },
  };
  const registry = {
    resolve: async () => ({ mediaType: of.manifest.mediaType }),
    getManifest: async () => ({
      bytes: of.manifest.bytes,
      descriptor: { mediaType: of.manifest.mediaType, digest: of.manifest.digest, sizeBytes: of.manifest.bytes.length },
    }),
    getSmallBlob: async () => of.config.bytes,
  };
  const fetched: string[] = [];
  const told: string[] = [];
  const parts = {
    client: client as unknown as ImageClient,
    registry: registry as unknown as RegistryClient,
    fetchLayer: async ({ digest, sizeBytes }: { digest: Digest; sizeBytes: number }) => {
      fetched.push(digest);
      return { path: '/layer', fetchedBytes: sizeBytes };
    },
    onLayer: ({ digest }: { digest: Digest }, how: string) => void told.push(`${digest} ${how}`),
    signal: new AbortController().signal,
  };
  return { parts, content, snapshots, leased, applied, active, fetched, told, others };
}

test('lazy layers are not fetched; documents keep each other, and the lease keeps all', async () => {
  const of = await image();
  const world = containerd(of, { lazy: chains(of) });
  const made = await buildImage(work(of), world.parts);
  expect(made).toMatchObject({
    target: { digest: of.manifest.digest },
    configDigest: of.config.digest,
    chainId: chains(of)[1],
    unpacked: [],
  });
  expect(world.fetched).toEqual([]);
  expect(world.content.get(of.manifest.digest)?.labels).toMatchObject({ 'containerd.io/gc.ref.content.config': of.config.digest });
  expect(world.content.get(of.config.digest)?.labels).toMatchObject({ 'containerd.io/gc.ref.snapshot.overlaybd': chains(of)[1] });
  for (const id of [of.manifest.digest, of.config.digest, chains(of)[1]!]) expect(world.leased).toContain(`own ${id}`);
});

test('ordinary layers are fetched, unpacked, checked and measured; what is there is not made again', async () => {
  const of = await image();
  const world = containerd(of);
  const made = await buildImage(work(of), world.parts);
  expect(world.applied).toEqual(of.layers.map(({ digest }) => digest));
  expect(made.unpacked).toEqual(chains(of).map((chainId) => ({ chainId, bytes: 100 })));
  expect(made.documentBytes).toBe(of.manifest.bytes.length + of.config.bytes.length);
  expect(made.fetchedBytes).toBe(
    of.manifest.bytes.length + of.config.bytes.length + of.layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
  );
  expect(world.active.size).toBe(0);
  const again = await buildImage(work(of), world.parts);
  expect(again).toEqual({ ...made, fetchedBytes: 0 });
  expect(world.applied).toHaveLength(2);
  expect(world.told.slice(-2).every((line) => line.endsWith(' here'))).toBe(true);
});

test('a layer that somebody else brings and unpacks at the same time is neither fetched nor unpacked again', async () => {
  const of = await image();
  const world = containerd(of);
  const [first] = chains(of);
  world.others.content.add(of.layers[0]!.digest);
  world.others.unpacking.set(first!, 6);
  const made = await buildImage(work(of), world.parts);
  const [, second] = of.layers;
  expect(world.fetched).toEqual([second!.digest]);
  expect(world.applied).toEqual([second!.digest]);
  expect(world.told).toEqual([`${of.layers[0]!.digest} here`, `${second!.digest} unpacked`]);
  expect(made.unpacked).toHaveLength(2);
  expect(world.active.size).toBe(0);
  // For each list containerd asks the snapshotter about every snapshot of the node.
  expect(world.others.lists).toBe(1);
});

test('a layer that somebody else brought and nobody unpacks is unpacked here', async () => {
  const of = await image();
  const world = containerd(of);
  for (const { digest } of of.layers) world.others.content.add(digest);
  // An earlier attempt at the same work, which was killed.
  world.active.add('build-killed');
  await buildImage(work(of), world.parts);
  expect(world.fetched).toEqual([]);
  expect(world.applied).toEqual(of.layers.map(({ digest }) => digest));
});

test('of two caches that unpack what is there at once one goes ahead', async () => {
  const of = await image();
  const world = containerd(of);
  for (const { digest } of of.layers) world.content.set(digest, { bytes: new Uint8Array(), labels: {} });
  // Another cache's work, which waits for this one, as its name comes later.
  world.active.add('other-lease-1 of another cache');
  await buildImage(work(of), world.parts);
  expect(world.fetched).toEqual([]);
  expect(world.applied).toEqual(of.layers.map(({ digest }) => digest));
});

test.each([true, false])('a layer that does not come is left to others who want it (they do: %s), and waited for again', async (helps) => {
  const of = await image();
  const world = containerd(of);
  world.others.helps = helps;
  const { fetchLayer } = world.parts;
  let calls = 0;
  world.parts.fetchLayer = async (layer) => {
    calls += 1;
    // It comes when nobody waits for it any more.
    if (calls === 1) await waitFor(() => world.told.includes(`${layer.digest} yielded`), { what: 'the layer to be left to others' });
    return fetchLayer(layer);
  };
  await buildImage(work(of), { ...world.parts, stillMs: 100 });
  expect(world.told).toContain(`${of.layers[0]!.digest} yielded`);
  expect(world.applied).toEqual(of.layers.map(({ digest }) => digest));
  expect(calls).toBe(2);
});

test('a layer that is not what the configuration says is refused, and leaves no snapshot', async () => {
  const of = await image();
  const world = containerd(of, { diffIds: [of.layers[0]!.diffId, sha256('other')] });
  await expect(buildImage(work(of), world.parts)).rejects.toMatchObject({ code: 'DataLoss' });
  expect([...world.snapshots.keys()]).toEqual([chains(of)[0]]);
  expect(world.active.size).toBe(0);
});

test('unpacked layers that pass the reservation are refused with both numbers', async () => {
  const of = await image();
  const world = containerd(of, { layerBytes: 8_000 });
  await expect(buildImage(work(of), world.parts)).rejects.toMatchObject({
    code: 'ResourceExhausted',
    details: { neededBytes: 16_000, limitBytes: 10_000 },
  });
});

test('documents that do not fit together are refused', async () => {
  const of = await image();
  const other = ociImage(of.layers.slice(0, 1), {});
  const world = containerd(of);
  world.parts.registry = {
    ...world.parts.registry,
    getSmallBlob: async () => other.config.bytes,
  } as unknown as RegistryClient;
  const failure = await buildImage(work(of), world.parts).catch((error: unknown) => error);
  expect(failure).toBeInstanceOf(AppError);
  expect(failure).toMatchObject({ code: 'InvalidArgument' });
});
