/** Pushes to the real docker-registry become conversions: by its own webhook notifications, and by polling where there are none. */
import { randomBytes } from 'node:crypto';
import { chmod } from 'node:fs/promises';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { signatureOf } from '../../../../plugin/convert/notify/notifier.ts';
import { type ConvertJob, convertRequestSchema, newRuleSchema } from '../../../../plugin/convert/service.ts';
import { ConvertBench, WEBHOOK_SECRET } from '../../../support/convert-bench.ts';
import { DockerRegistry } from '../../../support/docker-registry.ts';
import { HookReceiver } from '../../../support/hook-receiver.ts';
import { freePort } from '../../../support/net.ts';
import { buildImage, type Image, layerOfEntries, pushImage } from '../../../support/oci-image.ts';
import { Scratch } from '../../../support/scratch.ts';
import { waitFor } from '../../../support/wait.ts';

let registry: DockerRegistry;
let bench: ConvertBench;
let receiver: HookReceiver;
let scratch: Scratch;

beforeAll(async () => {
  scratch = await Scratch.create('triggers');
  const port = await freePort();
  const headers = { Authorization: [`Bearer ${WEBHOOK_SECRET}`] };
  const url = `http://127.0.0.1:${port}/v1/registry-events`;
  registry = await DockerRegistry.start({
    notifications: [
      { name: 'sidecar', url, headers },
      { name: 'stranger', url, headers: { Authorization: ['Bearer guessed'] } },
    ],
  });
  bench = await ConvertBench.start({
    webhook: { address: `127.0.0.1:${port}`, secretFile: await ConvertBench.secretFile(scratch) },
    notificationRetryMs: [50, 100],
  });
  receiver = await HookReceiver.start();
});
afterAll(async () => {
  await bench?.[Symbol.asyncDispose]();
  await receiver?.[Symbol.asyncDispose]();
  await registry?.[Symbol.asyncDispose]();
  await scratch?.[Symbol.asyncDispose]();
});

async function imageOf(name: string): Promise<Image> {
  return buildImage([await layerOfEntries([{ name, content: randomBytes(2000) }], { gzip: true })]);
}

const jobsOf = (repository: string): ConvertJob[] =>
  bench.service.jobs({ limit: 1000 }).filter((job) => job.repository.repository === repository);

function firstJob(repository: string, tag: string, digest?: string): Promise<ConvertJob> {
  return waitFor(() => jobsOf(repository).find((job) => job.tag === tag && (digest === undefined || job.sourceDigest === digest)), {
    what: `a job for ${repository}:${tag}`,
    details: () => JSON.stringify([bench.events('convert-untriggered'), jobsOf(repository)], undefined, 1),
  });
}

const untriggered = (subject: string, reason: RegExp) =>
  waitFor(() => bench.events('convert-untriggered').some((event) => event.subject.endsWith(subject) && reason.test(event.message)), {
    what: `an event about ${subject}`,
    details: () => JSON.stringify(bench.events('convert-untriggered'), undefined, 1),
  });

async function tagDigest(repository: string, tag: string): Promise<string | null> {
  const accept = 'application/vnd.oci.image.manifest.v1+json';
  return (await fetch(`${registry.url}/v2/${repository}/manifests/${tag}`, { headers: { accept } })).headers.get('docker-content-digest');
}

/** Repositories of another try of a test are others. */
let tries = 0;

