/**
 * A small client of the Container Runtime Interface, as kubelet would be: pulls images, runs pods on the host's network, reads logs. Every
 * pod made is removed when the client is disposed. Source: Kubernetes cri-api v1; log format of kubelet's CRI logs.
 */
import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Client, credentials, type ServiceError } from '@grpc/grpc-js';
import { type CriMethod, IMAGE_METHODS, NAMESPACE_NODE, RUNTIME_METHODS } from './cri-messages.ts';
import { decode, encode, type Message } from './protobuf-table.ts';
import { Scratch } from './scratch.ts';
import { waitFor } from './wait.ts';

const CONTAINER_STATES = ['created', 'running', 'exited', 'unknown'] as const;
const HOST_NETWORK = { network: NAMESPACE_NODE };

export interface CriImage {
  id: string;
  repoTags: string[];
  repoDigests: string[];
  /** Bytes, as the runtime accounts it. */
  size: number;
}

export interface CriPod {
  id: string;
  config: Message;
  logDirectory: string;
}

export interface CriContainer {
  id: string;
  /** File with the container's output, one line a record. */
  logPath: string;
}

export interface CriContainerStatus {
  state: (typeof CONTAINER_STATES)[number];
  exitCode: number;
  reason: string;
  message: string;
  /** Nanoseconds since the epoch, about. */
  startedAt: number;
  finishedAt: number;
}

export interface CriLogLine {
  timeMs: number;
  stream: 'stdout' | 'stderr';
  text: string;
}

export class Cri implements AsyncDisposable {
  private readonly client: Client;
  private readonly scratch: Scratch;
  private readonly pods = new Set<string>();

  private constructor(client: Client, scratch: Scratch) {
    this.client = client;
    this.scratch = scratch;
  }

  /** `socket` is containerd's, or that of a proxy of the image service (see `call` for which services it has). */
  static async connect(socket: string): Promise<Cri> {
    const client = new Client(`unix:${socket}`, credentials.createInsecure(), { 'grpc.max_receive_message_length': 16 * 1024 * 1024 });
    const cri = new Cri(client, await Scratch.create('cri'));
    await waitFor(() => cri.runtime('Version', { version: 'v1' }, 10_000), { what: `CRI at ${socket}`, timeoutMs: 60_000 });
    return cri;
  }

  /** One call of the runtime service; fails with the gRPC error. */
  runtime(name: keyof typeof RUNTIME_METHODS, request: Message, timeoutMs = 60_000): Promise<Message> {
    return this.call('runtime.v1.RuntimeService', name, RUNTIME_METHODS[name], request, timeoutMs);
  }

  /** One call of the image service; fails with the gRPC error. */
  images(name: keyof typeof IMAGE_METHODS, request: Message, timeoutMs = 60_000): Promise<Message> {
    return this.call('runtime.v1.ImageService', name, IMAGE_METHODS[name], request, timeoutMs);
  }

  private call(service: string, name: string, method: CriMethod, request: Message, timeoutMs: number): Promise<Message> {
    return new Promise((resolve, reject) => {
      this.client.makeUnaryRequest(
        `/${service}/${name}`,
        (message: Message) => Buffer.from(encode(method.request, message)),
        (bytes: Buffer) => decode(method.response, bytes),
        request,
        { deadline: Date.now() + timeoutMs },
        (error: ServiceError | null, response?: Message) => (error === null ? resolve(response ?? {}) : reject(error)),
      );
    });
  }

  /** Pulls an image; returns the runtime's id of it. */
  async pullImage(reference: string, options: { auth?: { username: string; password: string }; timeoutMs?: number } = {}): Promise<string> {
    const request: Message = { image: { image: reference }, sandboxConfig: this.sandboxConfig('pull', '') };
    if (options.auth !== undefined) request.auth = options.auth;
    const { imageRef } = await this.images('PullImage', request, options.timeoutMs ?? 300_000);
    return String(imageRef);
  }

  async listImages(): Promise<CriImage[]> {
    return (await this.images('ListImages', {})).images as CriImage[];
  }

  async removeImage(reference: string): Promise<void> {
    await this.images('RemoveImage', { image: { image: reference } });
  }

  private sandboxConfig(name: string, logDirectory: string, extra: { annotations?: Record<string, string> } = {}): Message {
    return {
      metadata: { name, uid: `${name}-${randomBytes(4).toString('hex')}`, namespace: 'default', attempt: 0 },
      logDirectory,
      labels: {},
      annotations: extra.annotations ?? {},
      linux: { securityContext: { namespaceOptions: HOST_NETWORK } },
    };
  }

