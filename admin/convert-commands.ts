/**
 * Conversion from a shell: `convert`, `job`, `rule`, `notify`, `image`. On a terminal a job shows a bar, elsewhere one line of JSON a change. What
 * goes to an OCI layout is converted by this process itself, without the service.
 */
import type { Command } from 'commander';
import { Option } from 'commander';
import type { Config } from '../plugin/base/config/config.ts';
import { AppError } from '../plugin/base/errors.ts';
import type { LocalSource } from '../plugin/convert/service.ts';
import { repeated } from './arguments.ts';
import type { AdminMethod } from './client.ts';
import { REMOVE_DEADLINE_MS } from './convert-limits.ts';
import {
  renderDeliveries,
  renderJob,
  renderJobs,
  renderLog,
  renderNotifications,
  renderProgress,
  renderRemoved,
  renderRules,
} from './convert-render.ts';
import type { DeliveryView, JobView, LogLineView, NotificationView, RemovedImageView, RuleView } from './convert-schemas.ts';
import { follow, ProgressLine, untilInterrupted } from './follow.ts';
import { printable, printRemoved } from './render.ts';

export interface ConvertCommandTools {
  call<T>(method: AdminMethod, path: string, body?: unknown, timeoutMs?: number): Promise<T>;
  print(answer: unknown, text: () => string): void;
  watch(path: string): AsyncIterable<string>;
  config(): Config;
  isJson(): boolean;
  /** Makes the exit code that of a refusal. */
  fail(): void;
}

interface RequestFlags {
  mode: string;
  unindexable: string;
  runtime: string;
  platform?: string[];
  compression: string;
  blockKib: string;
}

interface ConvertFlags extends RequestFlags {
  output: string;
  name?: string;
  detach?: boolean;
}

interface FilterFlags {
  tags?: string;
  expression?: string;
}

/** Log lines of one answer. */
const LOG_PAGE = 1000;

const requestFlags = (command: Command): Command =>
  command
    .addOption(new Option('--mode <mode>', 'what is made').choices(['full', 'index-only']).default('full'))
    .addOption(
      new Option(
        '--unindexable <what>',
        'in index-only mode, layers that cannot be read at random (zstd): made in full, or a reason to fail',
      )
        .choices(['convert', 'refuse'])
        .default('convert'),
    )
    .addOption(
      new Option('--runtime <runtime>', 'what shall run it; decides the tag')
        .choices(['containerd', 'docker-and-containerd'])
        .default('containerd'),
    )
    .option('--platform <os/arch>', 'an image of an index that is converted (default: all); repeat for several', repeated)
    .addOption(new Option('--compression <name>', 'of the layers').choices(['zstd', 'lz4']).default('zstd'))
    .addOption(new Option('--block-kib <n>', 'KiB of a compressed block').choices(['4', '8', '16', '32', '64']).default('64'));

const requestOf = ({ mode, unindexable, runtime, platform, compression, blockKib }: RequestFlags) => ({
  ...{ mode, unindexable, runtime, compression, blockKib: Number(blockKib) },
  ...(platform === undefined ? {} : { platforms: platform }),
});

function filterOf({ tags, expression }: FilterFlags): object {
  if (tags !== undefined) return { filter: { type: 'TAG_LIST', tags: tags.split(',') } };
  return expression === undefined ? {} : { filter: { type: 'TAG_REG_EXP', expression } };
}

const idOf = (text: string): string => encodeURIComponent(text);

/** Adds the commands to the program. */
export function addConvertCommands(program: Command, tools: ConvertCommandTools): void {
  const convert = program
    .command('convert')
    .description('converts an image; without --output the service does it and pushes the result beside the original')
    .argument('<image>', 'reference with a tag, oci-layout:DIRECTORY or docker-archive:FILE (of docker save)')
    .option('--output <where>', 'registry, or oci-layout:DIRECTORY', 'registry')
    .option('--name <name>', 'which image of a layout or archive')
    .option('--detach', 'do not wait for the end');
  requestFlags(convert).action((image: string, flags: ConvertFlags) => runConvert(image, flags, tools));
  addJobCommands(program, tools);
  addRuleCommands(program, tools);
  addNotifyCommands(program, tools);
  addImageCommands(program, tools);
}

async function runConvert(image: string, flags: ConvertFlags, tools: ConvertCommandTools): Promise<void> {
  const usage = (what: string): AppError => new AppError('InvalidArgument', { op: 'convert', subject: image, what });
  const isLocal = /^(?:oci-layout|docker-archive):/.test(image);
  if (flags.output !== 'registry') {
    if (!flags.output.startsWith('oci-layout:')) throw usage('--output is registry or oci-layout:DIRECTORY');
    return convertHere(image, flags, tools);
  }
  if (isLocal) throw usage('what lies on disk is converted to --output oci-layout:DIRECTORY');
  const job = await tools.call<JobView>('POST', '/v1/convert', { reference: image, ...requestOf(flags) });
  if (flags.detach === true) tools.print(job, () => renderJob(job));
  else {
    const goesOn = `the conversion goes on as job ${job.id}; \`obdctl job show ${job.id}\` shows it, \`obdctl job cancel ${job.id}\` ends it`;
    await untilInterrupted(goesOn, () => showJob(job, tools));
  }
}

