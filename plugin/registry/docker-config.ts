/**
 * Credentials from a docker `config.json` (also the content of a `kubernetes.io/dockerconfigjson` Secret). Source: docker/cli
 * configuration file; overlaybd-formats.md 6.4 for keys with repository prefixes. The longest matching key wins, whatever its place.
 */
import { readFile, stat } from 'node:fs/promises';
import { type Clock, systemClock } from '../base/clock.ts';
import { AppError, describeError, errnoOf } from '../base/errors.ts';
import { type Logger, silentLogger } from '../base/log.ts';
import type { HelperOptions } from './credential-helper.ts';
import type { Credential, CredentialSource } from './credentials.ts';
import { HelperAnswers } from './helper-answers.ts';
import { KEEP_CREDENTIALS_MS, MAX_DOCKER_CONFIG_BYTES } from './limits.ts';

interface AuthEntry {
  /** `host` or `host/path`, normalised. */
  readonly key: string;
  readonly credential: Credential;
}

/** A parsed config.json: immutable, secrets inside. */
export interface DockerConfig {
  readonly auths: readonly AuthEntry[];
  readonly credHelpers: ReadonlyMap<string, string>;
  readonly credsStore: string | undefined;
}

/** Docker Hub has many names in such files. */
const HUB_ALIASES = new Set(['index.docker.io', 'registry-1.docker.io', 'registry.hub.docker.com']);
/** The name under which docker keeps its own login in helpers. */
const HUB_SERVER = 'https://index.docker.io/v1/';

/** `registry.example/team` of `https://Registry.example/team/v1/`; Docker Hub's names become the one that references have. */
export function normaliseKey(text: string): string {
  const bare = text
    .replace(/^https?:\/\//, '')
    .replace(/\/+$/, '')
    .replace(/\/v[12]$/, '');
  const slash = bare.indexOf('/');
  const host = (slash === -1 ? bare : bare.slice(0, slash)).toLowerCase();
  return `${HUB_ALIASES.has(host) ? 'docker.io' : host}${slash === -1 ? '' : bare.slice(slash)}`;
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' && value !== '' ? value : undefined;
}

function parseEntry(value: unknown): Credential | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  const entry = value as Record<string, unknown>;
  const registryToken = text(entry.registrytoken);
  if (registryToken !== undefined) return { registryToken };
  const identityToken = text(entry.identitytoken);
  if (identityToken !== undefined) return { identityToken };
  const auth = text(entry.auth);
  if (auth !== undefined) {
    const decoded = Buffer.from(auth, 'base64').toString('utf8').replace(/\0+$/, '');
    const colon = decoded.indexOf(':');
    return colon < 1 ? undefined : { username: decoded.slice(0, colon), password: decoded.slice(colon + 1) };
  }
  const username = text(entry.username);
  const password = text(entry.password);
  return username === undefined || password === undefined ? undefined : { username, password };
}

function table(value: unknown): [string, unknown][] {
  return typeof value === 'object' && value !== null && !Array.isArray(value) ? Object.entries(value) : [];
}

/** Parses the file's text. Throws FailedPrecondition that names `file` and quotes nothing. Entries without credentials are left out. */
export function parseDockerConfig(json: string, file: string): DockerConfig {
  let parsed: unknown;
  try {
    parsed = JSON.parse(json);
  } catch {
    throw new AppError('FailedPrecondition', { op: 'read', subject: file, what: 'not JSON' });
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw new AppError('FailedPrecondition', { op: 'read', subject: file, what: 'not a JSON object' });
  }
  const root = parsed as Record<string, unknown>;
  const auths = table(root.auths).flatMap(([key, value]): AuthEntry[] => {
    const credential = parseEntry(value);
    return credential === undefined ? [] : [{ key: normaliseKey(key), credential }];
  });
  const helpers = table(root.credHelpers).flatMap(([key, value]): [string, string][] => {
    const name = text(value);
    return name === undefined ? [] : [[normaliseKey(key), name]];
  });
  return { auths, credHelpers: new Map(helpers), credsStore: text(root.credsStore) };
}

