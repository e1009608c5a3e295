/**
 * The images of Debian packages once more, started from their own layers: converted to index-only twins in a registry without the
 * referrers API and in one that has it, pulled by their ordinary tag through CRI and through a client that passes labels. No layer is
 * downloaded, the original blobs are read in ranges, and what many readers get at once, file by file, is what overlayfs unpacks, also when
 * the data plane is killed under them.
 */
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { JobView } from '../../../admin/convert-schemas.ts';
import { Cri } from '../../support/cri.ts';
import { type FaultRegistry, startFaultRegistry } from '../../support/fault-registry.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { type Image, pushImage } from '../../support/oci-image.ts';
import { SnapshotView } from '../../support/snapshot-view.ts';
import { listTree, type TreeEntry, treeDifferences } from '../../support/tree-compare.ts';
import { dropCaches, knownFiles, VerifyingReader } from '../../support/verifying-reader.ts';
import { waitFor } from '../../support/wait.ts';
import { runOnce } from '../lazy/lazy-images.ts';
import { REAL_IMAGES, realImage } from './real-images.ts';

/** One image on a machine whose cores are all taken; idle it takes a twentieth. The images themselves may have to be downloaded. */
const LIMIT_MS = 280_000;

let host: LazyHost;
let withReferrers: FaultRegistry;
let cri: Cri;
const images = new Map<string, Image>();
/** Layers that containerd has because a comparison unpacked them: images share their base. */
const downloaded = new Set<string>();

beforeAll(async () => {
  for (const source of REAL_IMAGES) images.set(source.name, await realImage(source));
  // A budget that even a machine with other work keeps: what happens beyond it is another test.
  host = await LazyHost.start({ sidecar: { config: { twins: { lookup_budget: '30s' } } } });
  withReferrers = await startFaultRegistry();
  cri = await Cri.connect(host.containerd.socket);
}, 1_200_000);

afterAll(async () => {
  await cri?.[Symbol.asyncDispose]();
  await host?.[Symbol.asyncDispose]();
  await withReferrers?.[Symbol.asyncDispose]();
});

interface Asked {
  method: string;
  uri: string;
  status: number;
}

/** What a registry was asked for since the last call. */
async function asked(registry: 'docker' | 'oci 1.1'): Promise<Asked[]> {
  if (registry === 'oci 1.1') return withReferrers.log.splice(0).map(({ method, url, status }) => ({ method, uri: url, status }));
  const entries = await host.registry.requests();
  await host.registry.forget();
  return entries.map(({ method, uri, status }) => ({ method, uri, status }));
}

/** The status codes of GETs of the image's own layers. */
function statusesOfLayers(entries: readonly Asked[], image: Image): number[] {
  const isLayer = ({ uri }: Asked): boolean => image.layers.some(({ digest }) => uri.includes(digest));
  return [...new Set(entries.filter((entry) => entry.method === 'GET' && isLayer(entry)).map((entry) => entry.status))];
}

async function makeIndex(reference: string): Promise<void> {
  const asJob = (text: string): JobView => JSON.parse(text) as JobView;
  const { id } = asJob(await host.sidecar.admin('POST', '/v1/convert', { reference, mode: 'index-only' }));
  const ended = async (): Promise<JobView | undefined> => {
    const job = asJob(await host.sidecar.admin('GET', `/v1/convert/jobs/${id}`));
    return job.state === 'SUCCESS' || job.state === 'FAILED' ? job : undefined;
  };
  const job = await waitFor(ended, { what: `the index of ${reference}`, timeoutMs: LIMIT_MS, everyMs: 100 });
  expect(job.failure).toBeNull();
}

/**
 * Fields that containerd's unpacking gives another value: the times of the root and of directories that the topmost layer changes without
 * listing them, link counts, the mark of a file whose other names are all hidden, and attributes that it does not set. overlayfs.test.ts
 * checks each for what it is.
 */
