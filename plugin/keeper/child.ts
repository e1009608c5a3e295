/**
 * One child of the keeper: starts it, asks it every second whether it still answers, kills it when it does not, and starts it again.
 *
 *   starting ──ready──► ready ──exit or silence──► (killed) ──back-off──► starting
 */
import { type ChildProcess, spawn } from 'node:child_process';
import os from 'node:os';
import { describeError } from '../base/errors.ts';
import type { FromKeeper, ToKeeper } from '../base/keeper-protocol.ts';
import type { Logger } from '../base/log.ts';

/** The probe's period; with the silence limit below and a start of less than a second, a stopped child is replaced within 5 s. */
const PROBE_MS = 500;
const SILENCE_LIMIT_MS = 3000;

/** A child that lived this long starts again at once. */
const STABLE_MS = 2000;
const BACK_OFF_MS = [0, 100, 300, 1000, 3000, 5000] as const;

/**
 * Of the above, for a child that was ready before it died or was killed by somebody else: it is not the start that fails, readers wait,
 * and a start takes long enough by itself.
 */
const MAX_BLAMELESS_BACK_OFF = 2;

export interface ChildOptions {
  name: string;
  /** Called at each start: an upgrade may have changed where the program lies. */
  command(): { program: string; args: string[] };
  /** Inherited as descriptor 4, if given. */
  socketFd?: number;
  /** As nice(2) has it; given from outside at once, so that loading the program has it too. */
  niceness: number;
  /**
   * Silence that ends a child before it is ready, by starts in a row that did not get there: short at first, so that a start that hangs
   * does not keep readers waiting; then longer, for a disk that is slow after boot.
   */
  startLimitsMs: readonly [number, ...number[]];
  log: Logger;
  onReady(): void;
  onRequest(message: ToKeeper, reply: (message: FromKeeper) => void): void;
  /** After the child's exit, before its next start. */
  onExit?(): void;
}

/** Sets a process's priority; without the right to, it stays as it is and the log says so. */
export function setNiceness(pid: number, niceness: number, log: Logger): void {
  try {
    os.setPriority(pid, niceness);
  } catch (error) {
    log.warn({ pid, reason: describeError(error) }, 'priority stays as it was');
  }
}

export class Child {
  private readonly options: ChildOptions;
  private process: ChildProcess | undefined;
  private startedAtMs = 0;
  private isReady = false;
  private lastHeardMs = 0;
  private quickDeaths = 0;
  private failedStarts = 0;
  private isKilledByUs = false;
  private checkedAtMs = performance.now();
  private isWanted = false;
  private pingId = 0;
  private retry: NodeJS.Timeout | undefined;
  private readonly probe: NodeJS.Timeout;

  constructor(options: ChildOptions) {
    this.options = options;
    this.probe = setInterval(() => this.check(), PROBE_MS);
    this.probe.unref();
  }

  get ready(): boolean {
    return this.isReady;
  }

  start(): void {
    this.isWanted = true;
    const { name, log } = this.options;
    this.isReady = false;
    this.isKilledByUs = false;
    this.startedAtMs = performance.now();
    this.lastHeardMs = this.startedAtMs;
    const child = this.spawn();
    this.process = child;
    if (child === undefined) {
      this.ended(undefined, null, null);
      return;
    }
    child.on('message', (message) => this.receive(child, message as ToKeeper));
    child.on('error', (err) => {
      log.error({ err, child: name }, 'child could not be started or told');
      // One that never ran does not exit either.
      if (child.pid === undefined) this.ended(child, null, null);
    });
    child.once('exit', (code, signal) => this.ended(child, code, signal));
    if (child.pid === undefined) return;
    setNiceness(child.pid, this.options.niceness, log);
    log.info({ child: name, pid: child.pid }, 'child started');
  }

  /** Undefined when it cannot even be tried: an upgrade is half done, or the kernel has no memory. The keeper must outlive that. */
  private spawn(): ChildProcess | undefined {
    const { name, log, socketFd, command } = this.options;
    try {
      const { program, args } = command();
      return spawn(program, args, { stdio: ['ignore', 'inherit', 'inherit', 'ipc', socketFd ?? 'ignore'] });
    } catch (err) {
      log.error({ err, child: name }, 'child could not be started');
      return undefined;
    }
  }

  /** Ends the child for good, in order; killed if it takes longer than `limitMs`. */
  async stop(options: { unmount: boolean; limitMs: number }): Promise<void> {
    this.isWanted = false;
    clearInterval(this.probe);
    clearTimeout(this.retry);
    await this.end(options);
  }

  /** Ends the child; its successor starts at its exit. */
  async replace(limitMs: number): Promise<void> {
    await this.end({ unmount: false, limitMs });
  }

  private async end(options: { unmount: boolean; limitMs: number }): Promise<void> {
    const child = this.process;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
    if (child.connected) child.send({ op: 'stop', unmount: options.unmount } satisfies FromKeeper);
    const timer = setTimeout(() => child.kill('SIGKILL'), options.limitMs);
    await exited;
    clearTimeout(timer);
  }

  private receive(child: ChildProcess, message: ToKeeper): void {
    if (child !== this.process) return;
    this.lastHeardMs = performance.now();
    if (message.op === 'pong') return;
    if (message.op === 'ready') {
      this.isReady = true;
      this.failedStarts = 0;
      this.options.onReady();
      return;
    }
    this.options.onRequest(message, (reply) => {
      if (child.connected) child.send(reply);
    });
  }

  private check(): void {
    const child = this.process;
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const nowMs = performance.now();
    // A keeper that was stopped or starved itself has heard nothing, which says nothing about the child.
    if (nowMs - this.checkedAtMs > 3 * PROBE_MS) this.lastHeardMs = nowMs;
    this.checkedAtMs = nowMs;
    const silentMs = nowMs - this.lastHeardMs;
    const { startLimitsMs } = this.options;
    const limitMs = this.isReady ? SILENCE_LIMIT_MS : startLimitsMs[Math.min(this.failedStarts, startLimitsMs.length - 1)]!;
    if (silentMs > limitMs) {
      this.options.log.error(
        { child: this.options.name, pid: child.pid, silentMs: Math.round(silentMs) },
        'child does not answer; killing it',
      );
      this.isKilledByUs = true;
      child.kill('SIGKILL');
      return;
    }
    if (child.connected) child.send({ op: 'ping', id: ++this.pingId } satisfies FromKeeper);
  }

  private ended(child: ChildProcess | undefined, code: number | null, signal: NodeJS.Signals | null): void {
    if (child !== this.process) return;
    this.process = undefined;
    const wasReady = this.isReady;
    this.isReady = false;
    if (!wasReady && (signal !== 'SIGKILL' || this.isKilledByUs)) this.failedStarts += 1;
    const livedMs = performance.now() - this.startedAtMs;
    this.options.log.warn({ child: this.options.name, pid: child?.pid, code, signal, livedMs: Math.round(livedMs) }, 'child ended');
    this.options.onExit?.();
    if (!this.isWanted) return;
    const wasKilled = signal === 'SIGKILL' && !this.isKilledByUs;
    const most = wasReady || wasKilled ? MAX_BLAMELESS_BACK_OFF : BACK_OFF_MS.length - 1;
    this.quickDeaths = wasReady && livedMs >= STABLE_MS ? 0 : Math.min(this.quickDeaths + 1, most);
    const delayMs = BACK_OFF_MS[this.quickDeaths]!;
    this.retry = setTimeout(() => this.start(), delayMs);
  }
}
