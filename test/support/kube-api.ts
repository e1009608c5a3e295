/**
 * The API of a Kubernetes cluster as tests use it: JSON requests with a bearer token, and the few questions that tests ask of pods. Source:
 * Kubernetes API v1 (1.20).
 */
import { Agent, request } from 'undici';
import { waitFor } from './wait.ts';

export type KubeObject = Record<string, unknown>;

export interface KubeContainerStatus {
  name: string;
  image: string;
  imageID: string;
  restartCount: number;
  /** Why it waits: `ErrImagePull`, `ImagePullBackOff` … */
  waitingReason: string | undefined;
  exitCode: number | undefined;
}

export interface KubePod {
  name: string;
  /** By which kubelet knows it: for a static pod not that of the object in the API, which mirrors it. */
  uid: string;
  phase: 'Pending' | 'Running' | 'Succeeded' | 'Failed' | 'Unknown';
  containers: KubeContainerStatus[];
}

export interface KubeEvent {
  type: 'Normal' | 'Warning';
  reason: string;
  message: string;
  count: number;
  component: string;
}

export interface KubeAccess {
  server: string;
  /** PEM */
  ca: string;
  token: string;
}

const REQUEST_MS = 30_000;
/** Kubelet writes the uid of a static pod here. */
const CONFIG_HASH = 'kubernetes.io/config.hash';

export class KubeApi implements AsyncDisposable {
  private readonly access: KubeAccess;
  private readonly agent: Agent;

  constructor(access: KubeAccess) {
    this.access = access;
    this.agent = new Agent({ connect: { ca: access.ca } });
  }

  /** One request; fails unless the status is among `ok`. Returns the answer's JSON, or its text. */
  async call(method: 'GET' | 'POST' | 'PATCH' | 'DELETE', path: string, body?: unknown, ok = [200, 201, 202]): Promise<unknown> {
    const response = await request(`${this.access.server}${path}`, {
      dispatcher: this.agent,
      method,
      headers: {
        authorization: `Bearer ${this.access.token}`,
        accept: 'application/json',
        'content-type': method === 'PATCH' ? 'application/merge-patch+json' : 'application/json',
      },
      body: body === undefined ? null : JSON.stringify(body),
      signal: AbortSignal.timeout(REQUEST_MS),
    });
    const text = await response.body.text();
    if (!ok.includes(response.statusCode)) throw new Error(`${method} ${path}: status ${response.statusCode} ${text.slice(0, 2000)}`);
    return response.headers['content-type']?.includes('json') === true ? JSON.parse(text) : text;
  }

  async createNamespace(name: string): Promise<void> {
    await this.call('POST', '/api/v1/namespaces', { metadata: { name } });
  }

  /** A Secret of any type; `data` in clear. */
  async createSecret(
    namespace: string,
    secret: { name: string; type: string; labels?: Record<string, string>; data: Record<string, string> },
  ): Promise<void> {
    await this.call('POST', `/api/v1/namespaces/${namespace}/secrets`, {
      metadata: { name: secret.name, labels: secret.labels ?? {} },
      type: secret.type,
      stringData: secret.data,
    });
  }

  /** A service account with the Secrets that its pods pull images with. */
  async createServiceAccount(namespace: string, name: string, imagePullSecrets: readonly string[]): Promise<void> {
    await this.call('POST', `/api/v1/namespaces/${namespace}/serviceaccounts`, {
      metadata: { name },
      imagePullSecrets: imagePullSecrets.map((secret) => ({ name: secret })),
    });
  }

  async createPod(namespace: string, pod: KubeObject): Promise<void> {
    await this.call('POST', `/api/v1/namespaces/${namespace}/pods`, pod);
  }

  /** Changes annotations of a living pod. */
  async annotatePod(namespace: string, name: string, annotations: Record<string, string>): Promise<void> {
    await this.call('PATCH', `/api/v1/namespaces/${namespace}/pods/${name}`, { metadata: { annotations } });
  }

