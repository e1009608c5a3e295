/** Image caches from a shell: `cache create|ls|show|update|rm|match|events`, and `usage`. */
import { type Command, Option } from 'commander';
import { AppError, isAppError } from '../plugin/base/errors.ts';
import type { CacheState } from '../plugin/cache/service.ts';
import { repeated, whole } from './arguments.ts';
import { renderCache, renderCacheEvents, renderCaches, renderChange, renderExplanation, renderUsage, stateOf } from './cache-render.ts';
import type { CacheChangeView, CacheView, ExplanationView, UsageView } from './cache-schemas.ts';
import type { AdminMethod } from './client.ts';
import { follow, ProgressLine, untilInterrupted } from './follow.ts';
import { CACHE_PAGE_MAX } from './limits.ts';
import { readSecret } from './read-secret.ts';
import { printable, printRemoved } from './render.ts';

export interface CacheCommandTools {
  call<T>(method: AdminMethod, path: string, body?: unknown, headers?: Readonly<Record<string, string>>): Promise<T>;
  print(answer: unknown, text: () => string): void;
  watch(path: string): AsyncIterable<string>;
  isJson(): boolean;
  /** Makes the exit code that of a refusal. */
  fail(): void;
}

/** Spelled out, since the cache part's own list comes with its database, which takes longer to load than a command to run. */
const STATES: Readonly<Record<CacheState, true>> = {
  ...{ Preparing: true, Creating: true, Ready: true, Failed: true, Updating: true, UpdateFailed: true },
};

/** Pages read by one command: 100 caches each, so 25,600; a service that never ends its list is broken. */
const MAX_PAGES = 256;

interface SettingFlags {
  size?: number;
  days?: number | 'never';
  lru?: boolean;
  tag?: string[];
  credential?: string[];
  plainHttp?: string[];
  insecure?: string[];
}

const days = (text: string): number | 'never' => (text === 'never' ? 'never' : whole(text));

const settingFlags = (command: Command): Command =>
  command
    .option('--size <GiB>', 'room for the images (20 to 32768)', whole)
    .option('--days <days>', 'removed after so many days; never: not by itself', days)
    .option('--lru', 'may give way when there are too many caches')
    .option('--no-lru', 'may not')
    .option('--tag <key=value>', 'a label; replaces all that there were; repeat for several', repeated)
    .option(
      '--credential <server=user>',
      'the password is asked for, or read from standard input where that is no terminal; repeatable',
      repeated,
    )
    .option('--plain-http <host>', 'a registry spoken to without TLS; repeatable', repeated)
    .option('--insecure <host>', 'a registry whose certificate is not checked; repeatable', repeated);

function splitAt(text: string, what: string): [string, string] {
  const at = text.indexOf('=');
  if (at > 0) return [text.slice(0, at), text.slice(at + 1)];
  throw new AppError('InvalidArgument', { op: 'read', subject: text, what: `is not ${what}` });
}

async function settingsOf(flags: SettingFlags): Promise<Record<string, unknown>> {
  const credentials = [];
  for (const text of flags.credential ?? []) {
    const [server, userName] = splitAt(text, 'server=user');
    credentials.push({ server, userName, password: await readSecret(`Password of ${userName} at ${server}: `) });
  }
  const settings = {
    imageCacheSize: flags.size,
    retentionDays: flags.days === 'never' ? null : flags.days,
    eliminationStrategy: flags.lru === undefined ? undefined : flags.lru ? 'LRU' : null,
    tags: flags.tag?.map((text) => {
      const [key, value] = text.includes('=') ? splitAt(text, 'key=value') : [text, ''];
      return { key, value };
    }),
    imageRegistryCredentials: credentials.length === 0 ? undefined : credentials,
    plainHttpRegistry: flags.plainHttp,
    insecureRegistry: flags.insecure,
  };
  return Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== undefined));
}

/** A cache by its id or, as people say it, its name. */
async function idOf(text: string, { call }: CacheCommandTools): Promise<string> {
  if (/^imc-[a-z0-9]{20}$/.test(text)) return text;
  const page = await call<{ imageCaches: CacheView[] }>('GET', `/v1/image-caches?name=${encodeURIComponent(text)}`);
  const [found] = page.imageCaches;
  if (found !== undefined) return found.imageCacheId;
  throw new AppError('NotFound', {
    op: 'find',
    subject: `image cache ${text}`,
    what: 'there is none of this name or id; `obdctl cache ls` lists them',
  });
}

