/**
 * Debian's docker-registry on loopback, plain HTTP, file-system storage; its access log is the witness for "what was fetched". It can be
 * stopped and started on the same port with the same content. Source of the configuration: distribution 2.8, configuration.md.
 */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { answersHttp, freePort } from './net.ts';
import { Daemon, run } from './process.ts';
import { Scratch } from './scratch.ts';
import { waitFor } from './wait.ts';

/** One answered request, from the registry's JSON log. */
export interface AccessLogEntry {
  timeMs: number;
  method: string;
  /** With the query. */
  uri: string;
  kind: 'blob' | 'manifest' | 'other';
  /** `team/app`, empty for requests that name none. */
  repository: string;
  /** The digest of a blob or of a manifest asked for by digest; empty otherwise. */
  digest: string;
  status: number;
  /** Bytes of the body that the registry wrote; for a reader that hung up early, more than what it took. */
  bytesWritten: number;
  durationMs: number;
  userAgent: string;
}

export interface DockerRegistryOptions {
  /** Fixed port; default: a free one. */
  port?: number;
  /** Webhook receivers that are told of every push and pull. */
  notifications?: readonly { name: string; url: string; headers?: Record<string, string[]> }[];
  /** Asks for this name and password (Basic). */
  htpasswd?: { username: string; password: string };
}

const UNIT_MS: Record<string, number> = { h: 3_600_000, m: 60_000, s: 1000, ms: 1, µs: 1e-3, us: 1e-3, ns: 1e-6 };

/** Go's duration text (`1m2.5s`, `814.8µs`) in milliseconds. */
function goDurationMs(text: string): number {
  let sum = 0;
  for (const [, value, unit] of text.matchAll(/([0-9.]+)(h|ms|µs|us|ns|m|s)/g)) sum += Number(value) * (UNIT_MS[unit ?? ''] ?? 0);
  return sum;
}

/** Reads the lines of the registry's log that tell of an answered request; other lines are passed over. */
export function parseAccessLog(text: string): AccessLogEntry[] {
  const entries: AccessLogEntry[] = [];
  for (const line of text.split('\n')) {
    if (!line.startsWith('{')) continue;
    let fields: Record<string, unknown>;
    try {
      fields = JSON.parse(line) as Record<string, unknown>;
    } catch (error) {
      // The last line may still be being written.
      if (error instanceof SyntaxError) continue;
      throw error;
    }
    if (typeof fields['http.response.status'] !== 'number') continue;
    const uri = String(fields['http.request.uri']);
    const match = /^\/v2\/(.+?)\/(blobs|manifests)\/([^?]+)/.exec(uri);
    const isUpload = match?.[3]?.startsWith('uploads') ?? false;
    entries.push({
      timeMs: Date.parse(String(fields.time)),
      method: String(fields['http.request.method']),
      uri,
      kind: match === null || isUpload ? 'other' : match[2] === 'blobs' ? 'blob' : 'manifest',
      repository: match?.[1] ?? '',
      digest: match?.[3]?.startsWith('sha256:') === true ? match[3] : '',
      status: fields['http.response.status'],
      bytesWritten: Number(fields['http.response.written'] ?? 0),
      durationMs: goDurationMs(String(fields['http.response.duration'] ?? '')),
      userAgent: String(fields['http.request.useragent'] ?? ''),
    });
  }
  return entries;
}

export class DockerRegistry implements AsyncDisposable {
  readonly port: number;
  /** `127.0.0.1:5000`, as it stands in image references. */
  readonly host: string;
  /** Value of an Authorization header; undefined when the registry asks for none. */
  readonly authorization: string | undefined;
  private readonly scratch: Scratch;
  private readonly configPath: string;
  private readonly logPath: string;
  private daemon: Daemon | undefined;
  private barriers = 0;
  private forgotten = 0;

  private constructor(scratch: Scratch, port: number, configPath: string, authorization: string | undefined) {
    this.scratch = scratch;
    this.port = port;
    this.host = `127.0.0.1:${port}`;
    this.configPath = configPath;
    this.logPath = scratch.join('registry.log');
    this.authorization = authorization;
  }

