/**
 * Credentials that Kubernetes users keep in Secrets open private images, lazily and from caches; those that are not meant for it, and pods
 * without any, are refused. Rows R42 – R44, R50, R51.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { DockerRegistry } from '../support/docker-registry.ts';
import { createCache, waitCache } from '../support/image-caches.ts';
import { KubeHost } from '../support/kube-host.ts';
import { pushImage } from '../support/oci-image.ts';
import { namedImage } from '../support/small-images.ts';

const ACCOUNT = { username: 'puller', password: 'right-and-secret' };
/** Not asked for by the pods, so that what kubelet hands over is all there is. */
const NO_CACHE = { 'k8s.aliyun.com/eci-auto-imc': 'false' };

describe('image pull Secrets', () => {
  let node: KubeHost;
  let registry: DockerRegistry;

  beforeAll(async () => {
    registry = await DockerRegistry.start({ htpasswd: ACCOUNT });
    node = await KubeHost.start({ imageService: 'sidecar' });
    await node.host.containerd.addRegistry(registry.host);
  });
  afterAll(async () => {
    await node?.[Symbol.asyncDispose]();
    await registry?.[Symbol.asyncDispose]();
  });

  async function image(name: string): Promise<string> {
    return (await pushImage(registry, `private/${name}`, '1', await namedImage(name))).reference;
  }

  function dockerConfig(password = ACCOUNT.password): Record<string, string> {
    const auth = Buffer.from(`${ACCOUNT.username}:${password}`).toString('base64');
    return { '.dockerconfigjson': JSON.stringify({ auths: { [registry.host]: { auth } } }) };
  }

  const type = 'kubernetes.io/dockerconfigjson';

  it('open a private image when the pod names them (what kubelet hands over with the pull)', async () => {
    const reference = await image('named');
    await node.api.createSecret(node.namespace, { name: 'named', type, data: dockerConfig() });
    const { logs } = await node.runPod('named', {
      annotations: NO_CACHE,
      imagePullSecrets: ['named'],
      containers: [{ image: reference }],
    });
    expect(logs).toEqual(['named\n']);
  });

  it('fail the pull when the password is wrong, and say so in the pod without showing it', async () => {
    const reference = await image('wrong');
    await node.api.createSecret(node.namespace, { name: 'wrong', type, data: dockerConfig('wrong-but-secret') });
    await node.createPod('wrong', { annotations: NO_CACHE, imagePullSecrets: ['wrong'], containers: [{ image: reference }] });
    const event = await node.api.waitEvent(node.namespace, 'wrong', 'Failed', /401|[Uu]nauthorized|authoriz/);
    expect(event.message).not.toContain('wrong-but-secret');
    await node.api.deletePod(node.namespace, 'wrong');
  });

  it('of a service account open private images of its pods, by name prefix or label, and others do not (R44)', async () => {
    const [byName, byLabel, unmarked] = [await image('by-name'), await image('by-label'), await image('unmarked')];
    const cases = [
      { account: 'by-name', secret: 'acr-credential-test', labels: {}, reference: byName },
      { account: 'by-label', secret: 'labelled', labels: { 'images.alibabacloud.com/accelerated': 'true' }, reference: byLabel },
      { account: 'unmarked', secret: 'unmarked', labels: {}, reference: unmarked },
    ];
    for (const { account, secret, labels } of cases) {
      await node.api.createSecret(node.namespace, { name: secret, type, labels, data: dockerConfig() });
      await node.api.createServiceAccount(node.namespace, account, [secret]);
    }
    for (const { account, reference } of cases.slice(0, 2)) {
      const { logs } = await node.runPod(account, { annotations: NO_CACHE, serviceAccount: account, containers: [{ image: reference }] });
      expect(logs).toEqual([`${account}\n`]);
    }
    await node.createPod('unmarked', { annotations: NO_CACHE, serviceAccount: 'unmarked', containers: [{ image: unmarked }] });
    await node.api.waitEvent(node.namespace, 'unmarked', 'Failed', /401|[Uu]nauthorized|authoriz/);
    await node.api.deletePod(node.namespace, 'unmarked');
  });

  it('are needed for a private image of a cache too: no pod borrows what another may have', async () => {
    const reference = await image('cached');
    const { imageCacheId } = await createCache(node.host.sidecar, {
      imageCacheName: 'private',
      images: [reference],
      imageRegistryCredentials: [{ server: registry.host, userName: ACCOUNT.username, password: ACCOUNT.password }],
    });
    await waitCache(node.host.sidecar, imageCacheId, 'Ready');
    await node.createPod('without', { imagePullPolicy: 'Always', containers: [{ image: reference }] });
    await node.api.waitEvent(node.namespace, 'without', 'Failed', /right|401|[Uu]nauthorized|authoriz/);
    await node.api.deletePod(node.namespace, 'without');
    await node.api.createSecret(node.namespace, { name: 'cached', type, data: dockerConfig() });
    const { logs } = await node.runPod('with', {
      imagePullPolicy: 'Always',
      imagePullSecrets: ['cached'],
      containers: [{ image: reference }],
    });
    expect(logs).toEqual(['cached\n']);
  });
});
