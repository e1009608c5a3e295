/**
 * A stand-in for systemd, as far as the keeper knows it: a Type=notify service with a descriptor store, started again when it ends
 * unexpectedly, whatever else of it still runs (KillMode=process), and killed when its watchdog is not fed.
 * Source: sd_notify(3), sd_listen_fds(3), systemd.service(5), systemd.kill(5).
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, rmSync } from 'node:fs';
import koffi from 'koffi';
import { ERRNO, lastErrno, libc, systemCallError } from '../../plugin/kernel/libc.ts';
import { readTail } from './process.ts';
import { waitFor } from './wait.ts';

const bind = koffi.load('libc.so.6').func('int bind(int fd, void *address, uint32_t length)') as (
  fd: number,
  address: Buffer,
  length: number,
) => number;

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const SOCK_NONBLOCK = 0o4000;
const SCM_RIGHTS = 1;
const MSG_CMSG_CLOEXEC = 0x40000000;
const POLLERR_POLLHUP = 8 | 16;
const MAX_MESSAGE_BYTES = 8192;
const MAX_DESCRIPTORS = 253;
const CMSG_HEADER_BYTES = 16;

/** systemd looks at its socket at once; the keeper never waits for it, so a short poll is as good. */
const LOOK_MS = 2;

export interface ServiceOptions {
  command: string;
  args: readonly string[];
  env: NodeJS.ProcessEnv;
  cwd: string;
  logPath: string;
  /** Path of the notification socket: at most 100 characters. */
  socketPath: string;
  /** RestartSec=, milliseconds. */
  restartDelayMs?: number;
  /** WatchdogSec=, milliseconds; default none. */
  watchdogMs?: number;
}

interface Stored {
  name: string;
  fd: number;
}

export class ServiceManager implements AsyncDisposable {
  readonly logPath: string;
  /** Times that the service ended unexpectedly and was started again. */
  restarts = 0;
  /** Times that READY=1 came. */
  readyCount = 0;
  /** The service's own words. */
  status = '';
  private readonly options: ServiceOptions;
  private readonly socket: number;
  private readonly looks: NodeJS.Timeout;
  private store: Stored[] = [];
  private child: ChildProcess | undefined;
  private lastFedMs = 0;
  private isWanted = true;
  private how: string | undefined;
  private restarting: Promise<void> = Promise.resolve();

  private constructor(options: ServiceOptions) {
    this.options = options;
    this.logPath = options.logPath;
    this.socket = notificationSocket(options.socketPath);
    this.looks = setInterval(() => this.look(), LOOK_MS);
  }

  /** Starts the service; returns once its process runs. */
  static async start(options: ServiceOptions): Promise<ServiceManager> {
    const manager = new ServiceManager(options);
    await manager.run();
    return manager;
  }

  /** The main process, or undefined between two of them. */
  get pid(): number | undefined {
    return this.child?.exitCode === null && this.child.signalCode === null ? this.child.pid : undefined;
  }

  /** How the service ended for good, or undefined while it is wanted. */
  get endedHow(): string | undefined {
    return this.how;
  }

  /** Names in the descriptor store. */
  get stored(): string[] {
    return this.store.map((entry) => entry.name);
  }

  logTail(lines = 60): string {
    return `--- last lines of the service (${this.logPath})\n${readTail(this.logPath, lines)}`;
  }

  async waitReady(what: string, look: () => Promise<boolean>, timeoutMs = 60_000): Promise<void> {
    await waitFor(look, { what, timeoutMs, details: () => this.logTail() });
  }

  /** `systemctl kill --signal` of the main process, which `systemctl reload` is with SIGHUP. */
  signal(signal: NodeJS.Signals): void {
    this.child?.kill(signal);
  }

  /** `systemctl restart`: SIGTERM, and a new main process gets what is in the store. */
  async restart(timeoutMs = 60_000): Promise<void> {
    this.isWanted = false;
    await this.end('SIGTERM', timeoutMs);
    this.isWanted = true;
    this.how = undefined;
    await this.run();
  }

  /** `systemctl stop`: as restart, but the store is let go, as systemd before 254 always does. */
  async stop(options: { signal?: NodeJS.Signals; timeoutMs?: number } = {}): Promise<string> {
    this.isWanted = false;
    await this.restarting;
    await this.end(options.signal ?? 'SIGTERM', options.timeoutMs ?? 60_000);
    this.drop(() => true);
    return this.how ?? 'never started';
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    clearInterval(this.looks);
    libc.close(this.socket);
    rmSync(this.options.socketPath, { force: true });
  }

