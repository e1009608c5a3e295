/**
 * Image configurations. Source: OCI image-spec v1.1, config.md. Fields that the OCI structure does not know (Docker's `Healthcheck`,
 * `OnBuild`, `container_config`) are lost when a config is written again, as in every tool built on that structure.
 */
import { type Digest, isDigest } from '../../base/digest.ts';
import { type Platform, parsePlatform, platformFields } from './descriptor.ts';
import {
  type At,
  asObject,
  bad,
  child,
  optionalArray,
  optionalBoolean,
  optionalKeySet,
  optionalString,
  optionalStringMap,
  optionalStrings,
  own,
  parseJsonObject,
} from './fields.ts';
import { encodeGoJson, type GoJson, goObject, omitEmpty } from './go-json.ts';
import { MAX_MANIFEST_LAYERS } from './manifest.ts';

/** Environment entries, arguments and history lines; bounded by the document's size anyway, this names the field. */
const MAX_ENTRIES = 100_000;
/** A history line may hold a whole script. */
const MAX_TEXT_CHARS = 4 * 1024 * 1024;

export interface ImageProcess {
  readonly user?: string;
  readonly exposedPorts?: readonly string[];
  readonly env?: readonly string[];
  readonly entrypoint?: readonly string[];
  readonly cmd?: readonly string[];
  readonly volumes?: readonly string[];
  readonly workingDir?: string;
  readonly labels?: Readonly<Record<string, string>>;
  readonly stopSignal?: string;
  readonly argsEscaped?: boolean;
}

export interface HistoryEntry {
  readonly created?: string;
  readonly createdBy?: string;
  readonly author?: string;
  readonly comment?: string;
  readonly emptyLayer?: boolean;
}

export interface ImageConfig {
  /** RFC 3339, normalised as Go writes it. */
  readonly created?: string;
  readonly author?: string;
  readonly platform: Platform;
  readonly process: ImageProcess;
  readonly rootfsType: string;
  readonly diffIds: readonly Digest[];
  readonly history?: readonly HistoryEntry[];
}

const TIME = /^(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:\.(\d{1,9})\d*)?(Z|[+-]\d{2}:\d{2})$/;

/** Go reads a time and writes it again: fraction without trailing zeros, an offset of zero as Z. */
function parseTime(object: Readonly<Record<string, unknown>>, key: string, at: At): string | undefined {
  const text = optionalString(object, key, at);
  if (text === undefined) return undefined;
  const match = TIME.exec(text);
  if (match === null || Number.isNaN(Date.parse(text))) throw bad(child(at, key), 'not a time in RFC 3339 form');
  const fraction = (match[2] ?? '').replace(/0+$/, '');
  return `${match[1]}${fraction === '' ? '' : `.${fraction}`}${match[3] === '+00:00' ? 'Z' : match[3]}`;
}

/** Leaves out what is undefined, so that exact optional properties stay exact. */
function defined<T extends object>(fields: { [K in keyof T]: T[K] | undefined }): T {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined)) as T;
}

function parseProcess(value: unknown, at: At): ImageProcess {
  if (value === undefined) return {};
  const object = asObject(value, at);
  return defined<ImageProcess>({
    user: optionalString(object, 'User', at),
    exposedPorts: optionalKeySet(object, 'ExposedPorts', at),
    env: optionalStrings(object, 'Env', at, MAX_ENTRIES),
    entrypoint: optionalStrings(object, 'Entrypoint', at, MAX_ENTRIES),
    cmd: optionalStrings(object, 'Cmd', at, MAX_ENTRIES),
    volumes: optionalKeySet(object, 'Volumes', at),
    workingDir: optionalString(object, 'WorkingDir', at),
    labels: optionalStringMap(object, 'Labels', at),
    stopSignal: optionalString(object, 'StopSignal', at),
    argsEscaped: optionalBoolean(object, 'ArgsEscaped', at),
  });
}

function parseHistory(value: unknown, at: At): HistoryEntry {
  const object = asObject(value, at);
  return defined<HistoryEntry>({
    created: parseTime(object, 'created', at),
    createdBy: optionalString(object, 'created_by', at, MAX_TEXT_CHARS),
    author: optionalString(object, 'author', at),
    comment: optionalString(object, 'comment', at, MAX_TEXT_CHARS),
    emptyLayer: optionalBoolean(object, 'empty_layer', at),
  });
}

/** Parses an image configuration. Throws InvalidArgument naming document and field. */
export function parseImageConfig(bytes: Uint8Array, document: string): ImageConfig {
  const object = parseJsonObject(bytes, document);
  const at: At = { document, path: '' };
  const rootfsAt = child(at, 'rootfs');
  const rootfs = asObject(own(object, 'rootfs'), rootfsAt);
  const diffIds = (optionalArray(rootfs, 'diff_ids', rootfsAt, MAX_MANIFEST_LAYERS) ?? []).map((value, index) => {
    if (!isDigest(value)) throw bad(child(child(rootfsAt, 'diff_ids'), index), 'not sha256: and 64 hexadecimal digits');
    return value;
  });
  const historyAt = child(at, 'history');
  return defined<ImageConfig>({
    created: parseTime(object, 'created', at),
    author: optionalString(object, 'author', at),
    platform: parsePlatform(object, at),
    process: parseProcess(own(object, 'config'), child(at, 'config')),
    rootfsType: optionalString(rootfs, 'type', rootfsAt) ?? 'layers',
    diffIds,
    history: optionalArray(object, 'history', at, MAX_ENTRIES)?.map((value, index) => parseHistory(value, child(historyAt, index))),
  });
}

function keySet(keys: readonly string[] | undefined): GoJson | undefined {
  return keys === undefined || keys.length === 0 ? undefined : Object.fromEntries(keys.map((key) => [key, {}]));
}

function processJson(process: ImageProcess): GoJson {
  return goObject([
    ['User', omitEmpty(process.user)],
    ['ExposedPorts', keySet(process.exposedPorts)],
    ['Env', omitEmpty(process.env)],
    ['Entrypoint', omitEmpty(process.entrypoint)],
    ['Cmd', omitEmpty(process.cmd)],
    ['Volumes', keySet(process.volumes)],
    ['WorkingDir', omitEmpty(process.workingDir)],
    ['Labels', omitEmpty(process.labels)],
    ['StopSignal', omitEmpty(process.stopSignal)],
    ['ArgsEscaped', omitEmpty(process.argsEscaped)],
  ]);
}

function historyJson(entry: HistoryEntry): GoJson {
  return goObject([
    ['created', entry.created],
    ['created_by', omitEmpty(entry.createdBy)],
    ['author', omitEmpty(entry.author)],
    ['comment', omitEmpty(entry.comment)],
    ['empty_layer', omitEmpty(entry.emptyLayer)],
  ]);
}

/** The config's bytes, equal to those of Go's encoder for the same content. */
export function encodeImageConfig(config: ImageConfig): Uint8Array {
  return encodeGoJson(
    goObject([
      ['created', config.created],
      ['author', omitEmpty(config.author)],
      ...platformFields(config.platform),
      ['config', processJson(config.process)],
      [
        'rootfs',
        goObject([
          ['type', config.rootfsType],
          ['diff_ids', config.diffIds],
        ]),
      ],
      ['history', config.history === undefined || config.history.length === 0 ? undefined : config.history.map(historyJson)],
    ]),
  );
}
