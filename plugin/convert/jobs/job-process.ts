/**
 * One attempt at a job: a process of its own in a cgroup of its own with a staging directory of its own, and nothing of the three left
 * when the attempt is over, however it ended. Ours.
 */
import path from 'node:path';
import type { Digest } from '../../base/digest.ts';
import { AppError, describeError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { CgroupLimits, CgroupParent, JobCgroup } from '../../kernel/cgroup.ts';
import { type WorkerDeath, WorkerProcess } from '../../kernel/worker-process.ts';
import type { LayerLedger } from '../publish/ledger.ts';
import type { Progress } from '../publish/progress.ts';
import type { PublishResult } from '../publish/publish.ts';
import { type FromWorker, fromWorkerSchema, MAX_LINE_CHARS, type Question, type ToWorker, type Work } from './protocol.ts';
import type { Staging } from './staging.ts';

const WORKER = path.join(import.meta.dirname, `worker${path.extname(import.meta.filename)}`);

/** How often staging is measured: at 500 MB/s a job oversteps its bound by as many megabytes at most. */
const WATCH_MS = 1000;

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

/** What was published, and how long it took. */
export type AttemptResult = PublishResult & { elapsedMs: number };

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
export async function runAttempt(attempt: Attempt, parts: ProcessParts): Promise<AttemptResult> {
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
  private readonly process: WorkerProcess<AttemptResult>;

  constructor(attempt: Attempt, parts: ProcessParts, stagingDirectory: string, cgroup: JobCgroup | undefined) {
    this.attempt = attempt;
    this.parts = parts;
    const { limits, deadlineMs, signal, onPid } = attempt;
    this.process = new WorkerProcess(
      {
        script: WORKER,
        args: [stagingDirectory],
        limits,
        cgroup,
        start: { ...attempt.work, stagingDirectory },
        deadlineMs,
        signal,
        ...(onPid === undefined ? {} : { onPid }),
      },
      {
        isLate: () => this.stopped('DeadlineExceeded', `not done within ${deadlineMs / 1000} s`),
        died: (death) => this.death(death),
      },
      (message) => this.receive(message),
    );
  }

  async result(): Promise<AttemptResult> {
    const watch = setInterval(() => this.watchStaging(), WATCH_MS);
    try {
      const result = await this.process.run();
      this.parts.logger.debug({ job: this.attempt.name }, 'conversion process is done');
      return result;
    } finally {
      clearInterval(watch);
    }
  }

  private send(message: ToWorker): void {
    this.process.send(message);
  }

  private receive(message: unknown): void {
    const parsed = fromWorkerSchema.safeParse(message);
    if (parsed.success) this.act(parsed.data);
    else this.process.end(this.stopped('Internal', `its process said something unknown: ${parsed.error.issues[0]?.message ?? ''}`));
  }

  private act(message: FromWorker): void {
    const { onSource, onProgress, onLine } = this.attempt;
    if (message.op === 'source') onSource(message.digest);
    else if (message.op === 'progress') onProgress(message.progress);
    else if (message.op === 'log') onLine(message.line.slice(0, MAX_LINE_CHARS));
    else if (message.op === 'done') {
      const { op: _, ...result } = message;
      this.process.succeed(result);
    } else if (message.op === 'failed') {
      this.process.fail(AppError.fromJSON(message.error, { op: 'convert', subject: this.attempt.name }));
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
        if (complaint !== undefined) this.process.end(this.stopped('ResourceExhausted', complaint));
      },
      (error: unknown) => this.process.end(this.stopped('Internal', `its staging directory cannot be measured: ${describeError(error)}`)),
    );
  }

  private stopped(code: 'DeadlineExceeded' | 'ResourceExhausted' | 'Internal', what: string): AppError {
    const { work } = this.attempt;
    return new AppError(code, {
      op: 'convert',
      subject: `${work.host}/${work.repository}:${work.tag}`,
      what,
      details: { isOwnLimit: true },
    });
  }

  private death({ ranOutOfMemory, how }: WorkerDeath): AppError {
    const { work, limits } = this.attempt;
    if (ranOutOfMemory) {
      return this.stopped('ResourceExhausted', `it needs more than ${limits.memoryBytes} bytes of memory (convert.memory_bytes)`);
    }
    return new ProcessDied(`${work.host}/${work.repository}:${work.tag}`, `its process ended (${how}) without a word`);
  }
}

type KnownEntry = NonNullable<Awaited<ReturnType<LayerLedger['find']>>[number]>;
