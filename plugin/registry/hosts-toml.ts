/**
 * Reads containerd's `hosts.toml`. Source: containerd docs/hosts.md and remotes/docker/config. Pure: text in, settings out; the files it
 * names are read elsewhere.
 *
 *   server = "https://registry.example"          the registry itself, tried last
 *   [host."https://mirror.example"]              tried first, in the order of the file
 *     capabilities = ["pull", "resolve"]
 */
import { parse, TomlError } from 'smol-toml';
import { AppError } from '../base/errors.ts';
import { CONNECT_TIMEOUT_MS, MAX_MIRRORS } from './limits.ts';
import { isRegistryHost } from './reference.ts';

export type Capability = 'pull' | 'resolve' | 'push';
export const ALL_CAPABILITIES: ReadonlySet<Capability> = new Set<Capability>(['pull', 'resolve', 'push']);

/** One `[host]` section, or the top of the file. */
export interface HostSection {
  /** `https://mirror.example:5000`; undefined at the top of a file without `server`: the registry's own default. */
  readonly origin: string | undefined;
  /** `/v2`, or what stands in the file with `override_path`. No slash at its end. */
  readonly basePath: string;
  readonly capabilities: ReadonlySet<Capability>;
  readonly caFiles: readonly string[];
  readonly clientFiles: readonly { certificate: string; key: string }[];
  readonly skipVerify: boolean | undefined;
  readonly headers: Readonly<Record<string, string>>;
  readonly connectTimeoutMs: number;
}

type Table = Readonly<Record<string, unknown>>;

const HEADER_NAME = /^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}$/;
const HEADER_VALUE = /^[\t\x20-\x7e\x80-\xff]{0,8192}$/;
/** The client sets these itself; a hosts file that sets them would break requests. */
const OWN_HEADERS = new Set(['host', 'range', 'content-length', 'content-range', 'transfer-encoding', 'connection']);

class Section {
  readonly table: Table;
  readonly file: string;
  readonly name: string;

  constructor(table: Table, file: string, name: string) {
    this.table = table;
    this.file = file;
    this.name = name;
  }

  bad(key: string, what: string): AppError {
    return new AppError('FailedPrecondition', {
      op: 'read',
      subject: this.file,
      what: `${this.name === '' ? '' : `${this.name}.`}${key}: ${what}`,
    });
  }

  get(key: string): unknown {
    return Object.hasOwn(this.table, key) ? this.table[key] : undefined;
  }

  boolean(key: string): boolean | undefined {
    const value = this.get(key);
    if (value === undefined || typeof value === 'boolean') return value;
    throw this.bad(key, 'not true or false');
  }

  /** A string or an array of strings. */
  strings(key: string): string[] {
    const value = this.get(key);
    if (value === undefined) return [];
    const list = Array.isArray(value) ? value : [value];
    if (list.length > 64 || !list.every((item) => typeof item === 'string' && item !== '')) {
      throw this.bad(key, 'not a text or a list of at most 64 texts');
    }
    return list as string[];
  }
}

function parseServer(section: Section, key: string, text: unknown): { origin: string; path: string } {
  if (typeof text !== 'string') throw section.bad(key, 'not a text');
  const withScheme = text.startsWith('http') ? text : `https://${text}`;
  let url: URL;
  try {
    url = new URL(withScheme);
  } catch {
    throw section.bad(key, 'not a URL');
  }
  // The text itself stays out of the message: it may carry a password.
  if (url.username !== '' || url.password !== '') throw section.bad(key, 'carries credentials; they belong in the credential files');
  if (url.protocol !== 'https:' && url.protocol !== 'http:') throw section.bad(key, 'neither http nor https');
  if (url.search !== '' || url.hash !== '' || !isRegistryHost(url.host)) throw section.bad(key, 'not a plain registry URL');
  return { origin: url.origin, path: url.pathname.replace(/\/{2,}/g, '/').replace(/\/$/, '') };
}

function parseCapabilities(section: Section): ReadonlySet<Capability> {
  const names = section.strings('capabilities');
  if (names.length === 0) return ALL_CAPABILITIES;
  for (const name of names) {
    if (!ALL_CAPABILITIES.has(name as Capability))
      throw section.bad('capabilities', `${JSON.stringify(name)} is none of pull, resolve, push`);
  }
  return new Set(names as Capability[]);
}

