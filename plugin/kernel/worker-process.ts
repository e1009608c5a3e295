/**
 * One process for one piece of work that reads what strangers wrote: limited in CPU and memory by a cgroup, nicer than the data plane, the
 * first to go when memory ends, and gone when its parent is. It is given its work when its limits are in place, and says how it ended.
 * Ours.
 *
 * The script is called with the parent's pid as its first argument (see dieWithParent in process.ts).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import { errnoOf } from '../base/errors.ts';
import { MIB } from '../base/units.ts';
import type { CgroupLimits, JobCgroup } from './cgroup.ts';

/** The data plane comes first: the process is nicer than it, and the first to go when memory ends. */
const NICENESS = 10;
const OOM_SCORE_ADJ = 700;
/** Of the memory limit; the rest is for buffers, threads and the code. */
const HEAP_SHARE = 0.6;
const MIN_HEAP_MIB = 128;

export interface WorkerProcessOptions {
  /** Path of the script. */
  script: string;
  /** Its arguments after the parent's pid; for people who look at processes, so never a secret. */
  args: readonly string[];
  limits: CgroupLimits;
  /** Undefined: the machine gives none, and the process runs without limits. */
  cgroup: JobCgroup | undefined;
  /** The first message: the work. May hold secrets. */
  start: unknown;
  /** Milliseconds until the process is given up. */
  deadlineMs: number;
  /** Ends the process at once; its reason is the outcome. */
  signal: AbortSignal;
  onPid?(pid: number): void;
}

/** How a process ended that did not say so itself. */
export interface WorkerDeath {
  ranOutOfMemory: boolean;
  /** `SIGKILL` or `exit 1`. */
  how: string;
}

/** What goes wrong with the process itself, as the user of the class names it. */
export interface WorkerFailures {
  isLate(): Error;
  died(death: WorkerDeath): Error;
}

export class WorkerProcess<Result> {
  private readonly options: WorkerProcessOptions;
  private readonly failures: WorkerFailures;
  private readonly onMessage: (message: unknown) => void;
  private outcome: { result: Result } | { error: unknown } | undefined;
  private child!: ChildProcess;

  /** `onMessage` gets what the process says, unchecked; nothing after {@link succeed} or {@link fail}. */
  constructor(options: WorkerProcessOptions, failures: WorkerFailures, onMessage: (message: unknown) => void) {
    this.options = options;
    this.failures = failures;
    this.onMessage = onMessage;
  }

  /** Runs the process to its end. Rejects with what {@link fail} was given, the signal's reason, or one of the failures. Once only. */
  async run(): Promise<Result> {
    const { signal, deadlineMs } = this.options;
    signal.throwIfAborted();
    const exited = this.spawn();
    const abort = (): void => this.end(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    const deadline = setTimeout(() => this.end(this.failures.isLate()), deadlineMs);
    try {
      await this.begin();
      await exited;
    } catch (error) {
      // A process that died before it was set up is one that died; the rest is a fault of ours.
      if (errnoOf(error) === 'ESRCH' || errnoOf(error) === 'ENOENT') this.child.kill('SIGKILL');
      else this.end(error);
      await exited;
    } finally {
      signal.removeEventListener('abort', abort);
      clearTimeout(deadline);
    }
    if (this.outcome === undefined) throw await this.death();
    if ('error' in this.outcome) throw this.outcome.error;
    return this.outcome.result;
  }

  /** A message to a process that has just died is lost; its exit tells. */
  send(message: object): void {
    if (this.child.connected) this.child.send(message, () => {});
  }

  /** The process said how it ended; it goes by itself. */
  succeed(result: Result): void {
    this.outcome ??= { result };
  }

  /** Like {@link succeed}. */
  fail(error: unknown): void {
    this.outcome ??= { error };
  }

  /** Kills the process; `error` is the outcome unless there is one. */
  end(error: unknown): void {
    this.fail(error);
    this.child.kill('SIGKILL');
  }

  private spawn(): Promise<void> {
    const { script, args, limits, onPid } = this.options;
    const heapMib = Math.max(MIN_HEAP_MIB, Math.floor((limits.memoryBytes * HEAP_SHARE) / MIB));
    const flags = [`--max-old-space-size=${heapMib}`, '--disable-warning=ExperimentalWarning'];
    const child = spawn(process.execPath, [...flags, script, String(process.pid), ...args], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    this.child = child;
    child.on('message', (message) => {
      if (this.outcome === undefined) this.onMessage(message);
    });
    return new Promise((resolve) => {
      child.once('exit', () => resolve());
      child.once('error', (error) => {
        this.end(error);
        // A process that never began has no exit.
        if (child.pid === undefined) resolve();
      });
      if (child.pid !== undefined) onPid?.(child.pid);
    });
  }

  /** Limits first, work second. */
  private async begin(): Promise<void> {
    const { cgroup, start } = this.options;
    const { pid } = this.child;
    if (pid === undefined) return;
    await cgroup?.add(pid);
    os.setPriority(pid, NICENESS);
    await fs.writeFile(`/proc/${pid}/oom_score_adj`, String(OOM_SCORE_ADJ));
    this.send({ op: 'start', work: start });
  }

  private async death(): Promise<Error> {
    const { exitCode, signalCode } = this.child;
    // V8 aborts when its heap is full, which it is before the cgroup is.
    const ranOutOfMemory = signalCode === 'SIGABRT' || (await this.options.cgroup?.ranOutOfMemory()) === true;
    return this.failures.died({ ranOutOfMemory, how: signalCode ?? `exit ${exitCode}` });
  }
}
