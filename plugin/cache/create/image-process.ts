/** One image made in a process of its own, in a cgroup of its own; nothing of the two is left when it is over, however it ended. Ours. */
import path from 'node:path';
import { AppError, describeError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import type { CgroupLimits, CgroupParent, JobCgroup } from '../../kernel/cgroup.ts';
import { WorkerProcess } from '../../kernel/worker-process.ts';
import { type FromWorker, fromWorkerSchema, type Made, type Question, type Work } from './protocol.ts';

const WORKER = path.join(import.meta.dirname, `worker${path.extname(import.meta.filename)}`);

export interface ImageAttempt {
  /** Names the cgroup. */
  name: string;
  work: Work;
  limits: CgroupLimits;
  /** Milliseconds until the attempt is given up. */
  deadlineMs: number;
  /** Ends the attempt at once; its reason is the outcome. */
  signal: AbortSignal;
  /** Makes a layer that has to be unpacked local; `onBytes`: some have come. */
  fetchLayer(layer: Question, onBytes: () => void): Promise<{ path: string; fetchedBytes: number }>;
  onLayer(layer: Extract<FromWorker, { op: 'layer' }>): void;
}

export interface ProcessParts {
  cgroups: CgroupParent;
  logger: Logger;
}

/**
 * Runs one attempt. Rejects with the process's failure, the signal's reason, Unavailable when the process died without a word, or
 * ResourceExhausted when it needed more memory than it may have.
 */
export function makeImage(attempt: ImageAttempt, parts: ProcessParts): Promise<Made> {
  return inCgroup(attempt.name, attempt.limits, parts, (cgroup) => new ImageProcess(attempt, cgroup).run());
}

/** Work in a cgroup, which is gone afterwards. Undefined, with a warning, where the machine lets us make none: the work is nice, but unlimited. */
export async function inCgroup<T>(
  name: string,
  limits: CgroupLimits,
  { cgroups, logger }: ProcessParts,
  work: (cgroup: JobCgroup | undefined) => Promise<T>,
): Promise<T> {
  let cgroup: JobCgroup | undefined;
  try {
    cgroup = await cgroups.create(name, limits);
  } catch (error) {
    const what = 'a process for images runs without limits of CPU and memory: no cgroup can be made';
    logger.warn({ worker: name, reason: describeError(error) }, what);
  }
  try {
    return await work(cgroup);
  } finally {
    await cgroup?.remove();
  }
}

class ImageProcess {
  private readonly attempt: ImageAttempt;
  private readonly process: WorkerProcess<Made>;

  constructor(attempt: ImageAttempt, cgroup: JobCgroup | undefined) {
    this.attempt = attempt;
    const { work, limits, deadlineMs, signal } = attempt;
    const subject = work.reference;
    this.process = new WorkerProcess(
      { script: WORKER, args: [subject], limits, cgroup, start: work, deadlineMs, signal },
      {
        isLate: () => new AppError('DeadlineExceeded', { op: 'cache image', subject, what: `not done within ${deadlineMs / 1000} s` }),
        died: ({ ranOutOfMemory, how }) => {
          const what = `it needs more than ${limits.memoryBytes} bytes of memory (caches.memory_bytes)`;
          if (ranOutOfMemory) return new AppError('ResourceExhausted', { op: 'cache image', subject, what });
          return new AppError('Unavailable', { op: 'cache image', subject, what: `its process ended (${how}) without a word` });
        },
      },
      (message) => this.receive(message),
    );
  }

  run(): Promise<Made> {
    return this.process.run();
  }

  private receive(message: unknown): void {
    const parsed = fromWorkerSchema.safeParse(message);
    if (parsed.success) this.act(parsed.data);
    else this.process.end(this.internal(`its process said something unknown: ${parsed.error.issues[0]?.message ?? ''}`));
  }

  private act(message: FromWorker): void {
    if (message.op === 'layer') this.attempt.onLayer(message);
    else if (message.op === 'done') this.process.succeed(message.made);
    else if (message.op === 'failed')
      this.process.fail(AppError.fromJSON(message.error, { op: 'cache image', subject: this.attempt.work.reference }));
    else {
      const onBytes = (): void => this.process.send({ op: 'bytes', id: message.id });
      this.attempt.fetchLayer(message.question, onBytes).then(
        (answer) => this.process.send({ op: 'answer', id: message.id, path: answer.path, fetchedBytes: answer.fetchedBytes }),
        (error: unknown) => {
          const known = error instanceof AppError ? error : this.internal(describeError(error));
          this.process.send({ op: 'refused', id: message.id, error: known.toJSON() });
        },
      );
    }
  }

  private internal(what: string): AppError {
    return new AppError('Internal', { op: 'cache image', subject: this.attempt.work.reference, what });
  }
}
