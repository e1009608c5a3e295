/**
 * A real kubelet on this machine beside whatever else runs there: own root directory, ports, node name and kubeconfig; pods use the host's
 * network, since there is no CNI. Ends by pid, takes its mounts, logs and kernel settings back. Source: Kubernetes 1.20, kubelet --help and
 * KubeletConfiguration v1beta1; pkg/kubelet for the paths that no option moves.
 */
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '../../plugin/base/errors.ts';
import { kubeBinaries } from './kube-binaries.ts';
import { answersHttp, freePort } from './net.ts';
import { allProcesses, Daemon } from './process.ts';
import { Scratch } from './scratch.ts';

export interface KubeletOptions {
  nodeName: string;
  kubeconfig: string;
  /** containerd's socket. */
  runtimeSocket: string;
  /** Who answers for images; default: containerd too. */
  imageSocket?: string;
  /** Directory of static pods. */
  manifestsDir: string;
  /** Every namespace whose pods it will run; their logs are removed at the end. */
  namespaces: readonly string[];
}

/** Settings of the kernel that kubelet writes at its start, with no option against it. */
const WRITTEN_SYSCTLS = [
  'vm/overcommit_memory',
  'vm/panic_on_oom',
  'kernel/panic',
  'kernel/panic_on_oops',
  'kernel/keys/root_maxkeys',
  'kernel/keys/root_maxbytes',
] as const;

/** Kubelet's places for logs are fixed. */
const POD_LOGS = '/var/log/pods';
const CONTAINER_LOGS = '/var/log/containers';
const READY_MS = 120_000;

export class Kubelet implements AsyncDisposable {
  private readonly stack: AsyncDisposableStack;
  private readonly daemon: Daemon;
  private readonly statsUrl: string;

  private constructor(stack: AsyncDisposableStack, daemon: Daemon, statsUrl: string) {
    this.stack = stack;
    this.daemon = daemon;
    this.statsUrl = statsUrl;
  }

  /** Starts kubelet and waits until it says that it is well. Fails where another kubelet runs: each would remove the other's logs. */
  static async start(options: KubeletOptions): Promise<Kubelet> {
    const { kubelet } = await kubeBinaries();
    const other = allProcesses().find((process) => process.args[0]?.endsWith('/kubelet') === true);
    if (other !== undefined) throw new Error(`a kubelet runs on this machine already (pid ${other.pid})`);
    await using stack = new AsyncDisposableStack();
    const scratch = stack.use(await Scratch.create('kubelet'));
    stack.defer(() => removeLogs(options.namespaces));
    const before = await readSysctls();
    stack.defer(() => writeSysctls(before));
    const ports = { server: await freePort(), health: await freePort(), readOnly: await freePort() };
    const config = await scratch.file('config.json', JSON.stringify(await configuration(scratch, options, ports), undefined, 1));
    const daemon = await Daemon.start({
      name: 'kubelet',
      command: kubelet,
      args: [
        `--config=${config}`,
        `--kubeconfig=${options.kubeconfig}`,
        `--hostname-override=${options.nodeName}`,
        `--root-dir=${scratch.join('root')}`,
        `--cert-dir=${scratch.join('pki')}`,
        '--container-runtime=remote',
        `--container-runtime-endpoint=unix://${options.runtimeSocket}`,
        `--image-service-endpoint=unix://${options.imageSocket ?? options.runtimeSocket}`,
        '--v=3',
      ],
      logPath: scratch.join('kubelet.log'),
    });
    stack.use(daemon);
    await daemon.waitReady('a yes of /healthz', () => answersHttp(`http://127.0.0.1:${ports.health}/healthz`), READY_MS);
    return new Kubelet(stack.move(), daemon, `http://127.0.0.1:${ports.readOnly}/stats/summary`);
  }

