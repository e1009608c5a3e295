/**
 * Reads objects of a Kubernetes API server as JSON. Wraps undici; follows a kubeconfig whose certificates and tokens are renewed under it,
 * as kubelet's are.
 */
import { Agent, request } from 'undici';
import { AppError, type ErrorCode } from '../errors.ts';
import { MIB } from '../units.ts';
import { type KubeAccess, readKubeconfig, stampOf } from './kubeconfig.ts';

/** A pod or Secret has 1.5 MiB at most, the limit of etcd. */
const MAX_ANSWER_BYTES = 8 * MIB;
/** One answer of an API server that is well. */
const REQUEST_MS = 10_000;
/** Renewed files count from then on. */
const RECHECK_MS = 1_000;
const CONNECT_MS = 5_000;

const CODES: Readonly<Record<number, ErrorCode>> = {
  400: 'InvalidArgument',
  401: 'Unauthenticated',
  403: 'PermissionDenied',
  404: 'NotFound',
  409: 'Conflict',
  410: 'FailedPrecondition',
};

interface Connection {
  readonly access: KubeAccess;
  readonly agent: Agent;
}

export class KubeClient {
  private readonly kubeconfig: string;
  private current: Connection | undefined;
  /** Of settings that were renewed: calls under way end on the connections that they have, and nobody waits for them. */
  private readonly former = new Set<Agent>();
  private pending: Promise<Connection> | undefined;
  private checkedMs = 0;

  /** Nothing is read before the first call. */
  constructor(kubeconfig: string) {
    this.kubeconfig = kubeconfig;
  }

  /**
   * GET of a path (`/api/v1/namespaces/a/pods/b`), each part of which the caller has encoded. Errors: NotFound, Unauthenticated,
   * PermissionDenied, Unavailable, DeadlineExceeded, FailedPrecondition (the kubeconfig), the signal's reason.
   */
  async get(path: string, signal: AbortSignal): Promise<unknown> {
    const { access, agent } = await this.connected();
    const about = { op: 'ask the API server for', subject: path.slice(0, 300) };
    const timeout = AbortSignal.timeout(REQUEST_MS);
    try {
      const { statusCode, body } = await request(`${access.server}${path}`, {
        dispatcher: agent,
        signal: AbortSignal.any([signal, timeout]),
        headers: {
          accept: 'application/json',
          'user-agent': 'overlaybd-sidecar',
          ...(access.authorization === undefined ? {} : { authorization: access.authorization }),
        },
      });
      const bytes = await limited(body, about);
      if (statusCode !== 200) {
        const code = CODES[statusCode] ?? (statusCode >= 500 || statusCode === 429 ? 'Unavailable' : 'Internal');
        throw new AppError(code, { ...about, what: `it answered ${statusCode}`, details: { status: statusCode } });
      }
      return JSON.parse(bytes.toString('utf8')) as unknown;
    } catch (error) {
      if (error instanceof AppError) throw error;
      if (signal.aborted) throw signal.reason;
      if (timeout.aborted) throw new AppError('DeadlineExceeded', { ...about, what: `no answer within ${REQUEST_MS} ms` });
      throw new AppError('Unavailable', { ...about, what: 'it does not answer', cause: error });
    }
  }

  async close(): Promise<void> {
    const agent = this.current?.agent;
    this.current = undefined;
    await Promise.all([agent, ...this.former].map((one) => one?.destroy()));
  }

  private connected(): Promise<Connection> {
    if (this.current !== undefined && performance.now() - this.checkedMs < RECHECK_MS) return Promise.resolve(this.current);
    this.pending ??= this.renew().finally(() => {
      this.pending = undefined;
    });
    return this.pending;
  }

  private async renew(): Promise<Connection> {
    const known = this.current;
    if (known === undefined || known.access.stamp !== (await stampOf(known.access.files))) {
      const access = await readKubeconfig(this.kubeconfig);
      this.current = { access, agent: agentFor(access) };
      if (known !== undefined) this.retire(known.agent);
    }
    this.checkedMs = performance.now();
    return this.current!;
  }

  private retire(agent: Agent): void {
    this.former.add(agent);
    // Fails only when it is destroyed meanwhile.
    void Promise.allSettled([agent.close()]).then(() => this.former.delete(agent));
  }
}

function agentFor(access: KubeAccess): Agent {
  return new Agent({
    connections: 16,
    headersTimeout: REQUEST_MS,
    bodyTimeout: REQUEST_MS,
    connect: {
      timeout: CONNECT_MS,
      rejectUnauthorized: !access.skipsVerify,
      ...(access.ca === undefined ? {} : { ca: access.ca }),
      ...(access.certificate === undefined ? {} : { cert: access.certificate }),
      ...(access.key === undefined ? {} : { key: access.key }),
      ...(access.serverName === undefined ? {} : { servername: access.serverName }),
    },
  });
}

async function limited(body: AsyncIterable<Uint8Array>, about: { op: string; subject: string }): Promise<Buffer> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of body) {
    bytes += chunk.length;
    if (bytes > MAX_ANSWER_BYTES) throw new AppError('Internal', { ...about, what: `it answered more than ${MAX_ANSWER_BYTES} bytes` });
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}
