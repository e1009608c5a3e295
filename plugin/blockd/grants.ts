/**
 * Registries as some images reach them: credentials and transport rules of a cache, for its repositories alone and for a short time. In
 * memory only; whoever granted says it again while it is needed. Ours.
 */
import { z } from 'zod';
import type { Config } from '../base/config/config.ts';
import { AppError, describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { BlobSource } from '../file/device-spec.ts';
import { RegistryClient } from '../registry/client.ts';
import { firstCredential } from '../registry/credentials.ts';
import { isRefusal } from '../registry/http-errors.ts';
import { nodeCredentials, vaultPathsOf } from '../registry/node-credentials.ts';
import { formatRepository } from '../registry/reference.ts';
import { sealedSources } from '../registry/vault/sealed-source.ts';
import type { FetchRange } from './fetch/fetch-types.ts';
import { registryRanges } from './range-source.ts';

/** Renewed three times within it. */
const GRANT_TTL_MS = 60_000;

/** Creations at once are a few; each holds connections. */
const MAX_GRANTS = 64;

const host = z.string().min(1).max(255);

const grantSchema = z.strictObject({
  repositories: z.array(z.strictObject({ host, repository: host })).max(256),
  credentials: z.array(z.strictObject({ host, username: z.string().max(1024), password: z.string().max(65_536) })).max(32),
  plainHttp: z.array(host).max(64),
  insecure: z.array(host).max(64),
});
/** Secret: never logged. */
export type Grant = z.infer<typeof grantSchema>;

interface Active {
  /** Tells whether a renewal changes anything. */
  text: string;
  repositories: ReadonlySet<string>;
  client: RegistryClient;
  fetchRange: FetchRange;
  timer: NodeJS.Timeout;
}

export class Grants {
  private readonly parts: { config: Config; log: Logger; otherwise: FetchRange };
  private readonly active = new Map<string, Active>();

  /** `otherwise` fetches what no grant is about. */
  constructor(parts: { config: Config; log: Logger; otherwise: FetchRange }) {
    this.parts = parts;
  }

  /** Makes, changes or renews the grant of an owner. Errors: ResourceExhausted, InvalidArgument (without what is in it, which is secret). */
  set(owner: string, request: unknown): void {
    const parsed = grantSchema.safeParse(request);
    if (!parsed.success) {
      const what = `malformed at ${parsed.error.issues[0]?.path.join('.') ?? ''}`;
      throw new AppError('InvalidArgument', { op: 'grant access for', subject: owner, what });
    }
    const grant = parsed.data;
    const text = JSON.stringify(grant);
    const before = this.active.get(owner);
    if (before?.text === text) {
      before.timer.refresh();
      // Newest last.
      this.active.delete(owner);
      this.active.set(owner, before);
      return;
    }
    if (before === undefined && this.active.size >= MAX_GRANTS) {
      throw new AppError('ResourceExhausted', { op: 'grant access for', subject: owner, what: `${MAX_GRANTS} others have grants` });
    }
    this.drop(owner);
    const client = this.clientOf(grant);
    const timer = setTimeout(() => this.drop(owner), GRANT_TTL_MS);
    timer.unref();
    this.active.set(owner, {
      text,
      repositories: new Set(grant.repositories.map(formatRepository)),
      client,
      fetchRange: registryRanges(client),
      timer,
    });
  }

  /** The fetch function: by the grants of the blob's repositories, the newest first, while they are refused; then as usual. */
  readonly fetchRange: FetchRange = async (source, ...rest) => {
    for (const grant of this.grantsFor(source)) {
      try {
        return await grant.fetchRange(source, ...rest);
      } catch (error) {
        const [, , { signal }] = rest;
        // Ended or changed meanwhile, its connections were cut: that says nothing of the registry, and what is granted now counts.
        if (!signal.aborted && !this.isActive(grant)) return this.fetchRange(source, ...rest);
        if (!isRefusal(error)) throw error;
        this.parts.log.debug({ digest: source.digest, reason: describeError(error) }, 'a grant is refused; another may do');
      }
    }
    return this.parts.otherwise(source, ...rest);
  };

  private isActive(grant: Active): boolean {
    for (const active of this.active.values()) if (active === grant) return true;
    return false;
  }

  private grantsFor({ repositories }: BlobSource): Active[] {
    if (this.active.size === 0) return [];
    const names = repositories.map(formatRepository);
    return [...this.active.values()].filter((grant) => names.some((name) => grant.repositories.has(name))).reverse();
  }

  private clientOf({ credentials, plainHttp, insecure }: Grant): RegistryClient {
    const { config, log } = this.parts;
    const { hostsDir, responseTimeoutMs, stallTimeoutMs } = config.registry;
    const byHost = new Map(credentials.map(({ host: name, username, password }) => [name, { username, password }]));
    return new RegistryClient({
      hostsDirs: [hostsDir],
      plainHttpHosts: [...config.registry.plainHttp, ...plainHttp],
      insecureHosts: insecure,
      credentials: firstCredential(async (name) => byHost.get(name), nodeCredentials(config, sealedSources(vaultPathsOf(config)), log)),
      logger: log,
      headersTimeoutMs: responseTimeoutMs,
      bodyIdleTimeoutMs: stallTimeoutMs,
    });
  }

  private drop(owner: string): void {
    const grant = this.active.get(owner);
    if (grant === undefined) return;
    this.active.delete(owner);
    clearTimeout(grant.timer);
    grant.client.close().catch((err: unknown) => this.parts.log.warn({ err, owner }, 'connections of a grant did not close'));
  }
}
