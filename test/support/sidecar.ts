/**
 * The product, started from source in a scratch directory: `plugin/keeper/main.ts` with a configuration of its own. Processes are found
 * by that configuration's path and killed by pid; disposing checks that no process, mount or loop device is left. Ours.
 */
import { existsSync, readFileSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { join, resolve } from 'node:path';
import { stringify } from 'smol-toml';
import { loopsUnder, mountsUnder } from './mounts.ts';
import { allProcesses, Daemon, descendantsOf, killPid, type ProcessInfo, processInfo, run } from './process.ts';
import { Scratch } from './scratch.ts';
import { ServiceManager } from './service-manager.ts';
import { TEST_CACHE } from './test-cache.ts';
import { waitFor } from './wait.ts';

const REPOSITORY = resolve(import.meta.dirname, '../..');

export type SidecarProcess = 'keeper' | 'blockd' | 'sidecar';

/** The script of each process, as it stands in its arguments. */
const SCRIPTS: Readonly<Record<SidecarProcess, string>> = {
  keeper: '/plugin/keeper/main.ts',
  blockd: '/plugin/blockd/main.ts',
  sidecar: '/plugin/main.ts',
};

/** As the unit starts it. */
const KEEPER_FLAGS = ['--max-semi-space-size=1', '--max-old-space-size=64'];

/** Sections and keys of the configuration file; laid over the harness's own. */
export type SidecarConfig = Readonly<Record<string, Readonly<Record<string, string | number | boolean | string[]>> | string>>;

export interface SidecarOptions {
  config?: SidecarConfig;
  env?: Readonly<Record<string, string>>;
  /** Milliseconds until the product must say that it is ready. */
  readyMs?: number;
  /** Under a stand-in for systemd, which keeps the descriptors and starts the keeper again when it is killed. */
  serviceManager?: { watchdogMs?: number };
}

export class Sidecar implements AsyncDisposable {
  readonly root: string;
  readonly run: string;
  readonly snapshotterSocket: string;
  readonly adminSocket: string;
  /** kubelet's image service; configure `cri.kubeconfig` and `cri.manifests_dir` for one that knows pods beforehand. */
  readonly criSocket: string;
  /** Where the product looks for containerd; a link that whoever starts a containerd makes. */
  readonly containerdSocket: string;
  readonly configPath: string;
  readonly logPath: string;
  private readonly scratch: Scratch;
  private readonly options: SidecarOptions;
  private daemon: Daemon | ServiceManager | undefined;

  private constructor(scratch: Scratch, options: SidecarOptions) {
    this.scratch = scratch;
    this.options = options;
    this.root = scratch.join('root');
    this.run = scratch.join('run');
    this.snapshotterSocket = join(this.run, 'snapshotter.sock');
    this.adminSocket = join(this.run, 'admin.sock');
    this.criSocket = join(this.run, 'cri.sock');
    this.containerdSocket = scratch.join('containerd.sock');
    this.configPath = scratch.join('config.toml');
    this.logPath = scratch.join('sidecar.log');
  }

  /** Starts the three processes and waits until the keeper says that both children are ready and the snapshotter's socket answers. */
  static async start(options: SidecarOptions = {}): Promise<Sidecar> {
    const sidecar = new Sidecar(await Scratch.create('sc'), options);
    try {
      await sidecar.writeConfig(options.config ?? {});
      await sidecar.startAgain();
      return sidecar;
    } catch (error) {
      await sidecar[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Replaces the configuration file; read by processes that start afterwards. */
  async writeConfig(config: SidecarConfig): Promise<void> {
    const own: SidecarConfig = {
      paths: { root: await this.scratch.dir('root'), run: await this.scratch.dir('run') },
      registry: { hosts_dir: await this.scratch.dir('certs.d') },
      containerd: { address: this.containerdSocket },
      log: { level: 'debug' },
    };
    const merged: Record<string, unknown> = {};
    for (const [key, value] of [...Object.entries(own), ...Object.entries(config)]) {
      merged[key] = typeof value === 'string' ? value : { ...((merged[key] ?? {}) as object), ...value };
    }
    await this.scratch.file('config.toml', stringify(merged));
  }

  /** Starts the keeper again after {@link stop} or its death. */
  async startAgain(): Promise<void> {
    if (this.daemon !== undefined && this.daemon.endedHow === undefined) return;
    const logged = this.logBytes();
    const { NOTIFY_SOCKET: _, ...inherited } = process.env;
    const env = { ...inherited, NODE_COMPILE_CACHE: join(TEST_CACHE, 'compile-cache') };
    const service = {
      command: process.execPath,
      args: [...KEEPER_FLAGS, join(REPOSITORY, SCRIPTS.keeper), '--config', this.configPath],
      cwd: this.scratch.path,
      env: { ...env, ...this.options.env },
      logPath: this.logPath,
    };
    const { serviceManager } = this.options;
    const daemon =
      serviceManager === undefined
        ? await Daemon.start({ name: 'overlaybd-sidecar', ...service })
        : await ServiceManager.start({ ...service, socketPath: this.scratch.join('notify.sock'), ...serviceManager });
    this.daemon = daemon;
    await daemon.waitReady('its readiness', async () => this.saysReady(logged) && (await this.answers()), this.options.readyMs ?? 60_000);
  }

  /** The stand-in for systemd. Fails when the product was started without one. */
  get manager(): ServiceManager {
    if (this.daemon instanceof ServiceManager) return this.daemon;
    throw new Error('start the sidecar with serviceManager to have one');
  }

  private logBytes(): number {
    return existsSync(this.logPath) ? statSync(this.logPath).size : 0;
  }

  /** The keeper writes one line when both children are ready; with systemd it would notify. */
  private saysReady(sinceBytes: number): boolean {
    const log = readFileSync(this.logPath).subarray(sinceBytes).toString();
    return log.split('\n').some((line) => line.includes('"name":"keeper"') && line.includes('"msg":"ready"'));
  }

  /** True when the snapshotter's socket takes connections. */
  answers(): Promise<boolean> {
    return takesConnections(this.snapshotterSocket);
  }

  /** All processes of this instance that live now, found by the configuration's path. */
  processes(): ProcessInfo[] {
    return allProcesses().filter((p) => p.args.includes(this.configPath) && p.state !== 'Z');
  }

  /** The pid of one of the three, or undefined while it is not there. */
  pidOf(name: SidecarProcess): number | undefined {
    return this.processes().find((p) => p.args.some((a) => a.endsWith(SCRIPTS[name])))?.pid;
  }

  /** Waits until the process is there, other than `notPid`; returns its pid. */
  waitProcess(name: SidecarProcess, notPid?: number, timeoutMs = 60_000): Promise<number> {
    const look = (): number | undefined => {
      const pid = this.pidOf(name);
      return pid === notPid ? undefined : pid;
    };
    return waitFor(look, { what: `${name} to run`, timeoutMs, details: () => this.logTail() });
  }

  /** Sends SIGKILL to one of the three; returns the pid that it had. The keeper starts a child again by itself. */
  async kill(name: SidecarProcess): Promise<number> {
    const pid = await this.waitProcess(name);
    await killPid(pid);
    return pid;
  }

  /** Sends a signal to one of the three: SIGSTOP to hang it, SIGHUP to the keeper for an upgrade. */
  async signal(name: SidecarProcess, signal: NodeJS.Signals): Promise<number> {
    const pid = await this.waitProcess(name);
    process.kill(pid, signal);
    return pid;
  }

  /** One request of the admin API through its socket, by curl as people do it; returns the body. */
  async admin(method: string, path: string, body?: unknown): Promise<string> {
    const args = ['--silent', '--show-error', '--fail-with-body', '--max-time', '60', '--unix-socket', this.adminSocket, '-X', method];
    if (body !== undefined) args.push('-H', 'content-type: application/json', '--data', JSON.stringify(body));
    return (await run('curl', [...args, `http://localhost${path}`])).stdout;
  }

  /** Mounts and loop devices of this instance. */
  leftovers(): string[] {
    return [
      ...mountsUnder(this.scratch.path).map((m) => `${m.fsType} mounted at ${m.mountPoint}`),
      ...loopsUnder(this.scratch.path).map((l) => `${l.path} over ${l.backingFile}`),
    ];
  }

  /**
   * Ends the instance in order. SIGINT unmounts everything; SIGTERM does so only where no service manager keeps the descriptors. What has
   * not gone within the deadline is killed, and that is an error.
   */
  async stop(signal: 'SIGINT' | 'SIGTERM' = 'SIGINT', timeoutMs = 60_000): Promise<void> {
    const daemon = this.daemon;
    this.daemon = undefined;
    if (daemon !== undefined && daemon.endedHow === undefined) {
      const how = await daemon.stop({ signal, timeoutMs });
      await daemon[Symbol.asyncDispose]();
      if (how === 'signal SIGKILL') throw new Error(`the keeper did not end within ${timeoutMs} ms of ${signal}\n${daemon.logTail()}`);
    }
  }

  /** Ends every process at once, as a power cut would; mounts stay. */
  async killAll(): Promise<void> {
    if (this.daemon instanceof ServiceManager) {
      await this.daemon.stop({ signal: 'SIGKILL' });
      await this.daemon[Symbol.asyncDispose]();
    }
    const keeper = this.pidOf('keeper');
    // The keeper first: it would start the others again.
    if (keeper !== undefined) {
      const below = descendantsOf(keeper);
      await killPid(keeper);
      for (const p of below) await killPid(p.pid);
    }
    for (const p of this.processes()) if (processInfo(p.pid) !== undefined) await killPid(p.pid);
    this.daemon = undefined;
  }

  logTail(lines = 60): string {
    return this.daemon?.logTail(lines) ?? `(no process; see ${this.logPath})`;
  }

  /** Ends everything and cleans up; fails when something was left that the product should have taken away. */
  async [Symbol.asyncDispose](): Promise<void> {
    const failures: unknown[] = [];
    const wasOrderly = this.daemon !== undefined && existsSync(this.snapshotterSocket);
    const tail = this.logTail();
    await this.stop().catch((error: unknown) => failures.push(error));
    const left = [...this.leftovers(), ...this.processes().map((p) => `process ${p.pid} ${p.args.join(' ')}`)];
    await this.killAll();
    await this.scratch[Symbol.asyncDispose]().catch((error: unknown) => {
      // After a kill somebody else has to tidy up; after an orderly end nothing may be left.
      if (wasOrderly) failures.push(error);
    });
    if (wasOrderly && left.length > 0) failures.push(new Error(`left after the end:\n${left.join('\n')}\n${tail}`));
    if (failures.length > 0) throw new AggregateError(failures, 'the sidecar did not end cleanly');
  }
}

function takesConnections(path: string): Promise<boolean> {
  return new Promise((done) => {
    const socket = connect(path);
    socket.setTimeout(2_000, () => socket.destroy(new Error('no answer')));
    socket.once('connect', () => {
      socket.destroy();
      done(true);
    });
    socket.once('error', () => done(false));
  });
}
