/** Pods of accelerated images, of which containerd fetches no layer: kubelet's pulls are lazy, and its secrets serve the reads that follow. */
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { convertTars } from '../support/converted-image.ts';
import { DockerRegistry } from '../support/docker-registry.ts';
import { explainPod } from '../support/image-caches.ts';
import { KubeHost } from '../support/kube-host.ts';
import { type Image, pushImage } from '../support/oci-image.ts';
import { Scratch } from '../support/scratch.ts';
import { busyboxLayer } from '../support/small-images.ts';
import { tarOf } from '../support/tar.ts';

const ACCOUNT = { username: 'puller', password: 'right-and-secret' };
/** Lazy alone: no cache is looked for or made. */
const NO_CACHE = { 'k8s.aliyun.com/eci-auto-imc': 'false' };
const PAYLOAD_BYTES = 32 * 1024 * 1024;

describe('pods of accelerated images', () => {
  const stack = new AsyncDisposableStack();
  let node: KubeHost;
  let registry: DockerRegistry;
  let scratch: Scratch;

  beforeAll(async () => {
    scratch = stack.use(await Scratch.create('k8s-lazy'));
    registry = stack.use(await DockerRegistry.start({ htpasswd: ACCOUNT }));
    node = stack.use(await KubeHost.start({ imageService: 'sidecar' }));
    await node.host.containerd.addRegistry(registry.host);
  });
  afterAll(() => stack.disposeAsync());

  /** busybox and a file that does not compress and no pod reads; no two have a layer in common. */
  async function accelerated(name: string): Promise<Image> {
    const base = await scratch.file(`${name}/base.tar`, (await busyboxLayer()).blob);
    const entries = [{ name: 'payload', content: randomBytes(PAYLOAD_BYTES) }];
    const payload = await scratch.file(`${name}/payload.tar`, await tarOf(entries));
    const config = { cmd: ['/bin/echo', name] };
    return convertTars([payload, base], { config, stagingDirectory: scratch.join(name, 'blobs') });
  }

  it('start before their layers are fetched', async () => {
    const { reference } = await pushImage(node.host.registry, 'lazy/open', '1', await accelerated('open'));
    await node.host.registry.forget();
    const { logs, pod } = await node.runPod('open', { annotations: NO_CACHE, containers: [{ image: reference }] });
    const sent = await node.host.registry.blobBytesSent();
    expect(logs).toEqual(['open\n']);
    expect(sent).toBeLessThan(PAYLOAD_BYTES / 2);
    const { decisions } = await explainPod(node.host.sidecar, pod.uid);
    expect(decisions).toMatchObject([{ decision: 'pull', outcome: 'lazy' }]);
  });

  it('read a private registry with the Secret of their pod, and nobody else does', async () => {
    const { reference } = await pushImage(registry, 'lazy/private', '1', await accelerated('private'));
    const auth = Buffer.from(`${ACCOUNT.username}:${ACCOUNT.password}`).toString('base64');
    await node.api.createSecret(node.namespace, {
      name: 'lazy',
      type: 'kubernetes.io/dockerconfigjson',
      data: { '.dockerconfigjson': JSON.stringify({ auths: { [registry.host]: { auth } } }) },
    });
    const containers = [{ image: reference }];
    const { logs } = await node.runPod('private', { annotations: NO_CACHE, imagePullSecrets: ['lazy'], containers });
    expect(logs).toEqual(['private\n']);
    await node.createPod('stranger', { annotations: NO_CACHE, imagePullPolicy: 'Always', containers });
    await node.api.waitEvent(node.namespace, 'stranger', 'Failed', /401|[Uu]nauthorized|authoriz|right/);
    await node.api.deletePod(node.namespace, 'stranger');
  });
});
