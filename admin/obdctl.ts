#!/usr/bin/env node
/**
 * `obdctl`: the admin API from a shell.
 * Exit codes: 0 done; 1 the service refused; 2 wrong usage; 3 the service cannot be reached; 4 `status` found it degraded.
 */
import fs from 'node:fs';
import { Argument, Command, CommanderError, Option } from 'commander';
import { systemClock } from '../plugin/base/clock.ts';
import { DEFAULT_CONFIG_PATH, loadConfig } from '../plugin/base/config/config.ts';
import { AppError, describeError, errnoOf } from '../plugin/base/errors.ts';
import { formatBytes } from '../plugin/base/units.ts';
import { addAccessCommands } from './access-commands.ts';
import { sizeOf, timeOf } from './arguments.ts';
import type { AuditEntryView } from './audit-routes.ts';
import { addCacheCommands } from './cache-commands.ts';
import { type AdminMethod, callAdmin, isUnreachable, watchAdmin } from './client.ts';
import { completionScript, SHELLS, type Shell } from './completion.ts';
import { addConvertCommands } from './convert-commands.ts';
import { ProgressLine, untilInterrupted } from './follow.ts';
import { ANSWER_DEADLINE_MS, MATERIALIZE_DEADLINE_MS, PAGE_ROWS_MAX } from './limits.ts';
import { addPodCommands } from './pod-commands.ts';
import {
  renderAudit,
  renderBlobs,
  renderDevices,
  renderEvents,
  renderEviction,
  renderMaterialized,
  renderSnapshots,
  renderStatus,
  renderStore,
  renderTraffic,
} from './render.ts';
import type {
  DeviceRow,
  EventRow,
  Eviction,
  MaterializeResult,
  NodeStatus,
  SnapshotRow,
  StoreBlob,
  StoreStatus,
  Traffic,
} from './services.ts';

const EXIT = { done: 0, refused: 1, usage: 2, unreachable: 3, degraded: 4 } as const;

/** Pages read by one command: 2000 rows each, so half a million snapshots; a service that never ends its list is broken. */
const MAX_PAGES = 256;

interface GlobalOptions {
  socket?: string;
  config?: string;
  json?: boolean;
  format?: string;
}

const program = new Command('obdctl')
  .description('Looks into and steers overlaybd-sidecar on this node')
  .option('--socket <path>', 'admin socket (default: admin.socket of the configuration)')
  .option('--config <file>', `configuration file that names the socket (default: ${DEFAULT_CONFIG_PATH})`)
  .addOption(
    new Option('-o, --format <format>', 'how answers are printed (default: table on a terminal, json otherwise)').choices([
      'table',
      'json',
    ]),
  )
  .option('--json', 'the same as -o json')
  .helpCommand('help [command]', 'help for a command')
  .showHelpAfterError('(-h behind a command explains it)')
  .addHelpText('after', '\nExit codes: 0 done, 1 refused, 2 wrong usage, 3 service not reachable, 4 degraded (status), 130 Ctrl-C')
  .exitOverride();

const globals = (): GlobalOptions => program.opts<GlobalOptions>();

function socketPathOf({ socket, config }: GlobalOptions): string {
  return socket ?? loadConfig(config).admin.socket;
}

async function callFor<T>(timeoutMs: number, method: AdminMethod, path: string, body?: unknown, headers = {}): Promise<T> {
  const socketPath = socketPathOf(globals());
  const { text } = await callAdmin({ socketPath, method, path, timeoutMs, headers, ...(body === undefined ? {} : { body }) });
  return (text === '' ? {} : JSON.parse(text)) as T;
}

const call = <T>(method: AdminMethod, path: string, body?: unknown, headers?: Readonly<Record<string, string>>): Promise<T> =>
  callFor(ANSWER_DEADLINE_MS + 1000, method, path, body, headers);

const isJsonWanted = (): boolean => globals().json === true || globals().format === 'json';

/** People get tables; what reads a pipe or a file gets JSON unless it asks for tables. */
const isJson = (): boolean => isJsonWanted() || (globals().format === undefined && !process.stdout.isTTY);

function print(answer: unknown, text: () => string): void {
  process.stdout.write(isJson() ? `${JSON.stringify(answer, null, 2)}\n` : text());
}

/** An answer that is one word, to be used as `$(obdctl …)`: JSON only for those who ask for it. */
function printWord(answer: unknown, word: string): void {
  process.stdout.write(isJsonWanted() ? `${JSON.stringify(answer, null, 2)}\n` : `${word}\n`);
}

program
  .command('status')
  .description('processes, counts and what does not work')
  .action(async () => {
    const status = await call<NodeStatus>('GET', '/v1/status');
    print(status, () => renderStatus(status));
    if (!status.isReady) process.exitCode = EXIT.degraded;
  });

program
  .command('snapshots')
  .description('snapshots, whether their image is lazy and why, and what is broken')
  .option('--broken', 'only broken ones')
  .action(async ({ broken }: { broken?: boolean }) => {
    const rows: SnapshotRow[] = [];
    let after: string | null = null;
    for (let page = 0; page < MAX_PAGES; page += 1) {
      const query = new URLSearchParams({ limit: String(PAGE_ROWS_MAX) });
      if (broken === true) query.set('broken', 'true');
      if (after !== null) query.set('after', after);
      const answer: { snapshots: SnapshotRow[]; next: string | null } = await call('GET', `/v1/snapshots?${query}`);
      rows.push(...answer.snapshots);
      after = answer.next;
      if (after === null) break;
    }
    print({ snapshots: rows }, () => renderSnapshots(rows));
  });

