/** The queue with attempts that are fakes: order, attempts, superseding, what survives a restart, watchers. */
import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { ConvertJobStore } from '../../../../../db/convert-job-store.ts';
import { type Database, openDatabase } from '../../../../../db/database.ts';
import { type Digest, sha256 } from '../../../../../plugin/base/digest.ts';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../../plugin/base/log.ts';
import type { ConvertJob } from '../../../../../plugin/convert/jobs/job.ts';
import type { AttemptResult } from '../../../../../plugin/convert/jobs/job-process.ts';
import { JobQueue, MAX_ATTEMPTS, MAX_PENDING_JOBS } from '../../../../../plugin/convert/jobs/job-queue.ts';
import { assertMove, isEnded, JOB_MOVES, JOB_STATES } from '../../../../../plugin/convert/jobs/job-states.ts';
import { convertRequestSchema } from '../../../../../plugin/convert/publish/request.ts';
import { until } from '../../../../support/registry-client.ts';

const request = convertRequestSchema.parse({});
const D1 = sha256('1');
const D2 = sha256('2');
const MEASURES = { sourceBytes: 100, resultBytes: 110, elapsedMs: 1500 };

interface FakeAttempt {
  job: ConvertJob;
  succeed(): void;
  fail(error: unknown): void;
  saw(digest: Digest): void;
  progress(readBytes: number): void;
}

let database: Database;
let queue: JobQueue;
let attempts: FakeAttempt[];
let told: number[];
/** Time passes by itself, a second a look, so that pauses between attempts are short. */
let nowMs = 0;
const clock = { nowMs: () => nowMs, monotonicMs: () => (nowMs += 60_000), sleep: async () => {} };

function open(concurrency = 1): JobQueue {
  return new JobQueue({
    ...{ store: new ConvertJobStore(database), database, clock, logger: silentLogger, concurrency },
    onSuccess: (job) => told.push(job.id),
    run: (job, _, hooks) => {
      const { promise, resolve, reject } = Promise.withResolvers<AttemptResult>();
      hooks.signal.addEventListener('abort', () => reject(hooks.signal.reason), { once: true });
      attempts.push({
        job,
        succeed: () => resolve({ sourceDigest: D1, targetDigest: D2, targetTag: job.targetTag, isUnchanged: false, ...MEASURES }),
        fail: reject,
        saw: hooks.onSource,
        progress: (readBytes) => hooks.onProgress({ ...job.progress, readBytes }),
      });
      return promise;
    },
  });
}

beforeEach(() => {
  database = openDatabase(':memory:');
  attempts = [];
  told = [];
  queue = open();
  queue.start();
});
afterEach(async () => {
  await queue.stop();
  database[Symbol.dispose]();
});

const add = (tag: string, digest?: Digest) =>
  queue.add({
    repository: { host: 'r.example', repository: 'a' },
    tag,
    request,
    trigger: 'manual',
    ...(digest === undefined ? {} : { digest }),
  });
const attempt = async (n: number): Promise<FakeAttempt> => {
  await until(() => attempts.length >= n, `attempt ${n}`);
  return attempts[n - 1]!;
};
const stateOf = (id: number) => queue.get(id).state;

test('the table of moves: every state is reachable, ends have no way out, other moves are a broken invariant', () => {
  expect(JOB_STATES.filter(isEnded)).toEqual(['SUCCESS', 'FAILED']);
  for (const from of JOB_STATES) {
    for (const to of JOB_STATES) {
      if (JOB_MOVES[from].includes(to)) assertMove(from, to);
      else expect(() => assertMove(from, to)).toThrowError(/a job moves from/);
    }
  }
});

test('jobs run in order, as many as configured, and are told of once', async () => {
  const [one, two] = [add('1'), add('2')];
  (await attempt(1)).succeed();
  await until(() => stateOf(one.id) === 'SUCCESS', 'the first');
  expect(queue.get(one.id).measures).toEqual(MEASURES);
  expect(queue.get(one.id)).toMatchObject({ sourceDigest: D1, targetDigest: D2, attempts: 1, failure: null });
  (await attempt(2)).succeed();
  await until(() => stateOf(two.id) === 'SUCCESS', 'the second');
  expect(told).toEqual([one.id, two.id]);
});

test('a registry that is away, or a process that dies, is tried again, but not for ever', async () => {
  const { id } = add('1');
  for (let n = 1; n <= MAX_ATTEMPTS; n += 1) {
    (await attempt(n)).fail(new AppError('Unavailable', { op: 'convert', subject: 'x', what: 'its process ended (SIGKILL)' }));
    if (n < MAX_ATTEMPTS) await until(() => stateOf(id) === 'PENDING' || attempts.length > n, 'the next attempt');
    // Wakes the queue, whose timer would wait for real seconds.
    if (n < MAX_ATTEMPTS) add(`poke${n}`);
    if (n < MAX_ATTEMPTS) await queue.cancel(queue.list({ limit: 1 })[0]!.id);
  }
  await until(() => stateOf(id) === 'FAILED', 'the end');
  expect(queue.get(id)).toMatchObject({
    attempts: MAX_ATTEMPTS,
    failure: { code: 'Unavailable', message: expect.stringMatching(/SIGKILL.*attempt 4, the last/) },
  });
  expect(told).toEqual([]);
});

test('other failures end the job with their reason', async () => {
  const { id } = add('1');
  (await attempt(1)).fail(new AppError('DataLoss', { op: 'convert', subject: 'layer', what: 'entry x at 512: cut' }));
  await until(() => stateOf(id) === 'FAILED', 'the end');
  expect(queue.get(id).failure).toEqual({ code: 'DataLoss', message: 'convert layer: entry x at 512: cut' });
});

