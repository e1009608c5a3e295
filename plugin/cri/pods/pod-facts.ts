/**
 * What is known of a pod before its images are pulled: from the API server, or from kubelet's directory of static pods. Sources: Kubernetes'
 * core/v1 Pod; kubelet's `pkg/kubelet/config` (static pods are named after their manifest and the node). Whoever cannot be asked, or does
 * not know the pod, costs no more than that: its images are then learned as they are pulled.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import path from 'node:path';
import { parse } from 'yaml';
import { z } from 'zod';
import { describeError, errnoOf, isAppError } from '../../base/errors.ts';
import type { KubeClient } from '../../base/kubernetes/kube-client.ts';
import { MIB } from '../../base/units.ts';
import type { PodSandbox } from '../wire/messages.ts';
import { gibOf } from './annotations.ts';
import { parseQuantity } from './quantity.ts';

/** Images of one pod that are looked at; Kubernetes has no limit, but an object of etcd ends at 1.5 MiB. */
export const MAX_POD_IMAGES = 100;
const MAX_NAME_CHARS = 253;
/** Static pods of one node. */
const MAX_MANIFESTS = 200;
const MAX_MANIFEST_BYTES = 1 * MIB;

export interface PodFacts {
  readonly from: 'api-server' | 'manifest';
  /** Of init containers and containers, each once, as they are written. */
  readonly images: readonly string[];
  readonly serviceAccount: string;
  /** Names of Secrets in the pod's namespace. */
  readonly pullSecrets: readonly string[];
  /** Limit of ephemeral storage in GiB; null: some container has none. */
  readonly ephemeralLimitGib: number | null;
}

export interface FoundFacts {
  readonly facts: PodFacts | undefined;
  /** Why there are none, as a sentence. */
  readonly reason: string;
}

const name = z.string().max(MAX_NAME_CHARS);
const containerSchema = z.object({
  image: z.string().max(1024).optional(),
  resources: z.object({ limits: z.record(z.string(), z.union([z.string(), z.number()])).nullish() }).nullish(),
});
const podSchema = z.object({
  kind: z.literal('Pod').optional(),
  metadata: z.object({
    name,
    namespace: name.optional(),
    uid: name.optional(),
    annotations: z.record(z.string(), z.string()).nullish(),
  }),
  spec: z.object({
    serviceAccountName: name.nullish(),
    imagePullSecrets: z.array(z.object({ name: name.optional() })).nullish(),
    initContainers: z.array(containerSchema).nullish(),
    containers: z.array(containerSchema),
  }),
});
type Pod = z.infer<typeof podSchema>;

/** The mirror of a static pod carries the uid that kubelet gave it here. */
const CONFIG_HASH = 'kubernetes.io/config.hash';
const CONFIG_SOURCE = 'kubernetes.io/config.source';

function ephemeralLimitOf(container: z.infer<typeof containerSchema>): number {
  const limit = container.resources?.limits?.['ephemeral-storage'];
  return limit === undefined ? Number.POSITIVE_INFINITY : (parseQuantity(String(limit)) ?? Number.POSITIVE_INFINITY);
}

function factsOf({ spec }: Pod, from: PodFacts['from']): PodFacts {
  const init = spec.initContainers ?? [];
  const images = new Set([...init, ...spec.containers].flatMap(({ image }) => (image === undefined || image === '' ? [] : [image])));
  // As the scheduler counts: containers run together, init containers one after the other.
  const together = spec.containers.reduce((sum, container) => sum + ephemeralLimitOf(container), 0);
  const limitBytes = Math.max(together, ...init.map(ephemeralLimitOf));
  return {
    from,
    images: [...images].slice(0, MAX_POD_IMAGES),
    serviceAccount: spec.serviceAccountName ?? 'default',
    pullSecrets: (spec.imagePullSecrets ?? []).flatMap((secret) => secret.name ?? []),
    ephemeralLimitGib: Number.isFinite(limitBytes) ? (gibOf(limitBytes) ?? null) : null,
  };
}

