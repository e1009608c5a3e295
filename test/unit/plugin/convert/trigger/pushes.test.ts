/** What is noticed as a push: nothing is lost while the queue is full, and what was there before is never taken for one. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ConvertJobStore } from '../../../../../db/convert-job-store.ts';
import { ConvertRuleStore } from '../../../../../db/convert-rule-store.ts';
import { type Database, openDatabase } from '../../../../../db/database.ts';
import { EventStore } from '../../../../../db/event-store.ts';
import { systemClock } from '../../../../../plugin/base/clock.ts';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { silentLogger } from '../../../../../plugin/base/log.ts';
import { JobQueue, MAX_PENDING_JOBS } from '../../../../../plugin/convert/jobs/job-queue.ts';
import { NO_PROGRESS } from '../../../../../plugin/convert/publish/progress.ts';
import { newRuleSchema } from '../../../../../plugin/convert/rules/rule.ts';
import { RuleBook } from '../../../../../plugin/convert/rules/rule-book.ts';
import { Poller } from '../../../../../plugin/convert/trigger/poller.ts';
import { onPush } from '../../../../../plugin/convert/trigger/push.ts';
import { WEBHOOK_PATH, WebhookServer } from '../../../../../plugin/convert/trigger/webhook-server.ts';
import { encodeManifest } from '../../../../../plugin/image/oci/manifest.ts';
import { MEDIA_TYPE } from '../../../../../plugin/image/oci/media-types.ts';
import { type FaultRegistry, startFaultRegistry } from '../../../../support/fault-registry.ts';
import { testClient, until } from '../../../../support/registry-client.ts';

const WAIT_MS = 30_000;
const SECRET = 'a secret of some length'.replaceAll(' ', '-');
const index = (note: string): Uint8Array =>
  encodeManifest({ kind: 'index', mediaType: MEDIA_TYPE.ociIndex, manifests: [], annotations: { note } });

let stack: AsyncDisposableStack;
let database: Database;
let queue: JobQueue;
let jobs: ConvertJobStore;
let events: EventStore;
let book: RuleBook;

beforeEach(() => {
  stack = new AsyncDisposableStack();
  database = stack.use(openDatabase(':memory:'));
  jobs = new ConvertJobStore(database);
  events = new EventStore(database);
  const options = { store: jobs, database, clock: systemClock, logger: silentLogger, concurrency: 0 };
  queue = new JobQueue({ ...options, run: () => Promise.reject(new Error('nothing runs here')), onSuccess: () => {} });
  stack.defer(() => queue.stop());
  book = new RuleBook({ store: new ConvertRuleStore(database), database, clock: systemClock, hasWebhook: true });
});
afterEach(() => stack.disposeAsync());

const parts = () => ({ queue, jobs, events, clock: systemClock });
const makeRule = (repository: string, detection: 'webhook' | 'poll') => book.add(newRuleSchema.parse({ repository, detection }));
const jobsOf = (tag: string) => queue.list({ limit: MAX_PENDING_JOBS + 1 }).filter((job) => job.tag === tag);

/** A repository with one tag, and a poller that has seen it. */
async function afterFirstLook(): Promise<{ registry: FaultRegistry; poller: Poller }> {
  const registry = stack.use(await startFaultRegistry());
  const client = stack.use(testClient());
  registry.addManifest('team/app', index('one'), MEDIA_TYPE.ociIndex, '1');
  const rule = makeRule(`${registry.host}/team/app`, 'poll');
  const base = { rules: book, store: new ConvertRuleStore(database), client, clock: systemClock, logger: silentLogger };
  const poller = stack.use(new Poller({ ...base, intervalMs: 3_600_000, onPush: (of, push) => onPush(of, push, 'poll', parts()) }));
  poller.poke();
  await until(() => book.get(rule.id).hasBaseline, 'the first look', WAIT_MS);
  return { registry, poller };
}

function fillQueue(): number[] {
  const { request } = newRuleSchema.parse({ repository: 'r.example/a' });
  const row = { host: 'r.example', repository: 'filler', targetTag: 't', sourceDigest: null, request: JSON.stringify(request) };
  const waiting = { triggerKind: 'manual', state: 'PENDING', progress: JSON.stringify(NO_PROGRESS), createdUs: 0 } as const;
  return database.transaction(() => Array.from({ length: MAX_PENDING_JOBS }, (_, n) => jobs.insert({ ...row, ...waiting, tag: `t${n}` })));
}

test('a push that polling noticed is brought again at the next look', async () => {
  const { registry, poller } = await afterFirstLook();
  const [first] = fillQueue();
  registry.addManifest('team/app', index('two'), MEDIA_TYPE.ociIndex, '2');
  const refusals = () => events.list(100).filter((event) => /wait already/.test(event.message)).length;
  poller.poke();
  await until(() => refusals() > 0, 'the refusal', WAIT_MS);
  await queue.cancel(first!);
  poller.poke();
  await until(() => jobsOf('2').length === 1, 'the job', WAIT_MS);
  expect(jobsOf('1')).toEqual([]);
});

test('a repository that is said not to be there for a while does not make pushes of its old tags', async () => {
  const { registry, poller } = await afterFirstLook();
  registry.inject({ path: /tags\/list/, effect: { kind: 'status', status: 404 } });
  poller.poke();
  await until(() => registry.log.some((entry) => entry.status === 404), 'the look that finds nothing', WAIT_MS);
  registry.addManifest('team/app', index('two'), MEDIA_TYPE.ociIndex, '2');
  poller.poke();
  await until(() => jobsOf('2').length === 1, 'the job of the push', WAIT_MS);
  expect(jobsOf('1')).toEqual([]);
});

test('a notification that finds the queue full is refused, so that the registry repeats it; nonsense is not an internal failure', async () => {
  const rule = makeRule('r.example/team/app', 'webhook');
  const server = stack.use(
    await WebhookServer.start({
      address: '127.0.0.1:0',
      secret: SECRET,
      logger: silentLogger,
      onPush: (event) => onPush(rule, event, 'webhook', parts()),
    }),
  );
  const [first] = fillQueue();
  const target = { repository: 'team/app', tag: '1', digest: sha256('x') };
  const notify = async (path = WEBHOOK_PATH): Promise<number> => {
    const body = JSON.stringify({ events: [{ action: 'push', target }] });
    const headers = { authorization: `Bearer ${SECRET}` };
    return (await fetch(`http://127.0.0.1:${server.port}${path}`, { method: 'POST', headers, body })).status;
  };
  expect(await notify()).toBe(507);
  await queue.cancel(first!);
  expect(await notify()).toBe(204);
  expect(jobsOf('1')).toHaveLength(1);
  expect(await notify('//')).toBe(404);
});
