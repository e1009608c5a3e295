/**
 * The kinds of configuration values. An option is one row of the table in `options.ts`: how its text is read and checked, and what a
 * person must know about it (unit, default, range, reason). The checks and the documentation come from the same row.
 */
import { isAbsolute, normalize } from 'node:path';
import { z } from 'zod';
import { GIB, KIB, MIB } from '../units.ts';

export interface Option<T> {
  /** What a person writes: bytes, duration, integer, true/false, text … */
  readonly unit: string;
  /** The value when the key is absent. */
  readonly fallback: T;
  /** The default as it would be written in the file; empty when the option is off unless written. */
  readonly fallbackText: string;
  readonly range: string;
  /** Why the default and the range are what they are. */
  readonly reason: string;
  readonly schema: z.ZodType<T>;
  /** Durations are milliseconds in code, and say so in their name. */
  readonly isDuration: boolean;
}

export interface DurationOption extends Option<number> {
  readonly isDuration: true;
}

const TIB = 1024 * GIB;
const SIZE_UNITS: Readonly<Record<string, number>> = { B: 1, KiB: KIB, MiB: MIB, GiB: GIB, TiB: TIB };
const SIZE = /^(\d{1,15}(?:\.\d{1,6})?) ?(B|KiB|MiB|GiB|TiB)$/;
const DURATION_UNITS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 };
const DURATION = /^(?:\d{1,12}(?:ms|s|m|h))+$/;

/** Reads `20GiB` or `512 KiB` as bytes; undefined when the text is no size. */
export function parseSize(text: string): number | undefined {
  const match = SIZE.exec(text);
  return match === null ? undefined : Math.round(Number(match[1]) * (SIZE_UNITS[match[2]!] ?? 1));
}

/** Reads `30s`, `500ms` or `1h30m` as milliseconds; undefined when the text is no duration. */
export function parseDuration(text: string): number | undefined {
  if (!DURATION.test(text)) return undefined;
  let totalMs = 0;
  for (const part of text.matchAll(/(\d+)(ms|s|m|h)/g)) totalMs += Number(part[1]) * (DURATION_UNITS[part[2]!] ?? 1);
  return totalMs;
}

/** The shortest exact way to write a size: 1073741824 → `1GiB`. */
export function sizeText(bytes: number): string {
  for (const unit of ['TiB', 'GiB', 'MiB', 'KiB']) {
    const factor = SIZE_UNITS[unit]!;
    if (bytes >= factor && bytes % factor === 0) return `${bytes / factor}${unit}`;
  }
  return `${bytes}B`;
}

/** The shortest exact way to write a duration: 60000 → `1m`. */
export function durationText(ms: number): string {
  for (const unit of ['h', 'm', 's']) {
    const factor = DURATION_UNITS[unit]!;
    if (ms >= factor && ms % factor === 0) return `${ms / factor}${unit}`;
  }
  return `${ms}ms`;
}

const shown = (value: unknown): string => {
  const text = typeof value === 'bigint' ? String(value) : (JSON.stringify(value) ?? String(value));
  return text.length > 100 ? `${text.slice(0, 100)}…` : text;
};

const quoted = (text: string): string => JSON.stringify(text);

/** A number within bounds that may also be written as text with a unit. `show` writes a bound for people. */
function measured(
  read: (value: unknown) => number | undefined,
  expected: string,
  bounds: { min: number; max: number },
  show: (value: number) => string,
): z.ZodType<number> {
  const described = (value: number): string => {
    const text = show(value);
    return text === String(value) ? text : `${value} (${text})`;
  };
  return z.unknown().transform((input, context) => {
    const fail = (message: string): never => {
      context.addIssue({ code: 'custom', message });
      return z.NEVER;
    };
    const value = read(input);
    if (value === undefined) return fail(`${shown(input)} is not ${expected}`);
    if (!Number.isSafeInteger(value)) return fail(`${shown(input)} is not a whole number`);
    const range = `allowed: ${described(bounds.min)} to ${described(bounds.max)}`;
    if (value < bounds.min) return fail(`${shown(input)} is below ${described(bounds.min)}; ${range}`);
    if (value > bounds.max) return fail(`${shown(input)} is above ${described(bounds.max)}; ${range}`);
    return value;
  });
}

interface Bounded {
  default: number;
  min: number;
  max: number;
  reason: string;
}

/** A size or a rate: an integer number of bytes, or text such as "20GiB". */
export function bytes(o: Bounded): Option<number> {
  const read = (value: unknown): number | undefined =>
    typeof value === 'number' ? value : typeof value === 'string' ? parseSize(value) : undefined;
  return {
    unit: 'bytes',
    fallback: o.default,
    fallbackText: quoted(sizeText(o.default)),
    range: `${sizeText(o.min)} – ${sizeText(o.max)}`,
    reason: o.reason,
    schema: measured(read, 'a number of bytes or text such as "20GiB" (B, KiB, MiB, GiB, TiB)', o, sizeText),
    isDuration: false,
  };
}

