/**
 * From a registry's name to the endpoints that serve it: containerd's `certs.d` directories, else the registry itself. Files are looked
 * at again at most once a second, and read again when they changed; a broken edit keeps the last good settings and says so in the log.
 */
import { readdir, readFile, stat } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { LRUCache } from 'lru-cache';
import type { Clock } from '../base/clock.ts';
import { AppError, describeError, errnoOf } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { LogRepeater } from '../base/log-repeater.ts';
import { ALL_CAPABILITIES, type Capability, type HostSection, parseHostsToml } from './hosts-toml.ts';
import { CONNECT_TIMEOUT_MS, FILE_RECHECK_MS, MAX_HOST_FILE_BYTES, MAX_HOSTS } from './limits.ts';
import { isLocalHost, isRegistryHost } from './reference.ts';
import { DEFAULT_TLS, INSECURE_TLS, type TlsMaterial, TlsProfile } from './tls.ts';

/** One place that serves a registry's content: the registry or a mirror. */
export interface Endpoint {
  /** `https://mirror.example:5000/v2`; equal for equal places, also after files were read again. For messages and health. */
  readonly key: string;
  readonly origin: string;
  /** Stands before `/<repository>/…`. */
  readonly basePath: string;
  /** `?ns=<registry>` for mirrors, else empty: tells a mirror of several registries which one is meant. */
  readonly namespaceQuery: string;
  /** Whose credentials count here: the registry's name, or the mirror's own, which never gets those of the registry. */
  readonly credentialHost: string;
  readonly capabilities: ReadonlySet<Capability>;
  /** Headers of the hosts file; they may be secret and never go to another origin. */
  readonly headers: Readonly<Record<string, string>>;
  readonly tls: TlsProfile;
  readonly connectTimeoutMs: number;
}

export interface HostResolverOptions {
  /** Directories with one directory a registry, as containerd's `config_path`; the first that has the registry wins. */
  readonly hostsDirs: readonly string[];
  /** Registries spoken to without TLS. Loopback ones are anyway, unless their port is 443. */
  readonly plainHttpHosts: readonly string[];
  /** Registries whose certificate is not checked. */
  readonly insecureHosts: readonly string[];
  readonly clock: Clock;
  readonly logger: Logger;
}

interface Entry {
  checkedMs: number;
  dir: string | undefined;
  /** Certificates that hosts.toml names, as absolute paths. */
  files: readonly string[];
  /** Identities, sizes and change times of the directory's files and of `files`, taken before they were read. */
  stamp: string;
  endpoints: readonly Endpoint[];
}

export class HostResolver {
  private readonly options: HostResolverOptions;
  private readonly entries = new LRUCache<string, Entry>({ max: MAX_HOSTS });
  private readonly pending = new Map<string, Promise<Entry>>();
  private readonly log: LogRepeater;

  constructor(options: HostResolverOptions) {
    this.options = options;
    this.log = new LogRepeater(options.logger, options.clock);
  }

  /**
   * Endpoints in the order in which they are tried. Throws InvalidArgument for a host that is none, FailedPrecondition for files that
   * cannot be read or understood (only if there are no earlier settings to go on with).
   */
  async resolve(host: string): Promise<readonly Endpoint[]> {
    const entry = this.entries.get(host);
    if (entry !== undefined && this.options.clock.monotonicMs() - entry.checkedMs < FILE_RECHECK_MS) return entry.endpoints;
    let load = this.pending.get(host);
    if (load === undefined) {
      load = this.refresh(host, entry).finally(() => this.pending.delete(host));
      this.pending.set(host, load);
    }
    return (await load).endpoints;
  }

  private async refresh(host: string, known: Entry | undefined): Promise<Entry> {
    if (!isRegistryHost(host)) {
      throw new AppError('InvalidArgument', {
        op: 'resolve registry',
        subject: JSON.stringify(host.slice(0, 100)),
        what: 'not a registry host',
      });
    }
    const checkedMs = this.options.clock.monotonicMs();
    let entry: Entry;
    try {
      const found = await this.findDir(host);
      if (found === undefined) {
        entry = { checkedMs, dir: undefined, files: [], stamp: '', endpoints: [this.toEndpoint(host, undefined, undefined)] };
      } else {
        const isSame = known?.dir === found && known.stamp === (await stampOf(found, known.files));
        entry = isSame ? { ...known, checkedMs } : await this.loadDir(host, found, checkedMs);
      }
    } catch (error) {
      if (known === undefined) throw error;
      this.log.write('error', { host, err: describeError(error) }, 'registry host settings cannot be read; the earlier ones stay in use');
      entry = { ...known, checkedMs };
    }
    this.entries.set(host, entry);
    return entry;
  }

  /** `host_port_`, `host:port`, `_default`: containerd's order. */
  private async findDir(host: string): Promise<string | undefined> {
    const colon = host.lastIndexOf(':');
    const names = colon > 0 ? [`${host.slice(0, colon)}_${host.slice(colon + 1)}_`, host, '_default'] : [host, '_default'];
    for (const root of this.options.hostsDirs) {
      for (const name of names) {
        const path = join(root, name);
        try {
          if ((await stat(path)).isDirectory()) return path;
        } catch (error) {
          if (errnoOf(error) !== 'ENOENT' && errnoOf(error) !== 'ENOTDIR') throw unreadable(path, error);
        }
      }
    }
    return undefined;
  }

