/**
 * The configuration of the service: a TOML file checked against the table in `options.ts`. Every process reads it once, when it starts.
 * A wrong file is refused as a whole, with every mistake named by key, value and allowed range.
 */
import { readFileSync, statSync } from 'node:fs';
import { isIP } from 'node:net';
import { isAbsolute, join } from 'node:path';
import { parse, TomlError } from 'smol-toml';
import { z } from 'zod';
import { AppError, errnoOf } from '../errors.ts';
import { MIB } from '../units.ts';
import { nearestName } from './nearest-name.ts';
import type { DurationOption, Option } from './option.ts';
import { SOCKET_PATH_MAX } from './option.ts';
import { SECTION_OPTIONS, TOP_OPTIONS } from './options.ts';

export const DEFAULT_CONFIG_PATH = '/etc/overlaybd-sidecar/config.toml';

/** No configuration of ours is longer; the file is read as a whole. */
const MAX_CONFIG_BYTES = 1 * MIB;

/** Mistakes told at once; a file with more is probably not ours. */
const MAX_PROBLEMS = 20;

type Camel<S extends string> = S extends `${infer Head}_${infer Tail}` ? `${Head}${Capitalize<Camel<Tail>>}` : S;
/** `prepare_deadline` is written "30s" and is `prepareDeadlineMs` in code. */
type CodeName<Key, O> = O extends DurationOption ? `${Camel<Key & string>}Ms` : Camel<Key & string>;
type Values<Table> = { readonly [Key in keyof Table as CodeName<Key, Table[Key]>]: Table[Key] extends Option<infer T> ? T : never };

/** The checked configuration. Durations are milliseconds, sizes bytes, socket paths absolute. Frozen. */
export type Config = Values<typeof TOP_OPTIONS> & {
  readonly [Section in keyof typeof SECTION_OPTIONS]: Values<(typeof SECTION_OPTIONS)[Section]>;
};

type OptionTable = Readonly<Record<string, Option<unknown>>>;

/** One section's table or the top level: unknown keys are errors, absent ones take their default, names become code names. */
function tableSchema(options: OptionTable, sections: Readonly<Record<string, z.ZodType>>): z.ZodType<Record<string, unknown>> {
  const shape: Record<string, z.ZodType> = { ...sections };
  for (const [key, option] of Object.entries(options)) shape[key] = option.schema.optional();
  return z.strictObject(shape).transform((given) => {
    const values: Record<string, unknown> = {};
    for (const section of Object.keys(sections)) values[section] = given[section];
    for (const [key, option] of Object.entries(options)) values[codeName(key, option)] = given[key] ?? option.fallback;
    return values;
  });
}

function codeName(key: string, option: Option<unknown>): string {
  const camel = key.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
  return option.isDuration ? `${camel}Ms` : camel;
}

const fileSchema = tableSchema(
  TOP_OPTIONS,
  Object.fromEntries(Object.entries(SECTION_OPTIONS).map(([name, options]) => [name, tableSchema(options, {}).prefault({})])),
);

/** Every full key, for suggestions. */
const ALL_KEYS = [
  ...Object.keys(TOP_OPTIONS),
  ...Object.entries(SECTION_OPTIONS).flatMap(([section, options]) => Object.keys(options).map((key) => `${section}.${key}`)),
];

function problemsOf(error: z.ZodError): string[] {
  return error.issues.flatMap((issue) => {
    const at = issue.path.join('.');
    if (issue.code !== 'unrecognized_keys') {
      return issue.code === 'invalid_type' && issue.path.length === 1 ? [`${at}: is not a section ([${at}])`] : [`${at}: ${issue.message}`];
    }
    return issue.keys.map((key) => {
      const full = at === '' ? key : `${at}.${key}`;
      const near = nearestName(full, at === '' ? [...ALL_KEYS, ...Object.keys(SECTION_OPTIONS)] : ALL_KEYS);
      return `${full.slice(0, 100)}: unknown key${near === undefined ? '' : `; did you mean ${near}?`}`;
    });
  });
}

/** True for an address that only this machine reaches. */
function isLoopback(address: string): boolean {
  const host = address.slice(0, address.lastIndexOf(':')).replace(/^\[|\]$/g, '');
  return host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
}

