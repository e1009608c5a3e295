/**
 * What Kubernetes users see of image caches, on a node whose kubelet asks the product for images: annotations of a pod's template decide, the
 * registry may be away where a cache holds the image, and failures stand in the pod's events. Rows R42 – R47, R105 – R113, R137 – R153.
 */
import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { createCache, type ExplainedPod, explainPod, listCaches, waitAutomaticCache, waitCache } from '../support/image-caches.ts';
import type { KubeEvent } from '../support/kube-api.ts';
import { KubeHost } from '../support/kube-host.ts';
import { layerOfEntries, pushImage } from '../support/oci-image.ts';
import { busyboxImage, namedImage } from '../support/small-images.ts';
import { waitFor } from '../support/wait.ts';

const AUTO = 'k8s.aliyun.com/eci-auto-imc';
const PIN = 'k8s.aliyun.com/eci-imc-id';
const PIN_ALIAS = 'k8s.aliyun.com/eci-image-snapshot-id';
const PERFECT = 'k8s.aliyun.com/imc-perfect-match';
const COUNT = 'k8s.aliyun.com/imc-match-count-request';
/** The label of the vendor's examples. */
const OPT_IN = { 'alibabacloud.com/eci': 'true' };

const reasonsOf = (events: readonly KubeEvent[]): string[] => events.map(({ reason }) => reason);