program
  .command('devices')
  .description('block devices, and what was read and fetched for each')
  .action(async () => {
    const answer = await call<{ devices: DeviceRow[] }>('GET', '/v1/devices');
    print(answer, () => renderDevices(answer.devices));
  });

const store = program
  .command('store')
  .description('the local store: budget and use')
  .action(async () => {
    const status = await call<StoreStatus>('GET', '/v1/store');
    print(status, () => renderStore(status));
  });
store
  .command('ls')
  .description('the ledger: every blob with its bytes and why it stays, next to be evicted first')
  .action(async () => {
    const answer = await call<{ blobs: StoreBlob[]; totalCount: number }>('GET', `/v1/store/blobs?limit=${PAGE_ROWS_MAX}`);
    print(answer, () => renderBlobs(answer.blobs, answer.totalCount));
  });
store
  .command('evict')
  .description('removes what nothing uses, least recently used first, until so many bytes are free')
  .argument('<size>', 'bytes, or text such as 20GiB', sizeOf)
  .action(async (bytes: number) => {
    const gone = await call<Eviction>('POST', '/v1/store:evict', { bytes });
    print(gone, () => renderEviction(gone));
  });

program
  .command('traffic')
  .description('what was read and fetched on the whole node')
  .action(async () => {
    const traffic = await call<Traffic>('GET', '/v1/traffic');
    print(traffic, () => renderTraffic(traffic));
  });

program
  .command('events')
  .description('what happened lately')
  .option('--since <time>', 'only events at or after this time (ISO 8601), or so long ago (30m, 12h, 7d)', timeOf)
  .action(async ({ since }: { since?: string }) => {
    const query = new URLSearchParams({ limit: String(PAGE_ROWS_MAX), ...(since === undefined ? {} : { since }) });
    const answer = await call<{ events: EventRow[] }>('GET', `/v1/events?${query}`);
    print(answer, () => renderEvents(answer.events));
  });

program
  .command('audit')
  .description('who changed what over the admin API and who was refused, newest first')
  .addOption(new Option('--kind <kind>', 'only these').choices(['change', 'refusal']))
  .action(async ({ kind }: { kind?: string }) => {
    const query = new URLSearchParams({ limit: String(PAGE_ROWS_MAX), ...(kind === undefined ? {} : { kind }) });
    const answer = await call<{ entries: AuditEntryView[]; next: number | null }>('GET', `/v1/audit?${query}`);
    print(answer, () => renderAudit(answer.entries));
  });

const TRAFFIC_MS = 1000;

/** Runs `work`; a terminal is told how much the node has fetched meanwhile. */
async function tellingTraffic<T>(work: () => Promise<T>): Promise<T> {
  const line = new ProgressLine(isJson());
  if (!line.isThere) return work();
  const done = new AbortController();
  const fetched = async (): Promise<number> => {
    const { fetchedBytes } = await call<Traffic>('GET', '/v1/traffic');
    return fetchedBytes.demand + fetchedBytes.prefetch + fetchedBytes.fill;
  };
  const tell = async (): Promise<void> => {
    const beforeBytes = await fetched();
    while (!done.signal.aborted) {
      line.show(`fetching; ${formatBytes((await fetched()) - beforeBytes)} so far`);
      await systemClock.sleep(TRAFFIC_MS, done.signal);
    }
  };
  const telling = tell();
  try {
    return await work();
  } finally {
    done.abort();
    // It only tells: its end or failure is no matter.
    await Promise.allSettled([telling]);
    line.clear();
  }
}

program
  .command('materialize')
  .description('fetches what is missing of a lazy image, so that it can be exported or pushed')
  .argument('<reference>', 'image reference as containerd knows it')
  .action(async (reference: string) => {
    const goesOn = 'nothing goes on; what was fetched stays, and the same command goes on from there';
    const materialize = () => callFor<MaterializeResult>(MATERIALIZE_DEADLINE_MS + 1000, 'POST', '/v1/materialize', { reference });
    const result = await untilInterrupted(goesOn, () => tellingTraffic(materialize));
    print(result, () => renderMaterialized(result));
  });

const tools = {
  call,
  print,
  printWord,
  watch: (path: string) => watchAdmin(socketPathOf(globals()), path),
  config: () => loadConfig(globals().config),
  isJson,
  fail: () => {
    process.exitCode = EXIT.refused;
  },
};
addCacheCommands(program, tools);
addConvertCommands(program, {
  ...tools,
  call: (method, path, body, timeoutMs) => callFor(timeoutMs ?? ANSWER_DEADLINE_MS + 1000, method, path, body),
});
addAccessCommands(program, tools);
addPodCommands(program, tools);

program
  .command('completion')
  .description('completion for a shell: source <(obdctl completion bash)')
  .addArgument(new Argument('<shell>').choices(SHELLS))
  .action((shell: Shell) => {
    process.stdout.write(completionScript(program, shell));
  });

program
  .command('check-config')
  .description('checks a configuration file without the service')
  .argument('[file]', 'file to check', DEFAULT_CONFIG_PATH)
  .action((file: string) => {
    const config = loadConfig(file);
    print(config, () => `${file}: ${fs.existsSync(file) ? 'valid' : 'missing; all defaults apply'}\n`);
  });

function exitCodeOf(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage;
  return isUnreachable(error) ? EXIT.unreachable : EXIT.refused;
}

// `obdctl … | head` is no failure.
process.stdout.on('error', (error) => {
  if (errnoOf(error) !== 'EPIPE') throw error;
  process.exit();
});

try {
  await program.parseAsync();
} catch (error) {
  // commander has written its own message already.
  if (!(error instanceof CommanderError))
    process.stderr.write(`obdctl: ${error instanceof AppError ? error.message : describeError(error)}\n`);
  process.exitCode = exitCodeOf(error);
}