/** The entry with the longest key that is the host, or the host and leading parts of the repository path. */
export function matchAuth(config: DockerConfig, host: string, repository: string): AuthEntry | undefined {
  const name = `${host.toLowerCase()}/${repository}`;
  let best: AuthEntry | undefined;
  for (const entry of config.auths) {
    const isMatch = name === entry.key || name.startsWith(`${entry.key}/`);
    if (isMatch && (best === undefined || entry.key.length > best.key.length)) best = entry;
  }
  return best;
}

export interface DockerConfigOptions extends HelperOptions {
  readonly clock?: Clock;
  /** Told once when the file or a helper begins to fail. */
  readonly logger?: Logger;
}

/** The file, read again when it changes. */
class ConfigFile {
  private readonly path: string;
  private readonly parts: { readonly clock: Clock; readonly logger: Logger; readonly onChange: () => void };
  private config: DockerConfig | undefined;
  /** What the file looked like when `config` was read, and when it last did. */
  private stamp = '';
  private goodAtMs = 0;
  private isFailing = false;

  constructor(path: string, parts: { readonly clock: Clock; readonly logger: Logger; readonly onChange: () => void }) {
    this.path = path;
    this.parts = parts;
  }

  /**
   * Its content; undefined when there is no file. One that cannot be read or understood, as while somebody writes it in place, leaves the
   * earlier content in use for {@link KEEP_CREDENTIALS_MS}; then, or without one, FailedPrecondition.
   */
  async load(): Promise<DockerConfig | undefined> {
    const { clock, logger } = this.parts;
    try {
      await this.refresh();
      this.goodAtMs = clock.monotonicMs();
      this.isFailing = false;
    } catch (error) {
      if (!this.isFailing) {
        logger.error({ err: describeError(error) }, 'docker’s configuration cannot be read; the earlier one, if any, stays in use');
      }
      this.isFailing = true;
      if (this.config === undefined || clock.monotonicMs() - this.goodAtMs >= KEEP_CREDENTIALS_MS) throw error;
    }
    return this.config;
  }

  private async refresh(): Promise<void> {
    const { path } = this;
    try {
      const info = await stat(path, { bigint: true });
      const found = `${info.ino} ${info.size} ${info.mtimeNs}`;
      if (found === this.stamp) return;
      if (info.size > BigInt(MAX_DOCKER_CONFIG_BYTES)) {
        throw new AppError('FailedPrecondition', { op: 'read', subject: path, what: `larger than ${MAX_DOCKER_CONFIG_BYTES} bytes` });
      }
      this.config = parseDockerConfig(await readFile(path, 'utf8'), path);
      this.stamp = found;
      this.parts.onChange();
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') {
        this.stamp = '';
        this.config = undefined;
        return;
      }
      throw error instanceof AppError
        ? error
        : new AppError('FailedPrecondition', { op: 'read', subject: path, what: errnoOf(error) ?? 'cannot be read', cause: error });
    }
  }
}

/**
 * A source over one file that is read again when it changes; a missing file means anonymous. Order: a key with a path, the registry's own
 * helper, a key with the host alone, the general helper. While the file is broken or a helper fails, what they said last stays in use.
 */
export function dockerConfigSource(path: string, options: DockerConfigOptions = {}): CredentialSource {
  const clock = options.clock ?? systemClock;
  const logger = options.logger ?? silentLogger;
  const helpers = new HelperAnswers(options, { clock, logger });
  const file = new ConfigFile(path, { clock, logger, onChange: () => helpers.clear() });
  const ask = (helper: string, host: string): Promise<Credential | undefined> =>
    helpers.ask(helper, host === 'docker.io' ? HUB_SERVER : host);

  return async (host, repository) => {
    const current = await file.load();
    if (current === undefined) return undefined;
    const entry = matchAuth(current, host, repository);
    if (entry?.key.includes('/')) return entry.credential;
    const helper = current.credHelpers.get(host.toLowerCase());
    if (helper !== undefined) {
      const found = await ask(helper, host);
      if (found !== undefined) return found;
    }
    if (entry !== undefined) return entry.credential;
    return current.credsStore === undefined ? undefined : ask(current.credsStore, host);
  };
}