/** A length of time, always with its unit: "30s", "500ms", "1h30m". Defaults and bounds in milliseconds. */
export function duration(o: Bounded): DurationOption {
  const read = (value: unknown): number | undefined => (typeof value === 'string' ? parseDuration(value) : undefined);
  return {
    unit: 'duration',
    fallback: o.default,
    fallbackText: quoted(durationText(o.default)),
    range: `${durationText(o.min)} – ${durationText(o.max)}`,
    reason: o.reason,
    schema: measured(read, 'a duration with its unit, such as "30s" (ms, s, m, h)', o, durationText),
    isDuration: true,
  };
}

/** A whole number of `unit`. */
export function integer(o: Bounded & { unit: string }): Option<number> {
  const read = (value: unknown): number | undefined => (typeof value === 'number' ? value : undefined);
  return {
    unit: o.unit,
    fallback: o.default,
    fallbackText: String(o.default),
    range: `${o.min} – ${o.max}`,
    reason: o.reason,
    schema: measured(read, 'a whole number', o, String),
    isDuration: false,
  };
}

export function flag(o: { default: boolean; reason: string }): Option<boolean> {
  return {
    unit: 'true or false',
    fallback: o.default,
    fallbackText: String(o.default),
    range: 'true, false',
    reason: o.reason,
    schema: z.boolean({ error: (issue) => `${shown(issue.input)} is not true or false` }),
    isDuration: false,
  };
}

export function choice<const C extends readonly [string, ...string[]]>(
  choices: C,
  o: { default: C[number]; reason: string },
): Option<C[number]> {
  const range = choices.map(quoted).join(', ');
  return {
    unit: 'one of',
    fallback: o.default,
    fallbackText: quoted(o.default),
    range,
    reason: o.reason,
    schema: z.enum(choices, { error: (issue) => `${shown(issue.input)} is not one of ${range}` }) as z.ZodType<C[number]>,
    isDuration: false,
  };
}

const PATH_MAX = 4095;
/** A unix socket's name has 108 bytes with its final zero (unix(7)). */
export const SOCKET_PATH_MAX = 107;

function pathProblem(value: unknown, relativeTo: string | undefined, maxBytes: number): string | undefined {
  if (typeof value !== 'string' || value === '') return `${shown(value)} is not a path`;
  if (value.includes('\0')) return `${shown(value)} holds a zero byte`;
  if (!isAbsolute(value) && relativeTo === undefined) return `${shown(value)} is not an absolute path`;
  if (!isAbsolute(value) && normalize(value).startsWith('..')) return `${shown(value)} leaves ${relativeTo}`;
  if (Buffer.byteLength(value) > maxBytes) return `${shown(value)} is longer than ${maxBytes} bytes`;
  return undefined;
}

function checkedText(problemOf: (value: unknown) => string | undefined): z.ZodType<string> {
  return z.unknown().transform((input, context) => {
    const problem = problemOf(input);
    if (problem === undefined) return input as string;
    context.addIssue({ code: 'custom', message: problem });
    return z.NEVER;
  });
}

/** An absolute path. */
export function path(o: { default: string; reason: string }): Option<string> {
  return {
    unit: 'path',
    fallback: o.default,
    fallbackText: quoted(o.default),
    range: 'absolute path',
    reason: o.reason,
    schema: checkedText((value) => pathProblem(value, undefined, PATH_MAX)),
    isDuration: false,
  };
}

/** A unix socket's path; a relative one lies in `paths.run`. */
export function socketPath(o: { default: string; reason: string }): Option<string> {
  return {
    unit: 'path',
    fallback: o.default,
    fallbackText: quoted(o.default),
    range: `path of at most ${SOCKET_PATH_MAX} bytes; relative: in paths.run`,
    reason: o.reason,
    schema: checkedText((value) => pathProblem(value, 'paths.run', SOCKET_PATH_MAX)),
    isDuration: false,
  };
}

/** An absolute path that is unset unless written. */
export function optionalPath(o: { reason: string }): Option<string | undefined> {
  return {
    unit: 'path',
    fallback: undefined,
    fallbackText: '',
    range: 'absolute path',
    reason: o.reason,
    schema: checkedText((value) => pathProblem(value, undefined, PATH_MAX)),
    isDuration: false,
  };
}

