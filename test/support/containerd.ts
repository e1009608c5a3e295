/**
 * A private containerd: its own root, state and socket in a scratch directory, with CRI, optionally with a proxy snapshotter. Disposing ends
 * its shims and their containers by pid, then containerd, then undoes every mount it made. Ours.
 */
import { glob, mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { containerdConfig } from './containerd-config.ts';
import { type ContainerdBinaries, type ContainerdLine, containerdBinaries, pathFor } from './containerd-versions.ts';
import { allProcesses, Daemon, descendantsOf, killPid, type RunOptions, type RunResult, run } from './process.ts';
import { Scratch } from './scratch.ts';

export interface ContainerdOptions {
  /** Default: the system's containerd. */
  line?: ContainerdLine;
  /** The snapshotter that CRI uses; default overlayfs. */
  criSnapshotter?: string;
  /** Proxy snapshotters by name; `root` is exported to kubelet's image accounting. */
  proxySnapshotters?: Readonly<Record<string, { socket: string; root: string }>>;
  /** Reference of the pause image; needed to run pods. */
  sandboxImage?: string;
  /** Registries spoken to in plain HTTP, `host:port`; with `mirror`, asked there first. */
  registries?: readonly { host: string; mirror?: string }[];
}

export class Containerd implements AsyncDisposable {
  readonly binaries: ContainerdBinaries;
  readonly socket: string;
  readonly root: string;
  readonly certsDir: string;
  private readonly scratch: Scratch;
  private readonly configPath: string;
  private daemon: Daemon | undefined;

  private constructor(scratch: Scratch, binaries: ContainerdBinaries, configPath: string) {
    this.scratch = scratch;
    this.binaries = binaries;
    this.configPath = configPath;
    this.socket = scratch.join('c.sock');
    this.root = scratch.join('root');
    this.certsDir = scratch.join('certs.d');
  }

  /** Starts containerd and waits until it answers. Proxy snapshotters must listen before. */
  static async start(options: ContainerdOptions = {}): Promise<Containerd> {
    const binaries = await containerdBinaries(options.line ?? '1.6');
    const scratch = await Scratch.create('ctd');
    const containerd = new Containerd(scratch, binaries, scratch.join('config.toml'));
    try {
      await scratch.file(
        'config.toml',
        containerdConfig({
          line: binaries.line,
          root: containerd.root,
          state: await scratch.dir('state'),
          socket: containerd.socket,
          optDir: await scratch.dir('opt'),
          certsDir: await scratch.dir('certs.d'),
          cniDir: await scratch.dir('cni'),
          criSnapshotter: options.criSnapshotter ?? 'overlayfs',
          sandboxImage: options.sandboxImage ?? 'localhost/pause:none',
          proxySnapshotters: options.proxySnapshotters ?? {},
        }),
      );
      for (const registry of options.registries ?? []) await containerd.addRegistry(registry.host, registry.mirror);
      await containerd.startAgain();
      return containerd;
    } catch (error) {
      await containerd[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Writes a hosts.toml for a registry of plain HTTP; containerd reads it at the next pull. */
  async addRegistry(host: string, mirror?: string): Promise<void> {
    const directory = join(this.certsDir, host);
    await mkdir(directory, { recursive: true });
    const lines = [`server = "http://${host}"`];
    for (const one of mirror === undefined ? [host] : [mirror, host]) {
      lines.push(`[host."http://${one}"]`, '  capabilities = ["pull", "resolve"]');
    }
    await writeFile(join(directory, 'hosts.toml'), `${lines.join('\n')}\n`);
  }

  get pid(): number {
    if (this.daemon === undefined) throw new Error('containerd is stopped');
    return this.daemon.pid;
  }

  /** Starts a stopped containerd again, with the same content. */
  async startAgain(): Promise<void> {
    if (this.daemon !== undefined) return;
    const daemon = await Daemon.start({
      name: `containerd ${this.binaries.version}`,
      command: this.binaries.containerd,
      args: ['--config', this.configPath],
      env: { ...process.env, PATH: pathFor(this.binaries) },
      logPath: this.scratch.join('containerd.log'),
    });
    this.daemon = daemon;
    await daemon.waitReady('an answer to ctr version', async () => {
      await this.ctr(['version'], { timeoutMs: 20_000 });
      return true;
    });
  }

  /** Ends containerd alone; containers go on under their shims. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const daemon = this.daemon;
    this.daemon = undefined;
    await daemon?.stop({ signal });
  }

  async restart(): Promise<void> {
    await this.stop();
    await this.startAgain();
  }

  /** Runs `ctr` of the same version. `namespace` defaults to `default`; CRI's is `k8s.io`. */
  ctr(args: readonly string[], options: RunOptions & { namespace?: string } = {}): Promise<RunResult> {
    const { namespace = 'default', ...rest } = options;
    return run(this.binaries.ctr, this.ctrArgs(args, namespace), rest);
  }

  /** Removes every container, image and lease of the default namespace: what a test that is tried again has left. */
  async removeEverything(): Promise<void> {
    const listed = async (...args: string[]): Promise<string[]> => (await this.ctr([...args, '-q'])).stdout.split('\n').filter(Boolean);
    const tasks = await listed('tasks', 'ls');
    if (tasks.length > 0) await this.ctr(['tasks', 'rm', '--force', ...tasks]);
    const containers = await listed('containers', 'ls');
    if (containers.length > 0) await this.ctr(['containers', 'rm', ...containers]);
    for (const lease of await listed('leases', 'ls')) await this.ctr(['leases', 'rm', lease]);
    const images = await listed('images', 'ls');
    if (images.length > 0) await this.ctr(['images', 'rm', '--sync', ...images]);
  }

  /** The arguments that {@link ctr} gives to `binaries.ctr`, for callers that start it themselves. */
  ctrArgs(args: readonly string[], namespace = 'default'): string[] {
    return ['--address', this.socket, '--namespace', namespace, ...args];
  }

  logTail(lines = 60): string {
    return this.daemon?.logTail(lines) ?? '(containerd is stopped)';
  }

  /** Shims of this containerd: their arguments name its socket. */
  private shims(): ReturnType<typeof allProcesses> {
    return allProcesses().filter((p) => p.args[0]?.includes('containerd-shim') === true && p.args.some((a) => a.includes(this.socket)));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // A shim takes its containers' bundles down with it only when asked; here all go at once, deepest first.
    for (const shim of this.shims()) {
      for (const child of descendantsOf(shim.pid).reverse()) await killPid(child.pid);
      await killPid(shim.pid);
    }
    await this.stop();
    await forgetContainersOf(this.scratch.path);
    await this.scratch[Symbol.asyncDispose]();
  }
}

/** Where shims keep runc's state of their containers: one place a machine, whatever containerd's own directories are. */
const RUNC_ROOT = '/run/containerd/runc';

/** Removes runc's records of containers whose bundle lies in `directory`: a killed shim leaves them, and their ids stay taken. */
async function forgetContainersOf(directory: string): Promise<void> {
  for await (const state of glob(join(RUNC_ROOT, '*', '*', 'state.json'))) {
    const text = await readFile(state, 'utf8').catch(() => '');
    if (text.includes(`"bundle=${directory}/`)) await rm(dirname(state), { recursive: true, force: true });
  }
}