  async deletePod(namespace: string, name: string): Promise<void> {
    await this.call('DELETE', `/api/v1/namespaces/${namespace}/pods/${name}`, { gracePeriodSeconds: 0 }, [200, 404]);
  }

  /** Undefined when there is none. */
  async pod(namespace: string, name: string): Promise<KubePod | undefined> {
    const found = (await this.call('GET', `/api/v1/namespaces/${namespace}/pods/${name}`, undefined, [200, 404])) as PodAnswer;
    if (found.kind !== 'Pod') return undefined;
    return {
      name: found.metadata.name,
      uid: found.metadata.annotations?.[CONFIG_HASH] ?? found.metadata.uid,
      phase: found.status.phase,
      containers: (found.status.containerStatuses ?? []).map((status) => ({
        name: status.name,
        image: status.image,
        imageID: status.imageID,
        restartCount: status.restartCount,
        waitingReason: status.state?.waiting?.reason,
        exitCode: status.state?.terminated?.exitCode,
      })),
    };
  }

  /** What kubelet and others have said of a pod, oldest first. */
  async podEvents(namespace: string, name: string): Promise<KubeEvent[]> {
    const selector = encodeURIComponent(`involvedObject.name=${name}`);
    const { items } = (await this.call('GET', `/api/v1/namespaces/${namespace}/events?fieldSelector=${selector}`)) as EventsAnswer;
    return items
      .sort((a, b) => (a.lastTimestamp ?? '').localeCompare(b.lastTimestamp ?? ''))
      .map((event) => ({
        type: event.type,
        reason: event.reason ?? '',
        message: event.message ?? '',
        count: event.count ?? 1,
        component: event.source?.component ?? '',
      }));
  }

  /** Waits until the pod is in one of the phases; fails with its events. A phase that cannot become one of them fails at once. */
  async waitPhase(namespace: string, name: string, phases: readonly KubePod['phase'][], timeoutMs = 120_000): Promise<KubePod> {
    const over: readonly KubePod['phase'][] = ['Succeeded', 'Failed'];
    const pod = await waitFor(
      async () => {
        const now = await this.pod(namespace, name);
        return now !== undefined && (phases.includes(now.phase) || over.includes(now.phase)) ? now : undefined;
      },
      { what: `pod ${name} to be ${phases.join(' or ')}`, timeoutMs, everyMs: 100, details: () => this.describePod(namespace, name) },
    );
    if (!phases.includes(pod.phase)) throw new Error(`pod ${name} is ${pod.phase}\n${await this.describePod(namespace, name)}`);
    return pod;
  }

  /** Waits for an event of the pod with this reason whose message passes; fails with all of its events. */
  waitEvent(namespace: string, name: string, reason: string, message: RegExp, timeoutMs = 120_000): Promise<KubeEvent> {
    return waitFor(
      async () => (await this.podEvents(namespace, name)).find((event) => event.reason === reason && message.test(event.message)),
      {
        what: `event ${reason} of pod ${name} with ${message}`,
        timeoutMs,
        everyMs: 100,
        details: () => this.describePod(namespace, name),
      },
    );
  }

  async describePod(namespace: string, name: string): Promise<string> {
    const events = await this.podEvents(namespace, name);
    const lines = events.map((event) => `  ${event.type} ${event.reason} (${event.component}, ${event.count}): ${event.message}`);
    return [JSON.stringify(await this.pod(namespace, name)), ...lines].join('\n');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.agent.destroy();
  }
}

interface PodAnswer {
  kind: string;
  metadata: { name: string; uid: string; annotations?: Record<string, string> };
  status: {
    phase: KubePod['phase'];
    containerStatuses?: {
      name: string;
      image: string;
      imageID: string;
      restartCount: number;
      state?: { waiting?: { reason?: string }; terminated?: { exitCode: number } };
    }[];
  };
}

interface EventsAnswer {
  items: {
    type: KubeEvent['type'];
    reason?: string;
    message?: string;
    count?: number;
    source?: { component?: string };
    lastTimestamp?: string | null;
  }[];
}