/** Kubernetes' rules for label keys and values (apimachinery, validation). */
const LABEL =
  /^(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\/)?[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?=(?:[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$/;

/** A Kubernetes label, `key=value`, that is unset unless written. */
export function optionalLabel(o: { reason: string }): Option<string | undefined> {
  return {
    unit: 'key=value',
    fallback: undefined,
    fallbackText: '',
    range: 'a label',
    reason: o.reason,
    schema: checkedText((value) =>
      typeof value === 'string' && LABEL.test(value) ? undefined : `${shown(value)} is not a label (key=value)`,
    ),
    isDuration: false,
  };
}

const NAMESPACE = /^[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,74}[A-Za-z0-9])?$/;

/** A containerd namespace. */
export function namespace(o: { default: string; reason: string }): Option<string> {
  return {
    unit: 'name',
    fallback: o.default,
    fallbackText: quoted(o.default),
    range: '1 – 76 letters, digits, _ . -',
    reason: o.reason,
    schema: checkedText((value) =>
      typeof value === 'string' && NAMESPACE.test(value) ? undefined : `${shown(value)} is not 1 to 76 letters, digits, _ . -`,
    ),
    isDuration: false,
  };
}

const HOST_PORT = /^(?:\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)(?::(\d{1,5}))?$/;

function hostProblem(value: unknown, isPortNeeded: boolean): string | undefined {
  const match = typeof value === 'string' ? HOST_PORT.exec(value) : null;
  if (match === null || (isPortNeeded && match[1] === undefined))
    return `${shown(value)} is not host${isPortNeeded ? ':port' : ' or host:port'}`;
  return match[1] !== undefined && (Number(match[1]) < 1 || Number(match[1]) > 65_535)
    ? `${shown(value)}: port is outside 1 to 65535`
    : undefined;
}

/** `host:port`, unset unless written. */
export function optionalAddress(o: { reason: string }): Option<string | undefined> {
  return {
    unit: 'host:port',
    fallback: undefined,
    fallbackText: '',
    range: 'port 1 – 65535',
    reason: o.reason,
    schema: checkedText((value) => hostProblem(value, true)),
    isDuration: false,
  };
}

interface ListOf {
  maxCount: number;
  reason: string;
}

function list(o: ListOf, what: string, unit: string, problemOf: (entry: unknown) => string | undefined): Option<readonly string[]> {
  const schema = z.unknown().transform((input, context): readonly string[] => {
    const problem = !Array.isArray(input)
      ? `${shown(input)} is not a list of ${what}`
      : input.length > o.maxCount
        ? `${input.length} entries are more than ${o.maxCount}`
        : input.map(problemOf).find((found) => found !== undefined);
    if (problem === undefined) return input as string[];
    context.addIssue({ code: 'custom', message: problem });
    return z.NEVER;
  });
  const range = `0 – ${o.maxCount} entries`;
  return { unit, fallback: [], fallbackText: '[]', range, reason: o.reason, schema, isDuration: false };
}

/** A list of registry hosts (`registry.example:5000`). */
export function hosts(o: ListOf): Option<readonly string[]> {
  return list(o, 'hosts', 'list of host[:port]', (entry) => hostProblem(entry, false));
}

const REPOSITORY_PATH = /^[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:\/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*$/;

/** A list of registries and repositories (`registry.example:5000`, `registry.example/team`). */
export function repositories(o: ListOf): Option<readonly string[]> {
  return list(o, 'registries and repositories', 'list of host[:port][/path]', (entry) => {
    const slash = typeof entry === 'string' ? entry.indexOf('/') : -1;
    const host = typeof entry === 'string' && slash !== -1 ? entry.slice(0, slash) : entry;
    const path = typeof entry === 'string' && slash !== -1 ? entry.slice(slash + 1) : undefined;
    if (path !== undefined && (path.length > 255 || !REPOSITORY_PATH.test(path))) return `${shown(entry)} is not host[:port]/path`;
    return hostProblem(host, false);
  });
}

const MOUNT_OPTION = /^[a-z_]{1,32}(?:=[A-Za-z0-9_.-]{1,64})?$/;
/** What the snapshotter sets itself. */
const OWN_MOUNT_OPTIONS = /^(?:lowerdir|upperdir|workdir|datadir|ro|rw)(?:=|$)/;

/** Options of overlay mounts (`volatile`, `metacopy=on`). */
export function mountOptions(o: ListOf): Option<readonly string[]> {
  return list(o, 'mount options', 'list of options', (entry) => {
    if (typeof entry !== 'string' || !MOUNT_OPTION.test(entry)) return `${shown(entry)} is not name or name=value`;
    return OWN_MOUNT_OPTIONS.test(entry) ? `${shown(entry)} is set by the snapshotter itself` : undefined;
  });
}