  private async run(): Promise<void> {
    const { command, args, env, cwd, logPath, socketPath, watchdogMs } = this.options;
    const log = openSync(logPath, 'a');
    try {
      // The shell becomes the service, so that LISTEN_PID is its pid.
      const script = 'LISTEN_PID=$$ exec "$@"';
      const child = spawn('/bin/sh', ['-c', script, 'sh', command, ...args], {
        cwd,
        env: {
          ...env,
          NOTIFY_SOCKET: socketPath,
          ...(watchdogMs === undefined ? {} : { WATCHDOG_USEC: String(watchdogMs * 1000) }),
          ...(this.store.length === 0
            ? {}
            : { LISTEN_FDS: String(this.store.length), LISTEN_FDNAMES: this.store.map((entry) => entry.name).join(':') }),
        },
        stdio: ['ignore', log, log, ...this.store.map((entry) => entry.fd)],
      });
      this.child = child;
      this.lastFedMs = performance.now();
      await new Promise<void>((resolve, reject) => {
        child.once('spawn', resolve);
        child.once('error', reject);
      });
      child.once('exit', (code, signal) => this.ended(child, signal === null ? `exit ${code}` : `signal ${signal}`));
    } finally {
      closeSync(log);
    }
  }

  private ended(child: ChildProcess, how: string): void {
    if (child !== this.child) return;
    this.how = how;
    if (!this.isWanted) return;
    this.restarting = (async () => {
      const delayMs = this.options.restartDelayMs ?? 100;
      await new Promise((resolve) => setTimeout(resolve, delayMs));
      if (!this.isWanted) return;
      this.restarts += 1;
      this.how = undefined;
      await this.run();
    })();
    // Awaited at the stop, where a failure shows.
    this.restarting.catch(() => clearInterval(this.looks));
  }

  private async end(signal: NodeJS.Signals, timeoutMs: number): Promise<void> {
    const child = this.child;
    if (child !== undefined && child.exitCode === null && child.signalCode === null) {
      const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
      child.kill(signal);
      child.kill('SIGCONT');
      const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs);
      await exited;
      clearTimeout(timer);
    }
  }

  /** Takes what the service said, and looks after the watchdog and the stored descriptors. */
  private look(): void {
    for (let message = receive(this.socket); message !== undefined; message = receive(this.socket)) this.act(message);
    this.drop((entry) => hasHungUp(entry.fd));
    const { watchdogMs } = this.options;
    if (watchdogMs !== undefined && this.pid !== undefined && performance.now() - this.lastFedMs > watchdogMs) this.child?.kill('SIGKILL');
  }

  private act({ text, fds }: { text: string; fds: number[] }): void {
    const lines = text.split('\n');
    const fieldOf = (key: string): string | undefined => lines.find((line) => line.startsWith(`${key}=`))?.slice(key.length + 1);
    const name = fieldOf('FDNAME') ?? 'stored';
    if (lines.includes('FDSTORE=1')) for (const fd of fds.splice(0)) this.store.push({ name, fd });
    if (lines.includes('FDSTOREREMOVE=1')) this.drop((entry) => entry.name === name);
    if (lines.includes('READY=1')) this.readyCount += 1;
    if (lines.includes('WATCHDOG=1')) this.lastFedMs = performance.now();
    this.status = fieldOf('STATUS') ?? this.status;
    for (const fd of fds) closeSync(fd);
  }

  private drop(which: (entry: Stored) => boolean): void {
    const dropped = this.store.filter(which);
    if (dropped.length === 0) return;
    this.store = this.store.filter((entry) => !dropped.includes(entry));
    for (const entry of dropped) closeSync(entry.fd);
  }
}

/** Binds a datagram socket that nobody reads yet; the caller closes it. */
export function notificationSocket(socketPath: string): number {
  if (existsSync(socketPath)) rmSync(socketPath);
  const fd = libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) throw systemCallError('make socket', socketPath, lastErrno());
  const address = Buffer.alloc(2 + Buffer.byteLength(socketPath) + 1);
  address.writeUInt16LE(AF_UNIX, 0);
  address.write(socketPath, 2);
  if (bind(fd, address, address.length) < 0) throw systemCallError('bind', socketPath, lastErrno());
  return fd;
}

function receive(socket: number): { text: string; fds: number[] } | undefined {
  const text = Buffer.alloc(MAX_MESSAGE_BYTES);
  const control = Buffer.alloc(CMSG_HEADER_BYTES + MAX_DESCRIPTORS * 4 + 4);
  const length = libc.recvmsg(
    socket,
    {
      name: null,
      nameLength: 0,
      iov: [{ base: text, length: text.length }],
      iovLength: 1,
      control,
      controlLength: control.length,
      flags: 0,
    },
    MSG_CMSG_CLOEXEC,
  );
  if (length < 0) {
    const errno = lastErrno();
    if (errno === ERRNO.EAGAIN || errno === ERRNO.EINTR) return undefined;
    throw systemCallError('receive', 'notification', errno);
  }
  const fds: number[] = [];
  if (control.readInt32LE(12) === SCM_RIGHTS)
    for (let at = CMSG_HEADER_BYTES; at + 4 <= Number(control.readBigUInt64LE(0)); at += 4) fds.push(control.readInt32LE(at));
  return { text: text.toString('utf8', 0, length), fds };
}

/** systemd lets a stored descriptor go when it reports an error or a hang-up: a FUSE connection that has ended does. */
function hasHungUp(fd: number): boolean {
  const pollFd = Buffer.alloc(8);
  pollFd.writeInt32LE(fd, 0);
  return libc.poll(pollFd, 1, 0) > 0 && (pollFd.readInt16LE(6) & POLLERR_POLLHUP) !== 0;
}