  /** The file system of images as kubelet accounts it, for its decisions on collection and eviction. */
  async imageFileSystem(): Promise<{ capacityBytes: number; usedBytes: number }> {
    const response = await fetch(this.statsUrl, { signal: AbortSignal.timeout(30_000) });
    if (!response.ok) throw new Error(`${this.statsUrl}: status ${response.status} ${await response.text()}`);
    const { node } = (await response.json()) as { node: { runtime?: { imageFs?: { capacityBytes?: number; usedBytes?: number } } } };
    const { capacityBytes = 0, usedBytes = 0 } = node.runtime?.imageFs ?? {};
    return { capacityBytes, usedBytes };
  }

  logTail(lines = 80): string {
    return this.daemon.logTail(lines);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stack.disposeAsync();
  }
}

/** Output of a container's first run, as kubelet keeps it. */
export async function podLog(namespace: string, pod: { name: string; uid: string }, container: string): Promise<string> {
  const text = await readFile(join(POD_LOGS, `${namespace}_${pod.name}_${pod.uid}`, container, '0.log'), 'utf8');
  // 2024-01-01T00:00:00.0Z stdout F text
  return text.replace(/^\S+ (stdout|stderr) [FP] /gm, '');
}

async function configuration(
  scratch: Scratch,
  options: KubeletOptions,
  ports: { server: number; health: number; readOnly: number },
): Promise<unknown> {
  return {
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    kind: 'KubeletConfiguration',
    address: '127.0.0.1',
    port: ports.server,
    // Statistics alone.
    readOnlyPort: ports.readOnly,
    healthzBindAddress: '127.0.0.1',
    healthzPort: ports.health,
    // Nobody logs in: no test asks for more than health and statistics.
    authentication: { anonymous: { enabled: false }, webhook: { enabled: false } },
    authorization: { mode: 'AlwaysAllow' },
    staticPodPath: options.manifestsDir,
    fileCheckFrequency: '1s',
    volumePluginDir: await scratch.dir('volume-plugins'),
    // Containers' cgroups are made by containerd alone, so that nothing of kubelet stays in the hierarchy.
    cgroupDriver: 'cgroupfs',
    cgroupsPerQOS: false,
    enforceNodeAllocatable: [],
    failSwapOn: false,
    makeIPTablesUtilChains: false,
    oomScoreAdj: 0,
    // Test machines are as full as they are; 100 turns image collection off.
    evictionHard: { 'memory.available': '1Mi' },
    imageGCHighThresholdPercent: 100,
    serializeImagePulls: false,
    registryPullQPS: 0,
    eventRecordQPS: 0,
    // Both keep sockets under /var/lib/kubelet whatever the root directory is.
    featureGates: { DevicePlugins: false, KubeletPodResources: false },
  };
}

async function readSysctls(): Promise<ReadonlyMap<string, string>> {
  const values = new Map<string, string>();
  for (const name of WRITTEN_SYSCTLS) values.set(name, (await readFile(join('/proc/sys', name), 'utf8')).trim());
  return values;
}

async function writeSysctls(values: ReadonlyMap<string, string>): Promise<void> {
  for (const [name, value] of values) {
    const path = join('/proc/sys', name);
    if ((await readFile(path, 'utf8')).trim() !== value) await writeFile(path, value);
  }
}

/** Removes what the pods of these namespaces wrote: directories `<namespace>_<pod>_<uid>`, links `<pod>_<namespace>_<container>-<id>.log`. */
async function removeLogs(namespaces: readonly string[]): Promise<void> {
  const isOurs = (directory: string, name: string): boolean =>
    namespaces.some((namespace) => (directory === POD_LOGS ? name.startsWith(`${namespace}_`) : name.includes(`_${namespace}_`)));
  for (const directory of [POD_LOGS, CONTAINER_LOGS]) {
    for (const name of await namesIn(directory)) {
      if (isOurs(directory, name)) await rm(join(directory, name), { recursive: true, force: true });
    }
  }
}

async function namesIn(directory: string): Promise<string[]> {
  try {
    return await readdir(directory);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}
