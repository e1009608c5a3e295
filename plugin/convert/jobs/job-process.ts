/**
 * One attempt at a job: a process of its own in a cgroup of its own with a staging directory of its own, and nothing of the three left
 * when the attempt is over, however it ended. Ours.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import type { Digest } from '../../base/digest.ts';
import { AppError, describeError, errnoOf } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { MIB } from '../../base/units.ts';
import type { LayerLedger } from '../publish/ledger.ts';
import type { Progress } from '../publish/progress.ts';
import type { PublishResult } from '../publish/publish.ts';
import type { CgroupLimits, CgroupParent, JobCgroup } from './cgroup.ts';
import { type FromWorker, fromWorkerSchema, MAX_LINE_CHARS, type Question, type ToWorker, type Work } from './protocol.ts';
import type { Staging } from './staging.ts';

const WORKER = path.join(import.meta.dirname, `worker${path.extname(import.meta.filename)}`);

/** How often staging is measured: at 500 MB/s a job oversteps its bound by as many megabytes at most. */
const WATCH_MS = 1000;
/** The data plane comes first: the process is nicer than it, and the first to go when memory ends. */
const NICENESS = 10;
const OOM_SCORE_ADJ = 700;
/** Of the memory limit; the rest is for buffers, threads and the code. */
const HEAP_SHARE = 0.6;

export interface Attempt {
  /** Names cgroup and staging directory. */
  name: string;
  work: Omit<Work, 'stagingDirectory'>;
  limits: CgroupLimits;
  /** Milliseconds until the attempt is given up. */
  deadlineMs: number;
  ledger: LayerLedger;
  /** Ends the attempt at once; its reason is the outcome. */
  signal: AbortSignal;
  onSource(digest: Digest): void;
  onProgress(progress: Progress): void;
  onLine(line: string): void;
  onPid?(pid: number): void;
}

export interface ProcessParts {
  staging: Staging;
  cgroups: CgroupParent;
  logger: Logger;
}

/** A process that ended without saying how: killed, out of memory, crashed. Another attempt may succeed. */
export class ProcessDied extends AppError {
  constructor(subject: string, what: string) {
    super('Unavailable', { op: 'convert', subject, what });
  }
}

/** Runs one attempt. Rejects with the process's failure, with {@link ProcessDied}, or with the signal's reason. */
export async function runAttempt(attempt: Attempt, parts: ProcessParts): Promise<PublishResult> {
  const { name } = attempt;
  const { staging } = parts;
  const stagingDirectory = await staging.create(name);
  let cgroup: JobCgroup | undefined;
  try {
    cgroup = await makeCgroup(attempt, parts);
    return await new Running(attempt, parts, stagingDirectory, cgroup).result();
  } finally {
    await cgroup?.remove();
    await staging.remove(name);
  }
}

/** Undefined, with a warning, where the machine lets us make none: the job runs all the same, nice but unlimited. */
async function makeCgroup({ name, limits, onLine }: Attempt, { cgroups, logger }: ProcessParts): Promise<JobCgroup | undefined> {
  try {
    return await cgroups.create(name, limits);
  } catch (error) {
    const why = `the conversion runs without limits of CPU and memory: no cgroup can be made (${describeError(error)})`;
    logger.warn({ job: name }, why);
    onLine(why);
    return undefined;
  }
}

class Running {
  private readonly attempt: Attempt;
  private readonly parts: ProcessParts;
  private readonly stagingDirectory: string;
  private readonly cgroup: JobCgroup | undefined;
  private outcome: { result: PublishResult } | { error: unknown } | undefined;
  private child!: ChildProcess;

  constructor(attempt: Attempt, parts: ProcessParts, stagingDirectory: string, cgroup: JobCgroup | undefined) {
    this.attempt = attempt;
    this.parts = parts;
    this.stagingDirectory = stagingDirectory;
    this.cgroup = cgroup;
  }

  async result(): Promise<PublishResult> {
    const { signal, deadlineMs, name } = this.attempt;
    signal.throwIfAborted();
    const exited = this.spawn();
    const abort = (): void => this.end(signal.reason);
    signal.addEventListener('abort', abort, { once: true });
    const deadline = setTimeout(() => this.end(this.stopped('DeadlineExceeded', `not done within ${deadlineMs / 1000} s`)), deadlineMs);
    const watch = setInterval(() => this.watchStaging(), WATCH_MS);
    try {
      await this.start();
      await exited;
    } catch (error) {
      // A process that died before it was set up is one that died; the rest is a fault of ours.
      if (errnoOf(error) === 'ESRCH' || errnoOf(error) === 'ENOENT') this.child.kill('SIGKILL');
      else this.end(error);
      await exited;
    } finally {
      signal.removeEventListener('abort', abort);
      clearTimeout(deadline);
      clearInterval(watch);
    }
    if (this.outcome === undefined) throw await this.death();
    if ('error' in this.outcome) throw this.outcome.error;
    this.parts.logger.debug({ job: name }, 'conversion process is done');
    return this.outcome.result;
  }