describe.each(['webhook', 'poll'] as const)('by %s', (detection) => {
  let repository: string;
  const ruleOf = (filter: object) => newRuleSchema.parse({ repository: `${registry.host}/${repository}`, filter, detection });

  test('what is pushed from now on is converted, what was there before is not; a moved tag is converted again; results never are', async () => {
    for (const { id } of bench.service.rules()) bench.service.removeRule(id);
    repository = `trigger/${detection}-${++tries}`;
    await pushImage(registry, repository, 'v-before', await imageOf('before'));
    const rule = bench.service.addRule(ruleOf({ type: 'TAG_REG_EXP', expression: '^v' }));
    expect(rule).toMatchObject({ detection, isEnabled: true });
    if (detection === 'poll') await waitFor(() => bench.service.rule(rule.id).hasBaseline, { what: 'the first look' });

    const first = await pushImage(registry, repository, 'v1', await imageOf('first'));
    const job = await firstJob(repository, 'v1');
    expect(job).toMatchObject({ trigger: detection, sourceDigest: first.manifest.digest });
    const done = await bench.succeeded(job.id);
    expect(await tagDigest(repository, 'v1_containerd_accelerated')).toBe(done.targetDigest);

    const second = await pushImage(registry, repository, 'v1', await imageOf('second'));
    const again = await bench.succeeded((await firstJob(repository, 'v1', second.manifest.digest)).id);
    expect(again.id).toBeGreaterThan(job.id);
    expect(await tagDigest(repository, 'v1_containerd_accelerated')).toBe(again.targetDigest);
    // The former result stays for those who run it.
    expect(await tagDigest(repository, done.targetDigest!)).toBe(done.targetDigest);

    await pushImage(registry, repository, 'other', await imageOf('other'));
    if (detection === 'webhook') {
      await untriggered(`${repository}:other`, /filter of rule/);
      await untriggered(`${repository}:v1_containerd_accelerated`, /result of conversion/);
    }
    // A push that comes later has been noticed: so has everything before it.
    const last = await pushImage(registry, repository, 'v-last', await imageOf('last'));
    await bench.succeeded((await firstJob(repository, 'v-last', last.manifest.digest)).id);
    expect(
      jobsOf(repository)
        .map((j) => j.tag)
        .sort(),
    ).toEqual(['v-last', 'v1', 'v1']);
  });

  test('a rule that is off converts nothing, and nothing of that time when it is on again', async () => {
    const rule =
      bench.service.rules().find((r) => r.detection === detection) ??
      bench.service.addRule(ruleOf({ type: 'TAG_REG_EXP', expression: '^v' }));
    bench.service.changeRule(rule.id, { isEnabled: false });
    const { length } = jobsOf(repository);
    await pushImage(registry, repository, 'v-off', await imageOf('off'));
    if (detection === 'webhook') await untriggered(`${repository}:v-off`, /is off/);
    bench.service.changeRule(rule.id, { isEnabled: true });
    if (detection === 'poll') await waitFor(() => bench.service.rule(rule.id).hasBaseline, { what: 'the first look' });
    const on = await pushImage(registry, repository, 'v-on', await imageOf('on'));
    await bench.succeeded((await firstJob(repository, 'v-on', on.manifest.digest)).id);
    expect(jobsOf(repository)).toHaveLength(length + 1);
    bench.service.removeRule(rule.id);
  });
});

test('polling takes the first push to a repository that did not exist for a push', async () => {
  const repository = `trigger/new-${++tries}`;
  const rule = bench.service.addRule(newRuleSchema.parse({ repository: `${registry.host}/${repository}`, detection: 'poll' }));
  await waitFor(() => bench.service.rule(rule.id).hasBaseline, { what: 'the first look' });
  await pushImage(registry, repository, '1', await imageOf('new'));
  await bench.succeeded((await firstJob(repository, '1')).id);
  bench.service.removeRule(rule.id);
});

test('the webhook takes nothing without its secret, nothing else, and nothing that is too long', async () => {
  const url = `http://127.0.0.1:${bench.service.webhookPort}/v1/registry-events`;
  const authorization = `Bearer ${WEBHOOK_SECRET}`;
  const post = async (headers: Record<string, string>, body: string, to = url): Promise<number> =>
    (await fetch(to, { method: 'POST', headers, body })).status;
  expect(await post({}, '{"events":[]}')).toBe(401);
  expect(await post({ authorization: 'Bearer x' }, '{"events":[]}')).toBe(401);
  expect(await post({ 'x-overlaybd-secret': WEBHOOK_SECRET }, '{"events":[]}')).toBe(204);
  expect(await post({ authorization }, '{"events":[]}', `${url}/more`)).toBe(404);
  expect(await post({ authorization }, 'no JSON')).toBe(400);
  expect(await post({ authorization }, '{"events":{}}')).toBe(400);
  expect(
    await post({ authorization }, JSON.stringify({ events: Array.from({ length: 1001 }, () => ({ action: 'push', target: {} })) })),
  ).toBe(400);
  expect(await post({ authorization }, ' '.repeat(3_000_000)).catch(() => 400)).toBe(400);
});