  /** Runs a pod on the host's network. */
  async runPod(name: string, options: { annotations?: Record<string, string> } = {}): Promise<CriPod> {
    const logDirectory = await this.scratch.dir(`${name}-${randomBytes(4).toString('hex')}`);
    const config = this.sandboxConfig(name, logDirectory, options);
    const id = String((await this.runtime('RunPodSandbox', { config })).podSandboxId);
    this.pods.add(id);
    return { id, config, logDirectory };
  }

  /** Makes and starts a container in a pod. */
  async startContainer(
    pod: CriPod,
    image: string,
    options: {
      name?: string;
      command?: readonly string[];
      args?: readonly string[];
      env?: Record<string, string>;
      timeoutMs?: number;
    } = {},
  ): Promise<CriContainer> {
    const name = options.name ?? 'main';
    const config: Message = {
      metadata: { name, attempt: 0 },
      image: { image },
      command: options.command ?? [],
      args: options.args ?? [],
      envs: Object.entries(options.env ?? {}).map(([key, value]) => ({ key, value })),
      logPath: `${name}.log`,
      linux: { securityContext: { namespaceOptions: HOST_NETWORK } },
    };
    const made = await this.runtime('CreateContainer', { podSandboxId: pod.id, config, sandboxConfig: pod.config }, options.timeoutMs);
    const id = String(made.containerId);
    await this.runtime('StartContainer', { containerId: id }, options.timeoutMs);
    return { id, logPath: join(pod.logDirectory, `${name}.log`) };
  }

  async containerStatus(id: string): Promise<CriContainerStatus> {
    const status = ((await this.runtime('ContainerStatus', { containerId: id })).status ?? {}) as Message;
    return {
      // The zero value is not on the wire.
      state: CONTAINER_STATES[Number(status.state ?? 0)] ?? 'unknown',
      exitCode: Number(status.exitCode ?? 0),
      reason: String(status.reason ?? ''),
      message: String(status.message ?? ''),
      startedAt: Number(status.startedAt ?? 0),
      finishedAt: Number(status.finishedAt ?? 0),
    };
  }

  /** Waits until a container has ended; returns its status. */
  waitExit(id: string, timeoutMs = 60_000): Promise<CriContainerStatus> {
    const look = async (): Promise<CriContainerStatus | undefined> => {
      const status = await this.containerStatus(id);
      return status.state === 'exited' ? status : undefined;
    };
    return waitFor(look, { what: `container ${id} to exit`, timeoutMs, everyMs: 50 });
  }

  /** Runs a command in a running container to its end. */
  async exec(id: string, command: readonly string[], timeoutS = 60): Promise<{ stdout: string; stderr: string; exitCode: number }> {
    const answer = await this.runtime('ExecSync', { containerId: id, cmd: command, timeout: timeoutS }, timeoutS * 1000 + 5_000);
    const text = (bytes: unknown): string => Buffer.from((bytes ?? []) as Uint8Array).toString();
    return { stdout: text(answer.stdout), stderr: text(answer.stderr), exitCode: Number(answer.exitCode ?? 0) };
  }

  async removeContainer(id: string): Promise<void> {
    await this.runtime('StopContainer', { containerId: id, timeout: 0 });
    await this.runtime('RemoveContainer', { containerId: id });
  }

  async removePod(id: string): Promise<void> {
    await this.runtime('StopPodSandbox', { podSandboxId: id });
    await this.runtime('RemovePodSandbox', { podSandboxId: id });
    this.pods.delete(id);
  }

  /** Removes the pods that were made here; containerd must still run. */
  async [Symbol.asyncDispose](): Promise<void> {
    const failures: unknown[] = [];
    for (const id of [...this.pods]) {
      await this.removePod(id).catch((error: unknown) => failures.push(error));
    }
    this.client.close();
    await this.scratch[Symbol.asyncDispose]();
    if (failures.length > 0) throw new AggregateError(failures, 'pods could not be removed');
  }
}

/** Reads a container's log file: `2024-01-01T00:00:00.0Z stdout F text`. */
export async function readCriLog(path: string): Promise<CriLogLine[]> {
  const lines: CriLogLine[] = [];
  for (const line of (await readFile(path, 'utf8')).split('\n')) {
    const match = /^(\S+) (stdout|stderr) [FP] (.*)$/.exec(line);
    if (match !== null) lines.push({ timeMs: Date.parse(match[1]!), stream: match[2] as 'stdout' | 'stderr', text: match[3]! });
  }
  return lines;
}