describe('pods steer image caches', () => {
  let node: KubeHost;

  beforeAll(async () => {
    node = await KubeHost.start({ imageService: 'sidecar' });
  });
  afterAll(async () => {
    await node?.[Symbol.asyncDispose]();
  });
  afterEach(async () => {
    await node.host.registry.startAgain();
  });

  /** An image that prints its name; in a repository of its own, so that none is taken for another. */
  async function image(name: string): Promise<string> {
    return (await pushImage(node.host.registry, `test/${name}`, '1', await namedImage(name))).reference;
  }

  async function readyCache(imageCacheName: string, images: readonly string[]): Promise<string> {
    const { imageCacheId } = await createCache(node.host.sidecar, { imageCacheName, images });
    await waitCache(node.host.sidecar, imageCacheId, 'Ready');
    return imageCacheId;
  }

  /** Every request for manifests and blobs since the registry was told to forget. */
  async function fetched(): Promise<string[]> {
    return (await node.host.registry.requests()).filter(({ kind }) => kind !== 'other').map(({ method, uri }) => `${method} ${uri}`);
  }

  it('starts a pod of a Deployment that pins a cache while the registry is stopped, without a pull (IfNotPresent)', async () => {
    const reference = await image('pinned');
    const cache = await readyCache('pinned', [reference]);
    await node.host.registry.stop();
    await node.createDeployment('pins', {
      annotations: { [PIN]: cache },
      labels: OPT_IN,
      containers: [{ image: reference }],
    });
    const { logs } = await node.finished(await node.createPodOfDeployment('pins'));
    expect(logs).toEqual(['pinned\n']);
  });

  it('asks the registry nothing and pulls nothing for an IfNotPresent pod of a Ready cache', async () => {
    const reference = await image('present');
    await readyCache('present', [reference]);
    await node.host.registry.forget();
    const { logs } = await node.runPod('present', { annotations: { [AUTO]: 'true' }, labels: OPT_IN, containers: [{ image: reference }] });
    expect(logs).toEqual(['present\n']);
    const events = await node.api.podEvents(node.namespace, 'present');
    expect(reasonsOf(events)).not.toContain('Pulling');
    expect(events.find(({ reason }) => reason === 'Pulled')?.message).toMatch(/already present/);
    expect(await fetched()).toEqual([]);
  });

  it('answers the pull of an Always pod from its cache while the registry is stopped', async () => {
    const reference = await image('always');
    await readyCache('always', [reference]);
    await node.host.registry.stop();
    const { logs } = await node.runPod('always', { labels: OPT_IN, imagePullPolicy: 'Always', containers: [{ image: reference }] });
    expect(logs).toEqual(['always\n']);
    expect(reasonsOf(await node.api.podEvents(node.namespace, 'always'))).toContain('Pulling');
  });

  it('starts a static pod from its cache while the registry is stopped', async () => {
    const reference = await image('static');
    const cache = await readyCache('static', [reference]);
    await node.host.registry.stop();
    const name = await node.writeStaticPod('static', {
      annotations: { [PIN]: cache },
      labels: OPT_IN,
      imagePullPolicy: 'Always',
      containers: [{ image: reference }],
    });
    const { logs } = await node.finished(name);
    expect(logs).toEqual(['static\n']);
    const [explained] = await explainedPods(name);
    expect(explained).toMatchObject({ imagesFrom: 'manifest', rules: { inForce: 'pin' } });
    expect(explained?.decisions).toMatchObject([{ image: reference, decision: 'pinned-cache', imageCacheId: cache, outcome: 'cache' }]);
    await node.removeStaticPod('static');
  });

  it('takes the older name of the pin (eci-image-snapshot-id)', async () => {
    const reference = await image('alias');
    const cache = await readyCache('alias', [reference]);
    const { pod } = await node.runPod('alias', {
      annotations: { [PIN_ALIAS]: cache },
      labels: OPT_IN,
      imagePullPolicy: 'Always',
      containers: [{ image: reference }],
    });
    const { decisions } = await explainPod(node.host.sidecar, pod.uid);
    expect(decisions).toMatchObject([{ decision: 'pinned-cache', imageCacheId: cache }]);
  });

  it('fails a pod that pins a cache which is not Ready, and names cache and state in its events', async () => {
    const reference = await image('unready');
    const { imageCacheId } = await createCache(node.host.sidecar, {
      imageCacheName: 'unready',
      images: [`${node.host.registry.host}/test/unready:none`],
    });
    await waitCache(node.host.sidecar, imageCacheId, 'Failed');
    await node.createPod('unready', { annotations: { [PIN]: imageCacheId }, labels: OPT_IN, containers: [{ image: reference }] });
    const event = await node.api.waitEvent(node.namespace, 'unready', 'Failed', new RegExp(imageCacheId));
    expect(event).toMatchObject({ type: 'Warning', component: 'kubelet' });
    expect(event.message).toMatch(/is Failed, not Ready/);
    const pod = await node.api.pod(node.namespace, 'unready');
    expect(pod?.phase).toBe('Pending');
    await node.api.deletePod(node.namespace, 'unready');
  });

  it('fails a pod that pins a cache which is not Ready although another cache holds its image', async () => {
    const reference = await image('elsewhere');
    await readyCache('elsewhere', [reference]);
    const unknown = 'imc-00000000000000000000';
    await node.createPod('elsewhere', { annotations: { [PIN]: unknown }, labels: OPT_IN, containers: [{ image: reference }] });
    const event = await node.api.waitEvent(node.namespace, 'elsewhere', 'Failed', new RegExp(unknown));
    expect(event.message).toMatch(/does not exist/);
    await node.api.deletePod(node.namespace, 'elsewhere');
  });

  it('makes a cache of all images of a pod that matched nothing, and serves the next pod from it without the registry', async () => {
    const images = [await image('missed-a'), await image('missed-b')];
    const containers = images.map((one) => ({ image: one }));
    const first = await node.runPod('missed-first', { annotations: { [AUTO]: 'true' }, labels: OPT_IN, containers });
    expect(first.logs).toEqual(['missed-a\n', 'missed-b\n']);
    await waitAutomaticCache(node.host.sidecar, images);
    await node.host.registry.stop();
    const next = await node.runPod('missed-next', {
      annotations: { [AUTO]: 'true' },
      labels: OPT_IN,
      imagePullPolicy: 'Always',
      containers,
    });
    expect(next.logs).toEqual(['missed-a\n', 'missed-b\n']);
  });

  it('makes no cache for a pod that says eci-auto-imc "false"', async () => {
    const reference = await image('no-auto');
    await node.runPod('no-auto', { annotations: { [AUTO]: 'false' }, labels: OPT_IN, containers: [{ image: reference }] });
    const caches = await listCaches(node.host.sidecar);
    expect(caches.flatMap(({ images }) => images.map((one) => one.reference))).not.toContain(reference);
  });

  it('takes only a cache with every image under imc-perfect-match, and pulls when there is none', async () => {
    const [half, other] = [await image('perfect-half'), await image('perfect-other')];
    await readyCache('perfect-half', [half]);
    const containers = [{ image: half }, { image: other }];
    const annotations = { [PERFECT]: 'true' };
    // The half cache is no candidate: a cache of both is made.
    await node.runPod('perfect-miss', { annotations, labels: OPT_IN, imagePullPolicy: 'Always', containers });
    const both = await waitAutomaticCache(node.host.sidecar, [half, other]);
    await node.host.registry.stop();
    const hit = await node.runPod('perfect-hit', { annotations, labels: OPT_IN, imagePullPolicy: 'Always', containers });
    expect(hit.logs).toEqual(['perfect-half\n', 'perfect-other\n']);
    expect(await matchesOf('perfect-half')).toBe(0);
    const explained = await explainPod(node.host.sidecar, hit.pod.uid);
    expect(explained).toMatchObject({ imagesFrom: 'api-server', rules: { inForce: 'perfect-match' } });
    const served = { decision: 'matched-cache', imageCacheId: both.imageCacheId, outcome: 'cache' };
    expect(explained.decisions).toHaveLength(2);
    expect(explained.decisions).toMatchObject([served, served]);
  });

  it('takes a cache with as many images as imc-match-count-request says, and pulls the others', async () => {
    const [held, other] = [await image('count-held'), await image('count-other')];
    const cache = await readyCache('count-held', [held]);
    const containers = [{ image: held }, { image: other }];
    await node.host.registry.forget();
    const { logs, pod } = await node.runPod('count-one', {
      annotations: { [COUNT]: '1' },
      labels: OPT_IN,
      imagePullPolicy: 'Always',
      containers,
    });
    expect(logs).toEqual(['count-held\n', 'count-other\n']);
    const { rules, decisions } = await explainPod(node.host.sidecar, pod.uid);
    expect(rules.inForce).toBe('match-count');
    expect(decisions.find((one) => one.image === held)).toMatchObject({ decision: 'matched-cache', imageCacheId: cache, outcome: 'cache' });
    expect(decisions.find((one) => one.image === other)).toMatchObject({ decision: 'pull' });
    expect((await fetched()).some((line) => line.startsWith('GET') && line.includes('/test/count-other/'))).toBe(true);
  });

  it('sets a cache with fewer images than imc-match-count-request aside', async () => {
    const [held, other] = [await image('few-held'), await image('few-other')];
    await readyCache('few-held', [held]);
    const { pod } = await node.runPod('few', {
      annotations: { [COUNT]: '2' },
      labels: OPT_IN,
      imagePullPolicy: 'Always',
      containers: [{ image: held }, { image: other }],
    });
    expect(await matchesOf('few-held')).toBe(0);
    const { decisions } = await explainPod(node.host.sidecar, pod.uid);
    expect(decisions.map(({ decision }) => decision)).toEqual(['pull', 'pull']);
  });

  it('starts a pod whose annotations cannot be understood as if they were absent', async () => {
    const reference = await image('garbled');
    const annotations = { [AUTO]: 'yes', [PERFECT]: '1', [COUNT]: '-3', [PIN]: 'x '.repeat(1000) };
    const { logs } = await node.runPod('garbled', { annotations, labels: OPT_IN, containers: [{ image: reference }] });
    expect(logs).toEqual(['garbled\n']);
  });

  it('changes nothing for a living pod whose annotations are edited', async () => {
    const reference = await image('edited');
    const command = ['/bin/sleep', '100000'];
    await node.createPod('edited', { annotations: { [AUTO]: 'false' }, labels: OPT_IN, containers: [{ image: reference, command }] });
    const before = await node.api.waitPhase(node.namespace, 'edited', ['Running']);
    await node.api.annotatePod(node.namespace, 'edited', { [PIN]: 'imc-00000000000000000000', [AUTO]: 'true' });
    // A later pod that is through shows that kubelet has looked at its pods again.
    await node.runPod('edited-later', { annotations: { [AUTO]: 'false' }, labels: OPT_IN, containers: [{ image: reference }] });
    const after = await node.api.pod(node.namespace, 'edited');
    expect(after?.phase).toBe('Running');
    expect(after?.containers[0]?.restartCount).toBe(before.containers[0]?.restartCount);
    expect((await listCaches(node.host.sidecar)).flatMap(({ images }) => images.map((one) => one.reference))).not.toContain(reference);
    await node.api.deletePod(node.namespace, 'edited');
  });

  it('shows kubelet a file system of images that exists and holds what caches hold', async () => {
    const before = await node.kubelet.imageFileSystem();
    const sizeBytes = 8 * 1024 * 1024;
    const above = [await layerOfEntries([{ name: 'random', content: randomBytes(sizeBytes) }])];
    const { reference } = await pushImage(node.host.registry, 'test/weight', '1', await busyboxImage({ above }));
    await readyCache('weight', [reference]);
    const after = await waitFor(
      async () => {
        const now = await node.kubelet.imageFileSystem();
        return now.usedBytes >= before.usedBytes + sizeBytes ? now : undefined;
      },
      { what: 'kubelet to see 8 MiB more of images', timeoutMs: 60_000, everyMs: 500, details: () => node.kubelet.logTail() },
    );
    expect(after.capacityBytes).toBeGreaterThan(after.usedBytes);
  });

  it('goes on after the control plane was killed: the next pod starts from its cache', async () => {
    const reference = await image('killed');
    await readyCache('killed', [reference]);
    await node.host.registry.stop();
    await node.host.sidecar.kill('sidecar');
    const { logs } = await node.runPod('killed', { labels: OPT_IN, imagePullPolicy: 'Always', containers: [{ image: reference }] });
    expect(logs).toEqual(['killed\n']);
  });

  /** What the product knows of pods of this name. */
  async function explainedPods(name: string): Promise<ExplainedPod[]> {
    const answer = JSON.parse(await node.host.sidecar.admin('GET', '/v1/pods')) as { pods: (ExplainedPod & { name: string })[] };
    return answer.pods.filter((pod) => pod.name === name);
  }

  async function matchesOf(imageCacheName: string): Promise<number> {
    const cache = (await listCaches(node.host.sidecar)).find((one) => one.imageCacheName === imageCacheName);
    if (cache === undefined) throw new Error(`there is no image cache ${imageCacheName}`);
    return cache.matchCount;
  }
});