  static async start(options: DockerRegistryOptions = {}): Promise<DockerRegistry> {
    const scratch = await Scratch.create('registry');
    try {
      const port = options.port ?? (await freePort());
      const auth: Record<string, unknown> = {};
      let authorization: string | undefined;
      if (options.htpasswd !== undefined) {
        const { username, password } = options.htpasswd;
        // The registry reads bcrypt alone.
        const script = 'print crypt($ARGV[0], q{$2y$05$abcdefghijklmnopqrstuu})';
        const hashed = (await run('perl', ['-e', script, password])).stdout;
        auth.auth = { htpasswd: { realm: 'test', path: await scratch.file('htpasswd', `${username}:${hashed}\n`) } };
        authorization = `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`;
      }
      const config = {
        version: '0.1',
        log: { level: 'info', formatter: 'json', accesslog: { disabled: true } },
        storage: {
          filesystem: { rootdirectory: await scratch.dir('storage') },
          delete: { enabled: true },
          maintenance: { uploadpurging: { enabled: false } },
        },
        http: { addr: `127.0.0.1:${port}`, secret: 'test', draintimeout: '1s' },
        notifications: {
          endpoints: (options.notifications ?? []).map((n) => ({ ...n, timeout: '5s', threshold: 3, backoff: '200ms' })),
        },
        ...auth,
      };
      // JSON is YAML.
      const configPath = await scratch.file('config.yml', JSON.stringify(config, undefined, 1));
      const registry = new DockerRegistry(scratch, port, configPath, authorization);
      await registry.startAgain();
      return registry;
    } catch (error) {
      await scratch[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The registry's base address. */
  get url(): string {
    return `http://${this.host}`;
  }

  /** Where a blob's bytes lie on disk, for tests that damage them. */
  blobPath(digest: string): string {
    const hex = digest.slice('sha256:'.length);
    return join(this.scratch.path, 'storage/docker/registry/v2/blobs/sha256', hex.slice(0, 2), hex, 'data');
  }

  /** Starts a stopped registry again, on the same port. */
  async startAgain(): Promise<void> {
    if (this.daemon !== undefined) return;
    const daemon = await Daemon.start({
      name: 'docker-registry',
      command: 'docker-registry',
      args: ['serve', this.configPath],
      logPath: this.logPath,
    });
    this.daemon = daemon;
    await daemon.waitReady('an answer to /v2/', () => answersHttp(`${this.url}/v2/`));
  }

  /** Ends the registry: connections are refused until {@link startAgain}. */
  async stop(): Promise<void> {
    const daemon = this.daemon;
    this.daemon = undefined;
    await daemon?.stop({ signal: 'SIGKILL' });
  }

  /**
   * Every request answered so far (since {@link forget}). The log is written after the answer, so a request of our own is sent as a barrier
   * and waited for. Requests still being answered are not in the list.
   */
  async requests(): Promise<AccessLogEntry[]> {
    const barrier = `/v2/?barrier=${++this.barriers}`;
    if (this.daemon !== undefined) {
      await answersHttp(this.url + barrier);
      await waitFor(() => readFileSync(this.logPath, 'utf8').includes(`"${barrier}"`), { what: "the registry's log" });
    }
    const all = parseAccessLog(readFileSync(this.logPath, 'utf8')).filter((e) => !e.uri.startsWith('/v2/?barrier='));
    return all.slice(this.forgotten);
  }

  /** Forgets all requests answered so far. */
  async forget(): Promise<void> {
    this.forgotten += (await this.requests()).length;
  }

  /** Body bytes of blobs (of one digest, if given) that were sent since {@link forget}. */
  async blobBytesSent(digest?: string): Promise<number> {
    const entries = await this.requests();
    return entries
      .filter((e) => e.kind === 'blob' && e.method === 'GET' && e.status < 300 && (digest === undefined || e.digest === digest))
      .reduce((sum, e) => sum + e.bytesWritten, 0);
  }

  /** Waits until no blob bytes were sent for `quietMs`, and returns how many were sent since {@link forget}. */
  async blobBytesSentWhenQuiet(quietMs = 500, timeoutMs = 30_000): Promise<number> {
    let last = await this.blobBytesSent();
    let since = performance.now();
    const end = since + timeoutMs;
    while (performance.now() - since < quietMs) {
      if (performance.now() > end) throw new Error(`the registry at ${this.host} was not quiet for ${quietMs} ms within ${timeoutMs} ms`);
      await delay(50);
      const now = await this.blobBytesSent();
      if (now !== last) {
        last = now;
        since = performance.now();
      }
    }
    return last;
  }

  logTail(): string {
    return this.daemon?.logTail() ?? '(registry is stopped)';
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    await this.scratch[Symbol.asyncDispose]();
  }
}