export interface FactsOptions {
  readonly kube: KubeClient | undefined;
  /** kubelet's `staticPodPath`. */
  readonly manifestsDir: string | undefined;
}

export class PodFactsFinder {
  private readonly options: FactsOptions;

  constructor(options: FactsOptions) {
    this.options = options;
  }

  /** True when nobody can be asked. */
  get isBlind(): boolean {
    return this.options.kube === undefined && this.options.manifestsDir === undefined;
  }

  /** Looks the pod up. Never fails, except by the signal. */
  async find(pod: PodSandbox, signal: AbortSignal): Promise<FoundFacts> {
    const reasons: string[] = [];
    if (this.options.manifestsDir !== undefined && pod.annotations[CONFIG_SOURCE] !== 'api') {
      const found = await this.fromManifests(this.options.manifestsDir, pod);
      if (found.facts !== undefined) return found;
      reasons.push(found.reason);
    }
    if (this.options.kube !== undefined) {
      const found = await this.fromApiServer(this.options.kube, pod, signal);
      if (found.facts !== undefined) return found;
      reasons.push(found.reason);
    }
    return {
      facts: undefined,
      reason: reasons.length === 0 ? 'neither a kubeconfig nor a directory of static pods is configured' : reasons.join('; '),
    };
  }

  private async fromApiServer(kube: KubeClient, pod: PodSandbox, signal: AbortSignal): Promise<FoundFacts> {
    let answer: unknown;
    try {
      answer = await kube.get(`/api/v1/namespaces/${encodeURIComponent(pod.namespace)}/pods/${encodeURIComponent(pod.name)}`, signal);
    } catch (error) {
      if (!isAppError(error) && !signal.aborted) throw error;
      return { facts: undefined, reason: signal.aborted ? 'the API server did not answer in time' : describeError(error) };
    }
    const parsed = podSchema.safeParse(answer);
    if (!parsed.success) return { facts: undefined, reason: 'the API server answered something else than a pod' };
    const { uid, annotations } = parsed.data.metadata;
    if (uid !== pod.uid && annotations?.[CONFIG_HASH] !== pod.uid) {
      return { facts: undefined, reason: 'the API server knows another pod of this name' };
    }
    return { facts: factsOf(parsed.data, 'api-server'), reason: '' };
  }

  private async fromManifests(directory: string, pod: PodSandbox): Promise<FoundFacts> {
    let files: string[];
    try {
      files = (await readdir(directory)).filter((file) => /^[^.].*\.(?:ya?ml|json)$/.test(file)).sort();
    } catch (error) {
      return { facts: undefined, reason: `${directory} cannot be read (${errnoOf(error) ?? 'unknown'})` };
    }
    let best: Pod | undefined;
    for (const file of files.slice(0, MAX_MANIFESTS)) {
      const found = await readManifest(path.join(directory, file));
      if (found === undefined || (found.metadata.namespace ?? 'default') !== pod.namespace) continue;
      const { name: ownName, uid } = found.metadata;
      if (uid !== undefined && uid === pod.uid) return { facts: factsOf(found, 'manifest'), reason: '' };
      const isNamed = pod.name === ownName || pod.name.startsWith(`${ownName}-`);
      if (isNamed && ownName.length > (best?.metadata.name.length ?? 0)) best = found;
    }
    if (best !== undefined) return { facts: factsOf(best, 'manifest'), reason: '' };
    return { facts: undefined, reason: `no manifest in ${directory} is of this pod` };
  }
}

/** The pod of a manifest; undefined for a file that holds none, which kubelet complains of itself. */
async function readManifest(file: string): Promise<Pod | undefined> {
  try {
    const { size } = await stat(file);
    if (size > MAX_MANIFEST_BYTES) return undefined;
    const parsed = podSchema.safeParse(parse(await readFile(file, 'utf8')));
    return parsed.success ? parsed.data : undefined;
  } catch (error) {
    // A file that went, or that is no YAML, which the parser says by its own class.
    if (errnoOf(error) !== undefined || (error instanceof Error && error.name.startsWith('YAML'))) return undefined;
    throw error;
  }
}