/** Adds the commands to the program. */
export function addCacheCommands(program: Command, tools: CacheCommandTools): void {
  const cache = program.command('cache').description('image caches: images that are held here, so that pods start without the registry');
  addCreate(cache, tools);
  addLooks(cache, tools);
  addChanges(cache, tools);
  addMatch(cache, tools);
  program
    .command('usage')
    .description('quotas of image caches, and what of them is used')
    .action(async () => {
      const usage = await tools.call<UsageView>('GET', '/v1/usage');
      tools.print(usage, () => renderUsage(usage));
    });
}

function addCreate(cache: Command, tools: CacheCommandTools): void {
  const create = cache
    .command('create')
    .description('makes a cache')
    .argument('<name>', '2 to 128 of a-z, 0-9 and -')
    .argument('<image...>', 'references, 1 to 20')
    .option('--flash', 'usable before every byte is here')
    .option('--wait', 'until it is Ready or has failed')
    .option('--dry-run', 'checks and changes nothing');
  settingFlags(create).action(
    async (name: string, images: string[], flags: SettingFlags & { flash?: boolean; wait?: boolean; dryRun?: boolean }) => {
      const body = { imageCacheName: name, images, ...(flags.flash === true ? { flash: true } : {}), ...(await settingsOf(flags)) };
      if (flags.dryRun === true) return tryCreate(body, tools);
      const made = await tools.call<CacheView>('POST', '/v1/image-caches', body);
      if (flags.wait !== true) return tools.print(made, () => renderCache(made));
      const goesOn = `${name} goes on being made; \`obdctl cache events ${name} -f\` follows it`;
      await untilInterrupted(goesOn, () => showChanges(made.imageCacheId, tools, { untilSettled: true }));
    },
  );
}

/** The service answers a dry run that it would have accepted with a refusal of that name. */
async function tryCreate(body: object, tools: CacheCommandTools): Promise<void> {
  try {
    await tools.call('POST', '/v1/image-caches?dryRun=true', body);
  } catch (error) {
    if (!isAppError(error) || error.details.reason !== 'DryRunOperation') throw error;
    tools.print({ accepted: true }, () => 'would be accepted\n');
  }
}

function addLooks(cache: Command, tools: CacheCommandTools): void {
  cache
    .command('ls')
    .description('caches, newest first')
    .addOption(new Option('--status <status>', 'only these').choices(Object.keys(STATES)))
    .addOption(new Option('--owner <owner>', 'only these: user (made by hand) or system (automatic)').choices(['user', 'system']))
    .option('--image <reference>', 'only those that hold an image')
    .option('--tag <key=value>', 'only those with this label, or with all of several', repeated)
    .action(async ({ status, owner, image, tag }: { status?: string; owner?: string; image?: string; tag?: string[] }) => {
      const query = new URLSearchParams({ limit: String(CACHE_PAGE_MAX) });
      for (const [key, value] of Object.entries({ status, owner, image })) if (value !== undefined) query.set(key, value);
      for (const one of tag ?? []) query.append('tag', one);
      const imageCaches: CacheView[] = [];
      for (let page = 0; page < MAX_PAGES; page += 1) {
        const answer: { imageCaches: CacheView[]; next: string | null } = await tools.call('GET', `/v1/image-caches?${query}`);
        imageCaches.push(...answer.imageCaches);
        if (answer.next === null) break;
        query.set('after', answer.next);
      }
      tools.print({ imageCaches }, () => renderCaches(imageCaches));
    });
  cache
    .command('show')
    .description('one cache with its images and events')
    .argument('<cache>', 'id or name')
    .action(async (text: string) => {
      const shown = await tools.call<CacheView>('GET', `/v1/image-caches/${await idOf(text, tools)}`);
      tools.print(shown, () => renderCache(shown));
    });
  cache
    .command('events')
    .description('the 50 newest events of a cache, oldest first')
    .argument('<cache>', 'id or name')
    .option('-f, --follow', 'go on with each further one')
    .action(async (text: string, { follow: isFollowing }: { follow?: boolean }) => {
      const id = await idOf(text, tools);
      if (isFollowing === true) return showChanges(id, tools, { untilSettled: false });
      const answer = await tools.call<{ events: CacheView['events'] }>('GET', `/v1/image-caches/${id}/events`);
      tools.print(answer, () => renderCacheEvents(answer.events));
    });
}

