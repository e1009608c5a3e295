/** The harness itself: kubelet with containerd as its image service runs pods whose root file systems come from the product's snapshotter. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KubeHost } from '../support/kube-host.ts';
import { pushImage } from '../support/oci-image.ts';
import { busyboxImage } from '../support/small-images.ts';

describe('kubelet beside the product', () => {
  let node: KubeHost;
  let busybox: string;

  beforeAll(async () => {
    node = await KubeHost.start({ imageService: 'containerd' });
    busybox = (await pushImage(node.host.registry, 'test/busybox', '1', await busyboxImage())).reference;
  });
  afterAll(async () => {
    await node?.[Symbol.asyncDispose]();
  });

  it('runs a pod of the API server to its end', async () => {
    const { pod, logs } = await node.runPod('plain', { containers: [{ image: busybox, command: ['/bin/echo', 'hello'] }] });
    expect(pod.containers[0]?.exitCode).toBe(0);
    expect(logs).toEqual(['hello\n']);
  });

  it('runs a static pod and tells the API server of it', async () => {
    const name = await node.writeStaticPod('static', { containers: [{ image: busybox, command: ['/bin/echo', 'static'] }] });
    const pod = await node.api.waitPhase(node.namespace, name, ['Succeeded']);
    expect(pod.containers[0]?.image).toBe(busybox);
    await node.removeStaticPod('static');
  });

  it('says in the events of a pod why its image cannot be pulled', async () => {
    await node.createPod('missing', { containers: [{ image: `${node.host.registry.host}/test/none:1` }] });
    const event = await node.api.waitEvent(node.namespace, 'missing', 'Failed', /not found/);
    expect(event.type).toBe('Warning');
  });
});