/** Shows a job until it has ended; a failed one makes the command fail. */
async function showJob(job: JobView, tools: ConvertCommandTools): Promise<void> {
  const line = new ProgressLine(tools.isJson());
  const show = showing(line, tools);
  const path = `/v1/convert/jobs/${job.id}`;
  let last = job;
  for await (const data of follow({ check: () => tools.call('GET', path), watch: () => tools.watch(`${path}/events`) })) {
    last = JSON.parse(data) as JobView;
    show(renderProgress(last.state, last.progress), last);
    if (last.state === 'FAILED' || last.state === 'SUCCESS') break;
  }
  line.end();
  if (last.state === 'FAILED') {
    process.stderr.write(`obdctl: ${printable(last.failure?.message ?? 'the conversion failed')}\n`);
    tools.fail();
  } else if (!tools.isJson()) {
    process.stdout.write(`${last.repository}:${last.targetTag}@${last.targetDigest ?? ''}\n`);
  }
}

/** For programs the object is a line of JSON; people see a line that is written over. */
function showing(line: ProgressLine, tools: ConvertCommandTools): (text: string, json: object) => void {
  if (tools.isJson()) return (_, json) => void process.stdout.write(`${JSON.stringify(json)}\n`);
  return (text) => line.show(text);
}

function sourceOf(image: string, { name }: ConvertFlags, tools: ConvertCommandTools): LocalSource {
  const colon = image.indexOf(':');
  const [kind, place] = [image.slice(0, colon), image.slice(colon + 1)];
  const named = name === undefined ? {} : { name };
  if (kind === 'oci-layout') return { kind, directory: place, ...named };
  if (kind === 'docker-archive') return { kind, file: place, ...named };
  const { hostsDir, plainHttp, dockerConfig, responseTimeoutMs, stallTimeoutMs } = tools.config().registry;
  const access = { hostsDir, plainHttp, responseTimeoutMs, stallTimeoutMs, ...(dockerConfig === undefined ? {} : { dockerConfig }) };
  return { kind: 'registry', reference: image, access };
}

/** Ctrl-C and SIGTERM end it and leave nothing. */
async function convertHere(image: string, flags: ConvertFlags, tools: ConvertCommandTools): Promise<void> {
  const { convertRequestSchema, convertToLayout } = await import('../plugin/convert/service.ts');
  const request = convertRequestSchema.safeParse(requestOf(flags));
  if (!request.success)
    throw new AppError('InvalidArgument', { op: 'convert', subject: image, what: request.error.issues[0]?.message ?? '' });
  const stop = new AbortController();
  const onSignal = (signal: string): void =>
    stop.abort(new AppError('Canceled', { op: 'convert', subject: image, what: `ended by ${signal}` }));
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, onSignal);
  const line = new ProgressLine(tools.isJson());
  const show = showing(line, tools);
  let shownMs = 0;
  try {
    const result = await convertToLayout({
      source: sourceOf(image, flags, tools),
      outputDirectory: flags.output.slice('oci-layout:'.length),
      request: request.data,
      threads: tools.config().convert.cpus,
      signal: stop.signal,
      onProgress: (progress) => {
        if (performance.now() - shownMs < PROGRESS_MS) return;
        shownMs = performance.now();
        show(renderProgress('BUILDING', { ...progress }), { state: 'BUILDING', progress });
      },
    });
    line.end();
    for (const warning of result.warnings) process.stderr.write(`obdctl: ${printable(warning)}\n`);
    process.stdout.write(
      tools.isJson() ? `${JSON.stringify({ state: 'SUCCESS', ...result })}\n` : `${printable(result.name)} ${result.digest}\n`,
    );
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM']) process.off(signal, onSignal);
  }
}

const PROGRESS_MS = 200;

function addJobCommands(program: Command, { call, print }: ConvertCommandTools): void {
  const job = program.command('job').description('conversions');
  job
    .command('list')
    .alias('ls')
    .description('newest first')
    .addOption(new Option('--state <state>', 'only these').choices(['PENDING', 'BUILDING', 'SUCCESS', 'FAILED']))
    .action(async ({ state }: { state?: string }) => {
      const answer = await call<{ jobs: JobView[] }>('GET', `/v1/convert/jobs${state === undefined ? '' : `?state=${state}`}`);
      print(answer, () => renderJobs(answer.jobs));
    });
  job
    .command('show')
    .description('one conversion with its progress and cost')
    .argument('<id>', 'of `obdctl job list`')
    .action(async (id: string) => {
      const shown = await call<JobView>('GET', `/v1/convert/jobs/${idOf(id)}`);
      print(shown, () => renderJob(shown));
    });
  job
    .command('log')
    .description('what a conversion did, line by line')
    .argument('<id>')
    .action(async (id: string) => {
      const lines: LogLineView[] = [];
      for (let after: number | null = 0; after !== null; ) {
        const page: { lines: LogLineView[]; next: number | null } = await call(
          'GET',
          `/v1/convert/jobs/${idOf(id)}/log?after=${after}&limit=${LOG_PAGE}`,
        );
        lines.push(...page.lines);
        after = page.next;
      }
      print({ lines }, () => renderLog(lines));
    });
  job
    .command('cancel')
    .description('ends a conversion; what is uploaded already is used by the next one')
    .argument('<id>')
    .action(async (id: string) => {
      const canceled = await call<JobView>('POST', `/v1/convert/jobs/${idOf(id)}/cancel`);
      print(canceled, () => renderJob(canceled));
    });
}