  private async loadDir(host: string, dir: string, checkedMs: number): Promise<Entry> {
    const dirStamp = await stampOfDir(dir);
    const file = join(dir, 'hosts.toml');
    const text = await readIfThere(file);
    const sections = text === undefined || text.length === 0 ? undefined : parseHostsToml(new TextDecoder().decode(text), file);
    const named: readonly CertificateFiles[] = sections ?? [await certificateFiles(dir)];
    const absolute = (name: string): string => (isAbsolute(name) ? name : join(dir, name));
    const files = named.flatMap(({ caFiles, clientFiles }) => [
      ...caFiles.map(absolute),
      ...clientFiles.flatMap(({ certificate, key }) => (key === '' ? [absolute(certificate)] : [absolute(certificate), absolute(key)])),
    ]);
    const stamp = `${dirStamp}\n${await stampOfFiles(files)}`;
    const endpoints = await Promise.all(
      named.map(async (certificates, index) => this.toEndpoint(host, sections?.[index], await readMaterial(certificates, absolute))),
    );
    return { checkedMs, dir, files, stamp, endpoints };
  }

  private toEndpoint(host: string, section: HostSection | undefined, material: TlsMaterial | undefined): Endpoint {
    const isInsecure = this.options.insecureHosts.includes(host);
    const fallback = this.defaultOrigin(host);
    const origin = section?.origin ?? fallback.origin;
    // The lists and the leniency towards loopback concern the registry itself, not mirrors that a file names.
    const isRegistry = origin === fallback.origin;
    const originHost = new URL(origin).host;
    const isSameHost = originHost === new URL(fallback.origin).host;
    const skipVerify = section?.skipVerify ?? (isRegistry && (isInsecure || fallback.skipVerify));
    const basePath = section?.origin === undefined ? '/v2' : section.basePath;
    return {
      key: `${origin}${basePath}`,
      origin,
      basePath,
      namespaceQuery: isSameHost ? '' : `ns=${encodeURIComponent(host)}`,
      credentialHost: isSameHost ? host : originHost,
      capabilities: section?.capabilities ?? ALL_CAPABILITIES,
      headers: section?.headers ?? {},
      tls:
        material === undefined || (material.ca.length === 0 && material.clients.length === 0)
          ? skipVerify
            ? INSECURE_TLS
            : DEFAULT_TLS
          : new TlsProfile({ ...material, skipVerify }),
      connectTimeoutMs: section?.connectTimeoutMs ?? CONNECT_TIMEOUT_MS,
    };
  }

  private defaultOrigin(host: string): { origin: string; skipVerify: boolean } {
    const isLocal = isLocalHost(host);
    const isPlain = this.options.plainHttpHosts.includes(host) || (isLocal && !host.endsWith(':443'));
    const name = host === 'docker.io' ? 'registry-1.docker.io' : host;
    return { origin: new URL(`${isPlain ? 'http' : 'https'}://${name}`).origin, skipVerify: isLocal };
  }
}

function unreadable(path: string, cause: unknown): AppError {
  return new AppError('FailedPrecondition', { op: 'read', subject: path, what: errnoOf(cause) ?? 'cannot be read', cause });
}

async function readIfThere(path: string): Promise<Uint8Array | undefined> {
  try {
    const info = await stat(path);
    if (info.size > MAX_HOST_FILE_BYTES) {
      throw new AppError('FailedPrecondition', { op: 'read', subject: path, what: `${info.size} bytes, more than ${MAX_HOST_FILE_BYTES}` });
    }
    return await readFile(path);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error instanceof AppError ? error : unreadable(path, error);
  }
}

/** Files of one host's directory that are looked at. */
const MAX_DIR_FILES = 64;

type CertificateFiles = Pick<HostSection, 'caFiles' | 'clientFiles'>;

/** Docker's older way, which containerd falls back to: `*.crt` are authorities, `x.cert` and `x.key` a client's pair. */
async function certificateFiles(dir: string): Promise<CertificateFiles> {
  const names = (await readdir(dir)).sort().slice(0, MAX_DIR_FILES);
  return {
    caFiles: names.filter((name) => name.endsWith('.crt')),
    clientFiles: names
      .filter((name) => name.endsWith('.cert'))
      .map((name) => ({ certificate: name, key: name.replace(/\.cert$/, '.key') })),
  };
}

async function readMaterial(files: CertificateFiles, absolute: (name: string) => string): Promise<TlsMaterial> {
  const read = async (name: string): Promise<Uint8Array> => {
    const path = absolute(name);
    const bytes = await readIfThere(path);
    if (bytes === undefined) {
      throw new AppError('FailedPrecondition', { op: 'read', subject: path, what: 'is named by a hosts file but missing' });
    }
    return bytes;
  };
  return {
    ca: await Promise.all(files.caFiles.map(read)),
    clients: await Promise.all(
      files.clientFiles.map(async ({ certificate, key }) => {
        const bytes = await read(certificate);
        return { certificate: bytes, key: key === '' ? bytes : await read(key) };
      }),
    ),
    skipVerify: false,
  };
}

async function stampOf(dir: string, files: readonly string[]): Promise<string> {
  return `${await stampOfDir(dir)}\n${await stampOfFiles(files)}`;
}

/** Changes whenever hosts.toml or a certificate beside it does; the first 64 files of the directory count. */
async function stampOfDir(dir: string): Promise<string> {
  const names = (await readdir(dir)).sort().slice(0, MAX_DIR_FILES);
  return stampOfFiles([join(dir, 'hosts.toml'), ...names.map((name) => join(dir, name))]);
}

async function stampOfFiles(paths: readonly string[]): Promise<string> {
  const parts = await Promise.all(
    paths.map(async (path) => {
      try {
        const info = await stat(path, { bigint: true });
        return `${path} ${info.ino} ${info.size} ${info.mtimeNs}`;
      } catch (error) {
        return `${path} ${errnoOf(error) ?? 'unknown'}`;
      }
    }),
  );
  return parts.join('\n');
}
