/**
 * The queue of conversion jobs: durable rows, a fixed number of processes, one of an image at a time, the newest push wins.
 * What was BUILDING when the control plane died is PENDING again at its next start, and goes on from the layers that are uploaded. Ours.
 */
import type { ConvertJobRow, ConvertJobStore } from '../../../db/convert-job-store.ts';
import type { Database } from '../../../db/database.ts';
import type { Clock } from '../../base/clock.ts';
import { type Digest, parseDigest } from '../../base/digest.ts';
import { AppError, describeError, isAppError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { formatRepository, type Repository } from '../../registry/reference.ts';
import { NO_PROGRESS, type Progress } from '../publish/progress.ts';
import type { ConvertRequest } from '../publish/request.ts';
import { acceleratedTag } from '../publish/tag-names.ts';
import { type ConvertJob, jobOf, type Trigger } from './job.ts';
import type { Attempt, AttemptResult } from './job-process.ts';
import { assertMove, isEnded, type JobState } from './job-states.ts';

/** Jobs that wait; a registry that pushes more than this before one is done is served by asking again later. */
export const MAX_PENDING_JOBS = 1000;
/** Attempts of one job: its process died, or the registry was away; each begins above the layers that are uploaded. */
export const MAX_ATTEMPTS = 4;
/** Waits before the second and later attempts. */
const RETRY_MS = [1_000, 10_000, 60_000] as const;
/** The database could not be written (a full disk): until it is tried again. */
const TROUBLE_MS = 10_000;
/** Progress becomes durable this often; watchers see it at once. */
const PERSIST_MS = 2_000;

export interface NewJob {
  repository: Repository;
  tag: string;
  /** What the tag named when it was pushed; absent: whatever it names when the job begins. */
  digest?: Digest;
  request: ConvertRequest;
  trigger: Trigger;
}

export interface QueueOptions {
  store: ConvertJobStore;
  database: Database;
  clock: Clock;
  logger: Logger;
  /** Processes at once. */
  concurrency: number;
  /** Runs one attempt; the queue gives what changes from job to job. */
  run(job: ConvertJob, name: string, hooks: Pick<Attempt, 'signal' | 'onSource' | 'onProgress' | 'onLine'>): Promise<AttemptResult>;
  /** Called inside the transaction that makes a job SUCCESS. */
  onSuccess(job: ConvertJob): void;
}

interface RunningJob {
  /** The image that it converts. */
  name: string;
  controller: AbortController;
  progress: Progress;
  persistedMs: number;
  done: Promise<void>;
}

export class JobQueue {
  private readonly options: QueueOptions;
  private readonly running = new Map<number, RunningJob>();
  private readonly notBeforeMs = new Map<number, number>();
  /** Jobs that are BUILDING without a process, and why: the control plane died, or the database could not be told of the end. */
  private readonly orphans = new Map<number, string>();
  private readonly watchers = new Map<number, Set<() => void>>();
  private timer: NodeJS.Timeout | undefined;
  private isStopping = false;

  constructor(options: QueueOptions) {
    this.options = options;
  }

  /** Takes up what an earlier control plane left, and begins. */
  start(): void {
    for (const { id } of this.options.store.inState('BUILDING', Number.MAX_SAFE_INTEGER)) {
      this.orphans.set(id, 'the service was started again; it goes on from the layers that are uploaded');
    }
    this.pump();
  }

  /** Ends the processes; their jobs go on at the next start. */
  async stop(): Promise<void> {
    this.isStopping = true;
    clearTimeout(this.timer);
    const jobs = [...this.running.values()];
    for (const { controller } of jobs)
      controller.abort(new AppError('Canceled', { op: 'convert', subject: 'job', what: 'the service ends' }));
    await Promise.all(jobs.map(({ done }) => done));
    for (const id of this.watchers.keys()) this.wake(id);
  }

  /**
   * Adds a job, or returns the one that does the same already. A push of another digest takes the place of a job for the tag's former one.
   * Throws InvalidArgument for a tag that is a result, ResourceExhausted when too many wait.
   */
  add({ repository: { host, repository }, tag, digest, request, trigger }: NewJob): ConvertJob {
    const { store, clock } = this.options;
    const targetTag = acceleratedTag(tag, request.mode, request.runtime);
    const requestText = JSON.stringify(request);
    const present = store.unended(host, repository, tag, targetTag);
    if (present !== undefined) {
      // One that waits without a digest takes what the tag names when it begins; a move later on is noticed at its end.
      const isSame =
        present.request === requestText && (digest === undefined || present.sourceDigest === null || digest === present.sourceDigest);
      if (isSame) return this.get(present.id);
    }
    // One that waits makes room for what takes its place; one that runs goes on when there is none.
    const waiting = store.countInState('PENDING') - (present?.state === 'PENDING' ? 1 : 0);
    if (waiting >= MAX_PENDING_JOBS) {
      const what = `${MAX_PENDING_JOBS} conversions wait already`;
      throw new AppError('ResourceExhausted', { op: 'convert', subject: `${host}/${repository}:${tag}`, what, retryAfterMs: 60_000 });
    }
    if (present !== undefined) {
      const what = 'a newer request for the tag took its place';
      this.end(present.id, new AppError('Canceled', { op: 'convert', subject: nameOf(present), what }));
    }
    const id = store.insert({
      ...{ host, repository, tag, targetTag },
      sourceDigest: digest ?? null,
      request: requestText,
      triggerKind: trigger,
      state: 'PENDING',
      progress: JSON.stringify(NO_PROGRESS),
      createdUs: clock.nowMs() * 1000,
    });
    this.note(id, `asked for by ${trigger === 'manual' ? 'hand' : trigger}: ${nameOf({ host, repository, tag })} becomes ${targetTag}`);
    setImmediate(() => this.pump());
    return this.get(id);
  }

  /** With the progress of this moment. Throws NotFound. */
  get(id: number): ConvertJob {
    return this.live(this.row(id));
  }

  /** Newest first, those below `before`. */
  list(options: { limit: number; before?: number; state?: JobState }): ConvertJob[] {
    return this.options.store.list(options).map((row) => this.live(row));
  }

  /** Ends a job that has not ended: its process is killed at once. Throws NotFound, and FailedPrecondition for one that has ended. */
  async cancel(id: number): Promise<ConvertJob> {
    const row = this.row(id);
    if (isEnded(row.state)) {
      throw new AppError('FailedPrecondition', { op: 'cancel', subject: `job ${id}`, what: `it has ended (${row.state})` });
    }
    const { done } = this.running.get(id) ?? {};
    this.end(id, new AppError('Canceled', { op: 'convert', subject: nameOf(row), what: 'canceled by request' }));
    await done;
    return this.get(id);
  }

  /** The job now and after each change until it has ended; changes that come faster than they are taken are joined. */
  async *watch(id: number, signal: AbortSignal): AsyncGenerator<ConvertJob> {
    let wake = (): void => {};
    let changed = true;
    const onChange = (): void => {
      changed = true;
      wake();
    };
    const watchers = this.watchers.get(id) ?? new Set();
    this.watchers.set(id, watchers.add(onChange));
    signal.addEventListener('abort', onChange, { once: true });
    try {
      while (!signal.aborted && !this.isStopping) {
        if (!changed) await new Promise<void>((resolve) => (wake = resolve));
        if (signal.aborted) return;
        changed = false;
        const job = this.get(id);
        yield job;
        if (isEnded(job.state)) return;
      }
    } finally {
      signal.removeEventListener('abort', onChange);
      watchers.delete(onChange);
      if (watchers.size === 0) this.watchers.delete(id);
    }
  }

  private row(id: number): ConvertJobRow {
    const row = this.options.store.get(id);
    if (row !== undefined) return row;
    throw new AppError('NotFound', { op: 'find', subject: `job ${id}`, what: 'there is no such conversion' });
  }

  private live(row: ConvertJobRow): ConvertJob {
    const progress = this.running.get(row.id)?.progress;
    return { ...jobOf(row), ...(progress === undefined ? {} : { progress }) };
  }

  /** Starts what may start, and looks again when the next waiting one may, or when the database may be written again. */
  private pump(): void {
    clearTimeout(this.timer);
    if (this.isStopping) return;
    try {
      this.settleOrphans();
      this.beginDue();
    } catch (error) {
      this.options.logger.error({ err: error }, 'the queue of conversions cannot be written; tried again');
      this.pumpLater();
    }
  }

  private pumpLater(): void {
    clearTimeout(this.timer);
    if (!this.isStopping) this.timer = setTimeout(() => this.pump(), TROUBLE_MS);
  }

  private settleOrphans(): void {
    for (const [id, what] of this.orphans) {
      const row = this.row(id);
      if (row.state === 'BUILDING') this.retryOrFail(row, new AppError('Unavailable', { op: 'convert', subject: nameOf(row), what }));
      this.orphans.delete(id);
    }
  }

  private beginDue(): void {
    const nowMs = this.options.clock.monotonicMs();
    let nextMs = Number.POSITIVE_INFINITY;
    // One of an image at a time: one that was just ended may still be on its way out, and both modes enter their results into one list.
    const names = new Set([...this.running.values()].map((job) => job.name));
    for (const row of this.options.store.inState('PENDING', MAX_PENDING_JOBS)) {
      if (this.running.size >= this.options.concurrency) return;
      if (names.has(nameOf(row))) continue;
      const notBeforeMs = this.notBeforeMs.get(row.id) ?? 0;
      if (notBeforeMs > nowMs) nextMs = Math.min(nextMs, notBeforeMs);
      else {
        names.add(nameOf(row));
        this.begin(row);
      }
    }
    if (nextMs < Number.POSITIVE_INFINITY) this.timer = setTimeout(() => this.pump(), nextMs - nowMs);
  }

  private begin(row: ConvertJobRow): void {
    const { clock } = this.options;
    const attempts = row.attempts + 1;
    this.notBeforeMs.delete(row.id);
    this.move(row.id, 'BUILDING', { attempts, startedUs: row.startedUs ?? clock.nowMs() * 1000 });
    const job: RunningJob = {
      name: nameOf(row),
      controller: new AbortController(),
      progress: NO_PROGRESS,
      persistedMs: clock.monotonicMs(),
      done: Promise.resolve(),
    };
    this.running.set(row.id, job);
    job.done = this.run(row.id, job)
      .catch((error: unknown) => {
        this.options.logger.error({ err: error, job: row.id }, 'the end of a conversion cannot be written down; tried again');
        this.orphans.set(row.id, 'its end could not be written down');
      })
      .finally(() => {
        this.running.delete(row.id);
        this.wake(row.id);
        if (this.orphans.has(row.id)) this.pumpLater();
        else this.pump();
      });
  }

  private async run(id: number, running: RunningJob): Promise<void> {
    const { options } = this;
    const job = jobOf(this.row(id));
    // What the process says comes as an event, which has nobody to catch what goes wrong with it.
    const guarded = (write: () => void): void => {
      try {
        write();
      } catch (error) {
        running.controller.abort(error);
      }
    };
    try {
      const result = await options.run(job, `job-${id}-${job.attempts}`, {
        signal: running.controller.signal,
        onSource: (digest) => guarded(() => this.saw(id, digest)),
        onProgress: (progress) => guarded(() => this.progressed(id, running, progress)),
        onLine: (line) => guarded(() => this.note(id, line)),
      });
      this.succeeded(id, running, result);
    } catch (error) {
      this.failed(id, running, error);
    }
  }

  private saw(id: number, digest: Digest): void {
    this.options.store.update(id, { sourceDigest: digest });
  }

  private progressed(id: number, running: RunningJob, progress: Progress): void {
    running.progress = progress;
    const nowMs = this.options.clock.monotonicMs();
    if (nowMs - running.persistedMs >= PERSIST_MS) {
      running.persistedMs = nowMs;
      this.options.store.update(id, { progress: JSON.stringify(progress) });
    }
    this.wake(id);
  }

  private succeeded(id: number, running: RunningJob, result: AttemptResult): void {
    const { store, database, clock, onSuccess } = this.options;
    // Ended meanwhile: what was published stays, the row says what was asked.
    if (isEnded(this.row(id).state)) return;
    database.transaction(() => {
      this.move(id, 'SUCCESS', {
        sourceDigest: result.sourceDigest,
        targetDigest: result.targetDigest,
        progress: JSON.stringify(running.progress),
        endedUs: clock.nowMs() * 1000,
        sourceBytes: result.sourceBytes,
        resultBytes: result.resultBytes,
        elapsedMs: result.elapsedMs,
      });
      onSuccess(jobOf(store.get(id)!));
    });
  }

  private failed(id: number, running: RunningJob, error: unknown): void {
    const row = this.row(id);
    if (isEnded(row.state)) return;
    this.options.store.update(id, { progress: JSON.stringify(running.progress) });
    if (this.isStopping) {
      this.move(id, 'PENDING', { attempts: row.attempts - 1 });
      return;
    }
    const known = isAppError(error)
      ? error
      : new AppError('Internal', { op: 'convert', subject: nameOf(row), what: describeError(error), cause: error });
    if (!isAppError(error)) this.options.logger.error({ err: error, job: id }, 'conversion failed unexpectedly');
    if (mayPass(known)) this.retryOrFail(row, known);
    else this.end(id, known);
    // Registries have conflicts of their own (a tag that may not be replaced), which another attempt would only meet again.
    if (known.code === 'Conflict' && known.details.movedTo !== undefined) this.again(row);
  }

  /** The tag was moved while its former image was converted: what it names now is converted instead. */
  private again(row: ConvertJobRow): void {
    const { repository, tag, request, trigger } = jobOf(row);
    try {
      this.add({ repository, tag, request, trigger });
    } catch (error) {
      this.note(row.id, `what the tag names now is not converted: ${describeError(error)}`);
    }
  }

  private retryOrFail(row: ConvertJobRow, error: AppError): void {
    if (row.attempts >= MAX_ATTEMPTS) {
      this.end(
        row.id,
        new AppError(error.code, { op: error.op, subject: error.subject, what: `${whatOf(error)} (attempt ${row.attempts}, the last)` }),
      );
      return;
    }
    const waitMs = Math.max(RETRY_MS[Math.min(row.attempts, RETRY_MS.length) - 1] ?? 0, error.retryAfterMs ?? 0);
    this.note(row.id, `attempt ${row.attempts}: ${error.message}; the next one begins in ${waitMs / 1000} s`);
    this.notBeforeMs.set(row.id, this.options.clock.monotonicMs() + waitMs);
    this.move(row.id, 'PENDING', {});
  }

  /** Ends a job as FAILED; its process, if there is one, is killed. */
  private end(id: number, error: AppError): void {
    this.note(id, error.message);
    this.move(id, 'FAILED', { failureCode: error.code, failure: error.message, endedUs: this.options.clock.nowMs() * 1000 });
    this.notBeforeMs.delete(id);
    this.running.get(id)?.controller.abort(error);
  }

  private move(id: number, to: JobState, values: Parameters<ConvertJobStore['update']>[1]): void {
    assertMove(this.row(id).state, to);
    this.options.store.update(id, { ...values, state: to });
    this.wake(id);
  }

  private note(id: number, line: string): void {
    this.options.store.log(id, this.options.clock.nowMs() * 1000, line);
  }

  private wake(id: number): void {
    for (const onChange of this.watchers.get(id) ?? []) onChange();
  }
}

/** A registry that is away or slow; a job that used up its own time would do so again. */
function mayPass({ code, details }: AppError): boolean {
  return code === 'Unavailable' || (code === 'DeadlineExceeded' && details.isOwnLimit !== true);
}

/** The digest that a job is tied to, once one is known. */
export function expectedDigestOf(job: ConvertJob): Digest | undefined {
  return job.sourceDigest === null ? undefined : parseDigest(job.sourceDigest, `job ${job.id}`);
}

function nameOf({ host, repository, tag }: { host: string; repository: string; tag: string }): string {
  return `${formatRepository({ host, repository })}:${tag}`;
}

function whatOf(error: AppError): string {
  return error.message.slice(`${error.op} ${error.subject}: `.length);
}