function addRuleCommands(program: Command, { call, print }: ConvertCommandTools): void {
  const rule = program.command('rule').description('repositories whose pushes are converted');
  const shown = (made: RuleView): void => print(made, () => renderRules([made]));
  rule
    .command('list')
    .alias('ls')
    .description('all rules')
    .action(async () => {
      const answer = await call<{ rules: RuleView[] }>('GET', '/v1/convert/rules');
      print(answer, () => renderRules(answer.rules));
    });
  const add = rule
    .command('add')
    .description('converts what is pushed from now on')
    .argument('<repository>', 'registry/repository')
    .option('--tags <a,b>', 'only these tags, at most ten')
    .option('--expression <expression>', 'only tags that match')
    .addOption(new Option('--detection <how>', 'how pushes are noticed').choices(['webhook', 'poll']));
  requestFlags(add).action(async (repository: string, flags: RequestFlags & FilterFlags & { detection?: string }) => {
    const detection = flags.detection === undefined ? {} : { detection: flags.detection };
    shown(await call<RuleView>('POST', '/v1/convert/rules', { repository, request: requestOf(flags), ...filterOf(flags), ...detection }));
  });
  for (const [name, isEnabled] of [
    ['on', true],
    ['off', false],
  ] as const) {
    rule
      .command(name)
      .description(isEnabled ? 'converts what is pushed from now on' : 'converts nothing until it is on again')
      .argument('<id>')
      .action(async (id: string) => shown(await call<RuleView>('PATCH', `/v1/convert/rules/${idOf(id)}`, { isEnabled })));
  }
  rule
    .command('remove')
    .alias('rm')
    .description('removes a rule; conversions that are queued go on')
    .argument('<id>', 'of `obdctl rule list`')
    .action(async (id: string) => {
      await call('DELETE', `/v1/convert/rules/${idOf(id)}`);
      printRemoved(print, [id]);
    });
}

function addNotifyCommands(program: Command, { call, print }: ConvertCommandTools): void {
  const notify = program.command('notify').description('who is told of finished conversions');
  notify
    .command('list')
    .alias('ls')
    .description('all receivers')
    .action(async () => {
      const answer = await call<{ notifications: NotificationView[] }>('GET', '/v1/convert/notifications');
      print(answer, () => renderNotifications(answer.notifications));
    });
  notify
    .command('add')
    .description('sends a POST for each finished conversion')
    .argument('<name>')
    .argument('<url>', 'http or https; receives a POST')
    .option('--tags <a,b>', 'only these result tags, at most ten')
    .option('--expression <expression>', 'only result tags that match (default: _accelerated$)')
    .option('--within <place>', 'registry, registry/namespace or registry/repository')
    .option('--secret-file <file>', 'key of the signature, mode 600')
    .action(async (name: string, url: string, flags: FilterFlags & { within?: string; secretFile?: string }) => {
      const { within: repository, secretFile } = flags;
      const made = await call<NotificationView>('POST', '/v1/convert/notifications', {
        name,
        url,
        repository,
        secretFile,
        ...filterOf(flags),
      });
      print(made, () => renderNotifications([made]));
    });
  notify
    .command('remove')
    .alias('rm')
    .description('removes a receiver with its history')
    .argument('<id>', 'of `obdctl notify list`')
    .action(async (id: string) => {
      await call('DELETE', `/v1/convert/notifications/${idOf(id)}`);
      printRemoved(print, [id]);
    });
  notify
    .command('history')
    .description('what was sent and what waits, newest first')
    .action(async () => {
      const answer = await call<{ deliveries: DeliveryView[] }>('GET', '/v1/convert/deliveries');
      print(answer, () => renderDeliveries(answer.deliveries));
    });
}

function addImageCommands(program: Command, { call, print }: ConvertCommandTools): void {
  program
    .command('image')
    .description('images in their registry')
    .command('rm')
    .description('deletes an image, converted or original; refused while something on this node needs it')
    .argument('<image>', 'by tag: the image, or the tag alone when others name the same; by digest: the image with all its tags')
    .action(async (image: string) => {
      const path = `/v1/images?reference=${encodeURIComponent(image)}`;
      const removed = await call<RemovedImageView>('DELETE', path, undefined, REMOVE_DEADLINE_MS + 1000);
      print(removed, () => renderRemoved(removed));
    });
}