/** `"pair.pem"`, `["a.pem", "b.pem"]`, or `[["a.crt", "a.key"], …]`. An empty key means: in the certificate's file. */
function parseClients(section: Section): { certificate: string; key: string }[] {
  const value = section.get('client');
  if (value === undefined) return [];
  const list = Array.isArray(value) ? value : [value];
  if (list.length > 16) throw section.bad('client', 'more than 16 certificates');
  return list.map((item: unknown) => {
    const pair: unknown[] = Array.isArray(item) ? item : [item];
    const [certificate, key = ''] = pair;
    if (pair.length > 2 || typeof certificate !== 'string' || certificate === '' || typeof key !== 'string') {
      throw section.bad('client', 'not a file, a list of files or a list of [certificate, key]');
    }
    return { certificate, key };
  });
}

function parseHeaders(section: Section): Record<string, string> {
  const value = section.get('header');
  if (value === undefined) return {};
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw section.bad('header', 'not a table');
  const entries = Object.entries(value).map(([name, content]): [string, string] => {
    const text = Array.isArray(content) ? content.join(', ') : content;
    if (!HEADER_NAME.test(name)) throw section.bad('header', 'a name is not an HTTP header name');
    if (OWN_HEADERS.has(name.toLowerCase())) throw section.bad(`header.${name}`, 'is set by the client');
    if (typeof text !== 'string' || !HEADER_VALUE.test(text)) throw section.bad(`header.${name}`, 'not a header value');
    return [name.toLowerCase(), text];
  });
  if (entries.length > 64) throw section.bad('header', 'more than 64 headers');
  return Object.fromEntries(entries);
}

const DURATION_UNITS_MS: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000 };

/** Go's duration text; only what a connection can sensibly take: 1 ms … 10 min. */
function parseDialTimeout(section: Section): number {
  const value = section.get('dial_timeout');
  if (value === undefined) return CONNECT_TIMEOUT_MS;
  const match = typeof value === 'string' ? /^(\d{1,6}(?:\.\d{1,3})?)(ms|s|m)$/.exec(value) : null;
  const delayMs = match === null ? 0 : Math.round(Number(match[1]) * DURATION_UNITS_MS[match[2]!]!);
  if (delayMs < 1 || delayMs > 600_000) throw section.bad('dial_timeout', 'not a time such as "5s", from 1ms to 10m');
  return delayMs;
}

function parseSection(section: Section, server: { key: string; text: unknown } | undefined): HostSection {
  const parsed = server === undefined ? undefined : parseServer(section, server.key, server.text);
  const path = parsed?.path ?? '';
  const isOverridden = section.boolean('override_path') ?? false;
  return {
    origin: parsed?.origin,
    basePath: isOverridden || path.endsWith('/v2') ? path : `${path}/v2`,
    capabilities: parseCapabilities(section),
    caFiles: section.strings('ca'),
    clientFiles: parseClients(section),
    skipVerify: section.boolean('skip_verify'),
    headers: parseHeaders(section),
    connectTimeoutMs: parseDialTimeout(section),
  };
}

/**
 * The endpoints of a registry in the order in which they are tried: the file's hosts, then its server. `file` is for messages.
 * Throws FailedPrecondition that names file and key, never a value that could be secret.
 */
export function parseHostsToml(text: string, file: string): HostSection[] {
  let root: Table;
  try {
    root = parse(text);
  } catch (error) {
    // The parser's message quotes lines of the file, which may hold a header with a token: only the position is told.
    const place = error instanceof TomlError ? `line ${error.line}, column ${error.column}` : 'somewhere';
    throw new AppError('FailedPrecondition', { op: 'read', subject: file, what: `not TOML at ${place}` });
  }
  const top = new Section(root, file, '');
  const hosts = top.get('host') ?? {};
  if (typeof hosts !== 'object' || hosts === null || Array.isArray(hosts)) throw top.bad('host', 'not a table');
  const sections = Object.entries(hosts).map(([name, table]) => {
    if (typeof table !== 'object' || table === null || Array.isArray(table)) throw top.bad(`host.${JSON.stringify(name)}`, 'not a table');
    const section = new Section(table as Table, file, 'host');
    return parseSection(section, { key: 'name', text: name });
  });
  if (sections.length > MAX_MIRRORS) throw top.bad('host', `${sections.length} hosts, more than ${MAX_MIRRORS}`);
  const server = top.get('server');
  sections.push(parseSection(top, server === undefined || server === '' ? undefined : { key: 'server', text: server }));
  return sections;
}