test('a registry that answered too late is tried again; a job that used up its own time is not', async () => {
  const { id } = add('1');
  (await attempt(1)).fail(new AppError('DeadlineExceeded', { op: 'finish upload', subject: 'blob', what: 'not done in 300000 ms' }));
  const late = { op: 'convert', subject: 'r/a:1', what: 'not done within 5 s', details: { isOwnLimit: true } };
  const second = await attempt(2);
  expect(second.job.id).toBe(id);
  second.fail(new AppError('DeadlineExceeded', late));
  await until(() => stateOf(id) === 'FAILED', 'the end', 30_000);
});

test('the same request is one job; a push of another digest takes its place; a tag that moved meanwhile is converted anew', async () => {
  const first = add('1', D1);
  await attempt(1);
  expect(add('1', D1).id).toBe(first.id);
  expect(add('1').id).toBe(first.id);
  const second = add('1', D2);
  expect(second.id).not.toBe(first.id);
  expect(queue.get(first.id)).toMatchObject({
    state: 'FAILED',
    failure: { code: 'Canceled', message: expect.stringMatching(/newer request/) },
  });
  const running = await attempt(2);
  expect(running.job.sourceDigest).toBe(D2);
  running.fail(new AppError('Conflict', { op: 'convert', subject: '1', what: 'the tag was moved', details: { movedTo: D1 } }));
  const third = await attempt(3);
  expect(third.job).toMatchObject({ tag: '1', sourceDigest: null });
  expect(queue.get(second.id)).toMatchObject({ state: 'FAILED', failure: { code: 'Conflict' } });
});

test('two kinds of one image are made one after the other, whatever the concurrency; other images go on beside', async () => {
  await queue.stop();
  queue = open(2);
  queue.start();
  const full = add('1');
  const index = queue.add({
    repository: full.repository,
    tag: '1',
    request: convertRequestSchema.parse({ mode: 'index-only' }),
    trigger: 'manual',
  });
  const other = add('2');
  await attempt(2);
  expect(attempts.map(({ job }) => job.id)).toEqual([full.id, other.id]);
  expect(stateOf(index.id)).toBe('PENDING');
  attempts[0]!.succeed();
  expect((await attempt(3)).job.id).toBe(index.id);
});

test('a conflict of another kind, such as a tag that the registry never replaces, ends the job and starts no other', async () => {
  const { id } = add('1', D1);
  (await attempt(1)).fail(new AppError('Conflict', { op: 'push manifest', subject: '1_accelerated', what: 'answered 409' }));
  await until(() => stateOf(id) === 'FAILED', 'the end');
  expect(queue.list({ limit: 10 }).map((job) => job.id)).toEqual([id]);
});

test('what was building when the control plane died goes on at the next start, tied to the digest it had seen', async () => {
  const { id } = add('1');
  const first = await attempt(1);
  first.saw(D1);
  // As kill -9 leaves it: the row says BUILDING, and nobody works on it.
  queue = open();
  expect(stateOf(id)).toBe('BUILDING');
  queue.start();
  // Wakes the queue, whose timer would wait for a real second.
  add('poke');
  expect((await attempt(2)).job).toMatchObject({ id, attempts: 2, sourceDigest: D1 });
});

test('a database that cannot be written for a while ends no process of ours; the job goes on when it can', async () => {
  const { id } = add('1');
  const first = await attempt(1);
  const update = vi.spyOn(ConvertJobStore.prototype, 'update').mockImplementation(() => {
    throw new Error('SQLITE_FULL');
  });
  try {
    // As an event of the process, which nobody would catch.
    first.progress(5);
    await until(() => update.mock.calls.length >= 2, 'the end that cannot be written', 30_000);
    // Wakes the queue, which finds the disk still full.
    add('2');
    await until(() => update.mock.calls.length >= 3, 'another try', 30_000);
    expect(stateOf(id)).toBe('BUILDING');
  } finally {
    update.mockRestore();
  }
  add('3');
  expect((await attempt(2)).job).toMatchObject({ id, attempts: 2 });
});

test('watchers see the job now and at each change until its end; too many waiting jobs are refused', async () => {
  const { id } = add('1');
  const running = await attempt(1);
  const seen: [string, number][] = [];
  const watched = (async () => {
    for await (const job of queue.watch(id, new AbortController().signal)) seen.push([job.state, job.progress.readBytes]);
  })();
  await until(() => seen.length === 1, 'the first state');
  running.progress(5);
  await until(() => seen.length === 2, 'progress');
  running.succeed();
  await watched;
  expect(seen[0]).toEqual(['BUILDING', 0]);
  expect(seen[1]).toEqual(['BUILDING', 5]);
  expect(seen.at(-1)?.[0]).toBe('SUCCESS');
  expect(() => queue.get(99)).toThrowError(/no such conversion/);

  const busy = add('busy', D1);
  await attempt(2);
  database.transaction(() => {
    for (let n = 0; n < MAX_PENDING_JOBS; n += 1) add(`t${n}`, D1);
    expect(() => add('more')).toThrowError(/wait already/);
    // What runs is not given up for what cannot be taken; what waits makes room.
    expect(() => add('busy', D2)).toThrowError(/wait already/);
    expect(stateOf(busy.id)).toBe('BUILDING');
    expect(add('t0', D2).sourceDigest).toBe(D2);
  });
});