/** What no single option can see: options that need or forbid each other. */
function crossProblems(config: Config): string[] {
  const problems: string[] = [];
  const { tcpListen, tcpBeyondLoopback } = config.admin;
  if (tcpListen !== undefined && !isLoopback(tcpListen) && !tcpBeyondLoopback) {
    problems.push(`admin.tcp_listen: "${tcpListen}" is not a loopback address; set admin.tcp_beyond_loopback = true to allow it`);
  }
  const { webhookListen, webhookSecretFile, webhookBeyondLoopback } = config.convert;
  if (webhookListen !== undefined && webhookSecretFile === undefined) {
    problems.push('convert.webhook_listen: needs convert.webhook_secret_file, since anybody could ask for conversions otherwise');
  }
  if (webhookListen !== undefined && !isLoopback(webhookListen) && !webhookBeyondLoopback) {
    problems.push(
      `convert.webhook_listen: "${webhookListen}" is not a loopback address; set convert.webhook_beyond_loopback = true to allow it`,
    );
  }
  for (const [key, socket] of [
    ['snapshotter.socket', config.snapshotter.socket],
    ['admin.socket', config.admin.socket],
    ['cri.socket', config.cri.socket],
  ] as const) {
    if (Buffer.byteLength(socket) > SOCKET_PATH_MAX) problems.push(`${key}: "${socket}" is longer than ${SOCKET_PATH_MAX} bytes`);
  }
  if (config.snapshotter.socket === config.admin.socket) problems.push('admin.socket: is the same path as snapshotter.socket');
  for (const other of ['snapshotter', 'admin'] as const) {
    if (config.cri.socket === config[other].socket) problems.push(`cri.socket: is the same path as ${other}.socket`);
  }
  return problems;
}

function freeze(config: Config): Config {
  for (const value of Object.values(config)) if (typeof value === 'object' && value !== null) Object.freeze(value);
  return Object.freeze(config);
}

function refused(path: string, problems: readonly string[], cause?: unknown): AppError {
  const more = problems.length > MAX_PROBLEMS ? `; and ${problems.length - MAX_PROBLEMS} more` : '';
  const what = problems.slice(0, MAX_PROBLEMS).join('; ') + more;
  return new AppError('InvalidArgument', { op: 'read configuration', subject: path, what, ...(cause === undefined ? {} : { cause }) });
}

/** Checks configuration text. `path` only names it in errors. Throws InvalidArgument that lists every mistake. */
export function parseConfig(text: string, path: string): Config {
  let table: unknown;
  try {
    table = parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    throw refused(path, [`line ${error.line}, column ${error.column}: ${error.message.split('\n')[0]}`], error);
  }
  const result = fileSchema.safeParse(table);
  if (!result.success) throw refused(path, problemsOf(result.error), result.error);
  const values = result.data as unknown as Config;
  const inRun = (socket: string): string => (isAbsolute(socket) ? socket : join(values.paths.run, socket));
  const config: Config = {
    ...values,
    snapshotter: { ...values.snapshotter, socket: inRun(values.snapshotter.socket) },
    admin: { ...values.admin, socket: inRun(values.admin.socket) },
    cri: { ...values.cri, socket: inRun(values.cri.socket) },
  };
  const problems = crossProblems(config);
  if (problems.length > 0) throw refused(path, problems);
  return freeze(config);
}

/**
 * Reads the configuration file; synchronous, since nothing can start before it. Without `path` the file is
 * {@link DEFAULT_CONFIG_PATH}, and all defaults apply when that does not exist. Throws NotFound for a missing file that was named,
 * InvalidArgument for a wrong one, Internal for one that cannot be read.
 */
export function loadConfig(path?: string): Config {
  const file = path ?? DEFAULT_CONFIG_PATH;
  let text: string;
  try {
    const { size } = statSync(file);
    if (size > MAX_CONFIG_BYTES) throw refused(file, [`${size} bytes are more than ${MAX_CONFIG_BYTES}`]);
    text = readFileSync(file, 'utf8');
  } catch (error) {
    if (error instanceof AppError) throw error;
    if (errnoOf(error) === 'ENOENT' && file === DEFAULT_CONFIG_PATH) return parseConfig('', file);
    const code = errnoOf(error) === 'ENOENT' ? 'NotFound' : 'Internal';
    const what = code === 'NotFound' ? 'no such file' : `cannot be read (${errnoOf(error) ?? 'unknown'})`;
    throw new AppError(code, { op: 'read configuration', subject: file, what, cause: error });
  }
  return parseConfig(text, file);
}
