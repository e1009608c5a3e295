/**
 * A Kubernetes node: API server, a container host with the product, and a kubelet whose image service is the product's or containerd itself.
 * Pods are bound to the node by name, as a scheduler would leave them. Ours.
 */
import { randomBytes } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { Cri } from './cri.ts';
import type { DockerRegistryOptions } from './docker-registry.ts';
import type { KubeApi, KubeObject, KubePod } from './kube-api.ts';
import { KubeApiServer } from './kube-api-server.ts';
import { Kubelet, podLog } from './kubelet.ts';
import { LazyHost } from './lazy-host.ts';
import { Scratch } from './scratch.ts';
import type { SidecarConfig } from './sidecar.ts';

export interface KubeHostOptions {
  /** Whom kubelet asks for images. */
  imageService: 'sidecar' | 'containerd';
  /** Laid over what the node needs. */
  config?: SidecarConfig;
  registry?: DockerRegistryOptions;
}

export interface PodOptions {
  annotations?: Record<string, string>;
  labels?: Record<string, string>;
  /** Containers run one after the other or side by side as kubelet pleases; each to its end. */
  containers: readonly { image: string; command?: readonly string[]; name?: string }[];
  imagePullPolicy?: 'IfNotPresent' | 'Always' | 'Never';
  imagePullSecrets?: readonly string[];
  serviceAccount?: string;
}

/** The rights that README.md asks for the product. */
const SIDECAR_USER = 'overlaybd-sidecar';
const SIDECAR_RIGHTS = [{ resources: ['pods', 'secrets', 'serviceaccounts'], verbs: ['get'] }];

export class KubeHost implements AsyncDisposable {
  readonly host: LazyHost;
  readonly api: KubeApi;
  readonly nodeName: string;
  readonly namespace: string;
  readonly kubelet: Kubelet;
  private readonly manifests: Scratch;
  private readonly stack: AsyncDisposableStack;

  private constructor(
    parts: Pick<KubeHost, 'host' | 'api' | 'nodeName' | 'namespace' | 'kubelet'>,
    manifests: Scratch,
    stack: AsyncDisposableStack,
  ) {
    this.host = parts.host;
    this.api = parts.api;
    this.nodeName = parts.nodeName;
    this.namespace = parts.namespace;
    this.kubelet = parts.kubelet;
    this.manifests = manifests;
    this.stack = stack;
  }

  static async start(options: KubeHostOptions): Promise<KubeHost> {
    const id = randomBytes(4).toString('hex');
    const nodeName = `obd-node-${id}`;
    const namespace = `obd-${id}`;
    const nodeUser = `system:node:${nodeName}`;
    await using stack = new AsyncDisposableStack();
    const server = stack.use(
      await KubeApiServer.start({
        users: [
          { name: nodeUser, groups: ['system:nodes'] },
          { name: SIDECAR_USER, groups: [] },
        ],
      }),
    );
    await server.allow(SIDECAR_USER, SIDECAR_RIGHTS);
    await server.api.createNamespace(namespace);
    const manifests = stack.use(await Scratch.create('manifests'));
    const config: SidecarConfig = {
      ...options.config,
      cri: { kubeconfig: await server.kubeconfig(SIDECAR_USER), manifests_dir: manifests.path, ...sectionOf(options.config, 'cri') },
    };
    const host = stack.use(await LazyHost.start({ sidecar: { config }, registry: options.registry ?? {} }));
    // So that pods start when the registry is away: the pause image is containerd's own affair, not the image service's.
    {
      await using cri = await Cri.connect(host.containerd.socket);
      await cri.pullImage(`${host.registry.host}/test/pause:1`);
    }
    const kubelet = stack.use(
      await Kubelet.start({
        nodeName,
        kubeconfig: await server.kubeconfig(nodeUser),
        runtimeSocket: host.containerd.socket,
        ...(options.imageService === 'sidecar' ? { imageSocket: host.sidecar.criSocket } : {}),
        manifestsDir: manifests.path,
        namespaces: [namespace],
      }),
    );
    return new KubeHost({ host, api: server.api, nodeName, namespace, kubelet }, manifests, stack.move());
  }