function comparable(entries: readonly TreeEntry[], loneFiles: readonly string[]): TreeEntry[] {
  const unlisted = new Set([
    '.',
    ...loneFiles.flatMap((file) => file.split('/').map((_, depth, names) => names.slice(0, depth).join('/'))),
  ]);
  const names = Map.groupBy(entries, (entry) => entry.hardlink_group);
  return entries.map(({ xattrs_b64: attributes, hardlink_group: group, ...entry }) => {
    const kept = Object.entries(attributes ?? {}).filter(([name]) => !name.startsWith('trusted.'));
    const isUnlisted = entry.type === 'dir' && unlisted.has(entry.path ?? '');
    const time = isUnlisted ? { mtime: 0, mtime_ns: 0 } : {};
    const links = names.get(group)!.length > 1 ? { hardlink_group: group } : {};
    return { ...entry, ...links, ...time, ...(kept.length === 0 ? {} : { xattrs_b64: Object.fromEntries(kept) }) } as TreeEntry;
  });
}

const cases = REAL_IMAGES.map((source, i) => ({
  ...source,
  registry: i % 2 === 0 ? ('docker' as const) : ('oci 1.1' as const),
  client: i % 3 === 0 ? ('CRI' as const) : ('a client that passes labels' as const),
}));

test.each(cases)('$name from $registry through $client', { timeout: LIMIT_MS }, async ({ name, registry, client, loneFiles }) => {
  const image = images.get(name)!;
  const target = registry === 'docker' ? host.registry : { url: withReferrers.origin, host: withReferrers.host };
  const { reference, manifest } = await pushImage(target, `real/${name}`, '1', image);
  await makeIndex(reference);
  await asked(registry);

  const command = ['/bin/bash', '-c', 'ls -lR /usr > /dev/null && cat /usr/bin/* | sha256sum && echo ran'];
  if (client === 'CRI') {
    await cri.pullImage(reference);
    const pod = await cri.runPod(name);
    const container = await cri.startContainer(pod, reference, { command });
    expect(await cri.waitExit(container.id)).toMatchObject({ exitCode: 0 });
    await cri.removePod(pod.id);
  }
  const pulled = await lazyPull(host.containerd, reference, { snapshotter: SNAPSHOTTER });
  expect(pulled.layers.map((layer) => layer.isFetched)).toEqual(image.layers.map(({ digest }) => downloaded.has(digest)));
  if (client !== 'CRI') expect(await runOnce(host, reference, name, ...command)).toMatch(/ran\n$/);
  const entries = await asked(registry);
  // That the first registry has no such API was learnt when the index was published; then the tag is asked for.
  const question = registry === 'docker' ? `/manifests/${manifest.digest.replace(':', '-')}` : `/referrers/${manifest.digest}`;
  const lookUp = { method: 'GET', uri: expect.stringContaining(question), status: 200 };
  expect(entries).toContainEqual(lookUp);
  const isFirst = image.layers.some(({ digest }) => !downloaded.has(digest));
  expect(statusesOfLayers(entries, image)).toEqual(isFirst ? [206] : expect.not.arrayContaining([200]));

  await using actual = await SnapshotView.mount(host.containerd, SNAPSHOTTER, pulled.snapshotKey);
  const plain = await lazyPull(host.containerd, reference, { snapshotter: 'overlayfs', passLabels: false });
  for (const { digest } of image.layers) downloaded.add(digest);
  await using expected = await SnapshotView.mount(host.containerd, 'overlayfs', plain.snapshotKey);
  await asked(registry);
  const unpacked = await listTree(expected.path);
  const files = knownFiles(unpacked);
  await dropCaches();
  await using readers = new AsyncDisposableStack();
  const started: VerifyingReader[] = [];
  for (const [i, mode] of (['read', 'mmap', 'read', 'mmap'] as const).entries()) {
    started.push(readers.use(await VerifyingReader.start({ root: actual.path, mode, files, seed: i + 1 })));
  }
  // Killed among spans that are being fetched, inflated and written.
  process.kill(host.sidecar.pidOf('blockd')!, 'SIGKILL');
  const seen = await Promise.all(
    started.map(async (reader) => {
      await reader.waitPasses(1, LIMIT_MS);
      return reader.stop();
    }),
  );
  for (const summary of seen) expect(summary).toMatchObject({ errors: [], wrong: [] });
  expect(statusesOfLayers(await asked(registry), image).filter((status) => status !== 206)).toEqual([]);
  expect(
    treeDifferences(comparable(unpacked, loneFiles), comparable(await listTree(actual.path), loneFiles), { ignoreFields: ['nlink'] }),
  ).toEqual([]);
});