/** Shows each event of a cache once, as it comes; until it settles, or for ever. A failed cache makes the command fail. */
async function showChanges(id: string, tools: CacheCommandTools, { untilSettled }: { untilSettled: boolean }): Promise<void> {
  const shown = new Map<string, number>();
  const line = new ProgressLine(tools.isJson());
  const followed = {
    check: () => tools.call('GET', `/v1/image-caches/${id}/events`),
    watch: () => tools.watch(`/v1/image-caches:watch?id=${id}`),
  };
  for await (const data of follow(followed)) {
    const { kind, imageCache } = JSON.parse(data) as CacheChangeView;
    const fresh = imageCache.events.filter(({ name, count }) => shown.get(name) !== count);
    for (const { name, count } of fresh) shown.set(name, count);
    line.clear();
    if (tools.isJson()) for (const event of fresh) process.stdout.write(`${JSON.stringify(event)}\n`);
    else process.stdout.write(renderChange(imageCache, fresh));
    const hasFailed = imageCache.status === 'Failed' || imageCache.status === 'UpdateFailed';
    if (kind !== 'deleted' && !hasFailed && imageCache.status !== 'Ready') line.show(stateOf(imageCache));
    if (kind === 'deleted') {
      process.stderr.write(`obdctl: ${printable(imageCache.imageCacheName)} was deleted\n`);
      if (untilSettled) tools.fail();
      return;
    }
    if (!untilSettled || !(hasFailed || imageCache.status === 'Ready')) continue;
    if (hasFailed) tools.fail();
    return;
  }
}

function addChanges(cache: Command, tools: CacheCommandTools): void {
  const update = cache
    .command('update')
    .description('changes what is given; the former content serves until new images are here')
    .argument('<cache>', 'id or name')
    .option('--name <name>', 'another name')
    .option('--image <reference>', 'another image; replaces all that there were; repeat for several', repeated)
    .option('--if-version <n>', 'only if the cache is as it was at that version', whole);
  settingFlags(update).action(async (text: string, flags: SettingFlags & { name?: string; image?: string[]; ifVersion?: number }) => {
    const { name, image, ifVersion } = flags;
    const named = { ...(name === undefined ? {} : { imageCacheName: name }), ...(image === undefined ? {} : { images: image }) };
    const patch = { ...named, ...(await settingsOf(flags)) };
    if (Object.keys(patch).length === 0) return update.error('error: nothing to change is given');
    const headers = ifVersion === undefined ? {} : { 'if-match': `"${ifVersion}"` };
    const changed = await tools.call<CacheView>('PATCH', `/v1/image-caches/${await idOf(text, tools)}`, patch, headers);
    tools.print(changed, () => renderCache(changed));
  });
  cache
    .command('rm')
    .description('removes caches; what running containers use goes with the last of them')
    .argument('<cache...>', 'ids or names')
    .action(async (texts: string[]) => {
      for (const text of texts) await tools.call('DELETE', `/v1/image-caches/${await idOf(text, tools)}`);
      printRemoved(tools.print, texts);
    });
}

function addMatch(cache: Command, tools: CacheCommandTools): void {
  cache
    .command('match')
    .description('explains which cache a pod with these images would get; changes nothing')
    .argument('<image...>', 'the images of the pod')
    .option('--ephemeral <GiB>', 'storage that the pod declares beyond its 30 GiB', whole)
    .option('--perfect', 'only caches that hold every image')
    .option('--count <n>', 'only caches that hold at least so many', whole)
    .option('--pin <id>', 'this cache and no other')
    .action(async (images: string[], flags: { ephemeral?: number; perfect?: boolean; count?: number; pin?: string }) => {
      const body = {
        images: images.map((reference) => ({ reference })),
        ...(flags.ephemeral === undefined ? {} : { extraEphemeralStorage: flags.ephemeral }),
        ...(flags.perfect === true ? { perfectMatch: true } : {}),
        ...(flags.count === undefined ? {} : { matchCountRequest: flags.count }),
        ...(flags.pin === undefined ? {} : { imageCacheId: flags.pin }),
      };
      const explained = await tools.call<ExplanationView>('POST', '/v1/image-caches:match', body);
      tools.print(explained, () => renderExplanation(explained));
    });
}