test('a registry that pushers call by another name is told by the webhook’s address', async () => {
  const repository = `trigger/alias-${++tries}`;
  bench.service.addRule(newRuleSchema.parse({ repository: `${registry.host}/${repository}` }));
  const pushed = await pushImage(registry, repository, '1', await imageOf('alias'));
  await bench.succeeded((await firstJob(repository, '1')).id);
  const event = {
    action: 'push',
    timestamp: new Date().toISOString(),
    target: { repository: repository, tag: '2', digest: pushed.manifest.digest },
    request: { host: 'registry.internal' },
  };
  const tell = (query: string) =>
    fetch(`http://127.0.0.1:${bench.service.webhookPort}/v1/registry-events${query}`, {
      method: 'POST',
      headers: { authorization: `Bearer ${WEBHOOK_SECRET}` },
      body: JSON.stringify({ events: [event] }),
    });
  await tell('');
  await untriggered(`registry.internal/${repository}:2`, /add \?registry=/);
  await pushImage(registry, repository, '2', pushed);
  await tell(`?registry=${registry.host}`);
  await bench.succeeded((await firstJob(repository, '2')).id);
});

test('receivers are told once of each finished conversion that their expression matches, signed, again until they take it', async () => {
  const secretFile = await scratch.file('key', 'the-key-of-the-signature\n');
  await chmod(secretFile, 0o600);
  for (const { id } of bench.service.notifications()) bench.service.removeNotification(id);
  receiver.received.length = 0;
  receiver.answers.length = 0;
  const base = { url: `${receiver.url}/hook` };
  const add = (more: object) =>
    bench.service.addNotification({ ...base, filter: { type: 'TAG_REG_EXP', expression: '_accelerated$' }, ...more } as never);
  const wanted = add({ name: 'wanted', secretFile });
  add({ name: 'elsewhere', repository: `${registry.host}/other` });
  add({ name: 'unmatched', filter: { type: 'TAG_LIST', tags: ['never'] } });
  expect(() => add({ name: 'wanted' })).toThrowError(/name is taken/);
  receiver.answers.push(500, 302);
  await pushImage(registry, 'trigger/notify', '1', await imageOf('notify'));
  const job = await bench.succeeded(bench.service.convert(`${registry.host}/trigger/notify:1`, convertRequestSchema.parse({})).id);
  const delivery = await waitFor(() => bench.service.deliveries({ limit: 10 }).find((d) => d.state === 'DELIVERED'), {
    what: 'the delivery',
  });
  expect(delivery).toMatchObject({ notificationId: wanted.id, attempts: 3, lastResult: 'status 200' });
  expect(receiver.received.map((r) => r.path)).toEqual(['/hook', '/hook', '/hook']);
  const { headers, body } = receiver.received.at(-1)!;
  expect(JSON.parse(body)).toMatchObject({
    type: 'BuildCompleted',
    jobId: job.id,
    reference: `${registry.host}/trigger/notify:1_containerd_accelerated`,
    digest: job.targetDigest,
    sourceDigest: job.sourceDigest,
  });
  expect(headers['x-overlaybd-signature']).toBe(signatureOf('the-key-of-the-signature', Number(headers['x-overlaybd-timestamp']), body));
  expect(headers['x-overlaybd-delivery']).toBe(String(delivery.id));

  // A failed conversion tells nobody.
  await bench.ended(bench.service.convert(`${registry.host}/trigger/notify:absent`, convertRequestSchema.parse({})).id);
  receiver.answers.push(500, 500, 500);
  await pushImage(registry, 'trigger/notify', '2', await imageOf('refused'));
  await bench.succeeded(bench.service.convert(`${registry.host}/trigger/notify:2`, convertRequestSchema.parse({})).id);
  const refused = await waitFor(() => bench.service.deliveries({ limit: 10 }).find((d) => d.state === 'FAILED'), {
    what: 'the delivery to be given up',
  });
  expect(refused).toMatchObject({ attempts: 3, lastResult: 'status 500' });
  expect(bench.service.deliveries({ limit: 10 })).toHaveLength(2);
});