  /** Creates a pod on the node. */
  async createPod(name: string, options: PodOptions): Promise<void> {
    await this.api.createPod(this.namespace, this.podOf(name, options));
  }

  /** A pod that ends with 0; returns it with the output of its containers. */
  async runPod(name: string, options: PodOptions): Promise<{ pod: KubePod; logs: string[] }> {
    await this.createPod(name, options);
    return this.finished(name);
  }

  /** Waits until a pod has ended well. */
  async finished(name: string): Promise<{ pod: KubePod; logs: string[] }> {
    const pod = await this.api.waitPhase(this.namespace, name, ['Succeeded']).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${this.kubelet.logTail()}\n${this.host.sidecar.logTail()}`, { cause: error });
    });
    const logs = await Promise.all(pod.containers.map((container) => podLog(this.namespace, pod, container.name)));
    return { pod, logs };
  }

  /** A Deployment whose template is this pod. No controller acts on it: {@link createPodOfDeployment} does what one would. */
  async createDeployment(name: string, options: PodOptions): Promise<void> {
    const { metadata, spec } = this.podOf(name, options) as { metadata: KubeObject; spec: KubeObject };
    const labels = { ...options.labels, app: name };
    const template = {
      metadata: { annotations: metadata.annotations, labels },
      // A template's containers start again; that of a pod that is to end does not.
      spec: { ...spec, restartPolicy: 'Always' },
    };
    await this.api.call('POST', `/apis/apps/v1/namespaces/${this.namespace}/deployments`, {
      metadata: { name },
      spec: { replicas: 1, selector: { matchLabels: { app: name } }, template },
    });
  }

  /** Creates a pod from the template that the API server holds; returns its name. Its containers run once. */
  async createPodOfDeployment(deployment: string): Promise<string> {
    const path = `/apis/apps/v1/namespaces/${this.namespace}/deployments/${deployment}`;
    const { spec } = (await this.api.call('GET', path)) as { spec: { template: { metadata: KubeObject; spec: KubeObject } } };
    const name = `${deployment}-${randomBytes(4).toString('hex')}`;
    const pod = { metadata: { ...spec.template.metadata, name }, spec: { ...spec.template.spec, restartPolicy: 'Never' } };
    await this.api.createPod(this.namespace, pod);
    return name;
  }

  /** Writes the manifest of a static pod; kubelet shows it to the API server as `<name>-<node>`, which is returned. */
  async writeStaticPod(name: string, options: PodOptions): Promise<string> {
    await this.manifests.file(`${name}.json`, JSON.stringify(this.podOf(name, options)));
    return `${name}-${this.nodeName}`;
  }

  async removeStaticPod(name: string): Promise<void> {
    await rm(this.manifests.join(`${name}.json`));
  }

  private podOf(name: string, options: PodOptions): KubeObject {
    return {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name, namespace: this.namespace, annotations: options.annotations ?? {}, labels: options.labels ?? {} },
      spec: {
        nodeName: this.nodeName,
        hostNetwork: true,
        restartPolicy: 'Never',
        terminationGracePeriodSeconds: 0,
        ...(options.serviceAccount === undefined ? {} : { serviceAccountName: options.serviceAccount }),
        imagePullSecrets: (options.imagePullSecrets ?? []).map((secret) => ({ name: secret })),
        containers: options.containers.map((container, index) => ({
          name: container.name ?? `c${index}`,
          image: container.image,
          imagePullPolicy: options.imagePullPolicy ?? 'IfNotPresent',
          ...(container.command === undefined ? {} : { command: container.command }),
        })),
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stack.disposeAsync();
  }
}

function sectionOf(config: SidecarConfig | undefined, name: string): Record<string, string | number | boolean | string[]> {
  const section = config?.[name];
  return typeof section === 'object' ? { ...section } : {};
}