  private spawn(): Promise<void> {
    const { limits, onPid } = this.attempt;
    const heapMib = Math.max(128, Math.floor((limits.memoryBytes * HEAP_SHARE) / MIB));
    const args = [
      `--max-old-space-size=${heapMib}`,
      '--disable-warning=ExperimentalWarning',
      WORKER,
      String(process.pid),
      this.stagingDirectory,
    ];
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    this.child = child;
    child.on('message', (message) => this.receive(message));
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
  private async start(): Promise<void> {
    const { pid } = this.child;
    if (pid === undefined) return;
    await this.cgroup?.add(pid);
    os.setPriority(pid, NICENESS);
    await fs.writeFile(`/proc/${pid}/oom_score_adj`, String(OOM_SCORE_ADJ));
    this.send({ op: 'start', work: { ...this.attempt.work, stagingDirectory: this.stagingDirectory } });
  }

  private send(message: ToWorker): void {
    // A message to a process that has just died is lost; its exit tells.
    if (this.child.connected) this.child.send(message, () => {});
  }

  private end(error: unknown): void {
    this.outcome ??= { error };
    this.child.kill('SIGKILL');
  }

  private receive(message: unknown): void {
    const parsed = fromWorkerSchema.safeParse(message);
    if (!parsed.success) {
      this.end(this.stopped('Internal', `its process said something unknown: ${parsed.error.issues[0]?.message ?? ''}`));
      return;
    }
    if (this.outcome !== undefined) return;
    this.act(parsed.data);
  }

  private act(message: FromWorker): void {
    const { onSource, onProgress, onLine } = this.attempt;
    if (message.op === 'source') onSource(message.digest);
    else if (message.op === 'progress') onProgress(message.progress);
    else if (message.op === 'log') onLine(message.line.slice(0, MAX_LINE_CHARS));
    else if (message.op === 'done') {
      const { op: _, ...result } = message;
      this.outcome = { result };
    } else if (message.op === 'failed') {
      this.outcome = { error: AppError.fromJSON(message.error, { op: 'convert', subject: this.attempt.name }) };
    } else {
      this.answer(message.question).then(
        (answer) => this.send({ op: 'answer', id: message.id, ...answer }),
        (error: unknown) => this.refuse(message.id, error),
      );
    }
  }

  private refuse(id: number, error: unknown): void {
    const known = error instanceof AppError ? error : this.stopped('Internal', describeError(error));
    this.send({ op: 'refused', id, error: known.toJSON() });
  }

  private async answer(question: Question): Promise<{ entries?: (KnownEntry | null)[] }> {
    const { ledger, signal } = this.attempt;
    if (question.kind === 'find') return { entries: (await ledger.find(question.chainIds, signal)).map((entry) => entry ?? null) };
    if (question.kind === 'record') await ledger.record(question.chainId, question.layer, signal);
    else await ledger.forget(question.chainId, signal);
    return {};
  }

  private watchStaging(): void {
    this.parts.staging.complaint(this.attempt.name).then(
      (complaint) => {
        if (complaint !== undefined) this.end(this.stopped('ResourceExhausted', complaint));
      },
      (error: unknown) => this.end(this.stopped('Internal', `its staging directory cannot be measured: ${describeError(error)}`)),
    );
  }

  private stopped(code: 'DeadlineExceeded' | 'ResourceExhausted' | 'Internal', what: string): AppError {
    const { work } = this.attempt;
    return new AppError(code, { op: 'convert', subject: `${work.host}/${work.repository}:${work.tag}`, what });
  }

  private async death(): Promise<AppError> {
    const { work, limits } = this.attempt;
    const subject = `${work.host}/${work.repository}:${work.tag}`;
    if ((await this.cgroup?.ranOutOfMemory()) === true) {
      return this.stopped('ResourceExhausted', `it needs more than ${limits.memoryBytes} bytes of memory (convert.memory_bytes)`);
    }
    const { exitCode, signalCode } = this.child;
    return new ProcessDied(subject, `its process ended (${signalCode ?? `exit ${exitCode}`}) without a word`);
  }
}

type KnownEntry = NonNullable<Awaited<ReturnType<LayerLedger['find']>>[number]>;
