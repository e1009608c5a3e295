/**
 * The registry client: the one way in which the product talks to registries. Holds connections, logins and routes; make one a process
 * and close it at the end.
 */
import { type Clock, systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { type Logger, silentLogger } from '../base/log.ts';
import type { Descriptor } from '../image/oci/descriptor.ts';
import { Authenticator } from './auth.ts';
import { type BlobIdentity, BlobReader } from './blobs.ts';
import { anonymous, type CredentialSource } from './credentials.ts';
import { HostResolver } from './hosts.ts';
import { Lists } from './lists.ts';
import { type CallOptions, type FetchedManifest, ManifestReader, type ResolveOptions } from './manifests.ts';
import { Mirrors } from './mirrors.ts';
import { type Environment, ProxyRules } from './proxy-env.ts';
import { ManifestWriter } from './push.ts';
import { type RangeOptions, RangeReader, type RangeResult } from './range.ts';
import { checkRepository, type Repository } from './reference.ts';
import { Session } from './session.ts';
import { Transport } from './transport.ts';
import { type ReadAt, Uploader, type UploadOptions, type UploadOutcome } from './upload.ts';

export interface RegistryClientOptions {
  /** containerd's `config_path` directories (`/etc/containerd/certs.d`). Default: none. */
  readonly hostsDirs?: readonly string[];
  /** Registries (`host:port`) spoken to without TLS. Loopback ones are anyway. Default: none. */
  readonly plainHttpHosts?: readonly string[];
  /** Registries whose certificate is not checked. Default: none. */
  readonly insecureHosts?: readonly string[];
  /** Default: anonymous. */
  readonly credentials?: CredentialSource;
  /** Where HTTP_PROXY, HTTPS_PROXY and NO_PROXY are read from. Default: the process's environment. */
  readonly env?: Environment;
  readonly clock?: Clock;
  readonly logger?: Logger;
  /** Sent with every request. */
  readonly userAgent?: string;
  /** 1 … 1024; default 128 (see limits.ts). */
  readonly connectionsPerOrigin?: number;
  /** Milliseconds until an answer begins; default 15 s. */
  readonly headersTimeoutMs?: number;
  /** Milliseconds between two pieces of an answer; default 10 s. */
  readonly bodyIdleTimeoutMs?: number;
  /** Told when a token for reading also allows writing: the credentials behind it can do more than they need. */
  readonly onExcess?: (repository: Repository, actions: string) => void;
}

export class RegistryClient {
  private readonly transport: Transport;
  private readonly authenticator: Authenticator;
  private readonly ranges: RangeReader;
  private readonly manifests: ManifestReader;
  private readonly blobs: BlobReader;
  private readonly lists: Lists;
  private readonly uploader: Uploader;
  private readonly writer: ManifestWriter;

  constructor(options: RegistryClientOptions = {}) {
    const clock = options.clock ?? systemClock;
    const logger = options.logger ?? silentLogger;
    const userAgent = options.userAgent ?? 'overlaybd-sidecar';
    this.transport = new Transport({
      proxies: new ProxyRules(options.env ?? process.env),
      logger,
      ...(options.connectionsPerOrigin === undefined ? {} : { connectionsPerOrigin: options.connectionsPerOrigin }),
      ...(options.headersTimeoutMs === undefined ? {} : { headersTimeoutMs: options.headersTimeoutMs }),
      ...(options.bodyIdleTimeoutMs === undefined ? {} : { bodyIdleTimeoutMs: options.bodyIdleTimeoutMs }),
    });
    const { transport } = this;
    const credentials = options.credentials ?? anonymous;
    this.authenticator = new Authenticator({
      transport,
      credentials,
      clock,
      logger,
      userAgent,
      ...(options.onExcess === undefined ? {} : { onExcess: options.onExcess }),
    });
    const hosts = new HostResolver({
      hostsDirs: options.hostsDirs ?? [],
      plainHttpHosts: options.plainHttpHosts ?? [],
      insecureHosts: options.insecureHosts ?? [],
      clock,
      logger,
    });
    const session = new Session({ transport, authenticator: this.authenticator, clock, userAgent });
    const mirrors = new Mirrors(hosts, clock);
    this.ranges = new RangeReader(session, mirrors);
    this.manifests = new ManifestReader(session, mirrors);
    this.blobs = new BlobReader(session, mirrors);
    this.lists = new Lists(session, mirrors, this.manifests);
    this.uploader = new Uploader(session, hosts);
    this.writer = new ManifestWriter(session, hosts, this.manifests);
  }

  /** See {@link RangeReader.fetch}. */
  fetchRange(
    repository: Repository,
    digest: Digest,
    sizeBytes: number,
    offset: number,
    length: number,
    options: RangeOptions = {},
  ): Promise<RangeResult> {
    return this.ranges.fetch(repository, digest, sizeBytes, offset, length, options);
  }

  /** See {@link ManifestReader.resolve}. */
  async resolve(repository: Repository, tagOrDigest: string, options?: ResolveOptions): Promise<FetchedManifest['descriptor']> {
    return this.manifests.resolve(checkRepository(repository), tagOrDigest, options);
  }

  /** See {@link ManifestReader.get}. */
  async getManifest(repository: Repository, tagOrDigest: string, options?: ResolveOptions): Promise<FetchedManifest> {
    return this.manifests.get(checkRepository(repository), tagOrDigest, options);
  }

  /** See {@link BlobReader.stream}. */
  streamBlob(repository: Repository, blob: BlobIdentity, options?: { signal?: AbortSignal }): AsyncGenerator<Uint8Array, void, void> {
    return this.blobs.stream(checkRepository(repository), blob, options);
  }

  /** See {@link BlobReader.get}. */
  async getSmallBlob(repository: Repository, blob: BlobIdentity, options?: CallOptions & { maxBytes?: number }): Promise<Uint8Array> {
    return this.blobs.get(checkRepository(repository), blob, options);
  }

  /** See {@link BlobReader.stat}. */
  async statBlob(repository: Repository, digest: Digest, options?: ResolveOptions): Promise<number | undefined> {
    return this.blobs.stat(checkRepository(repository), digest, options);
  }

  /** See {@link Lists.referrers}. */
  async listReferrers(repository: Repository, digest: Digest, options?: CallOptions & { artifactType?: string }): Promise<Descriptor[]> {
    return this.lists.referrers(checkRepository(repository), digest, options);
  }

  /** See {@link Lists.tags}. */
  async listTags(repository: Repository, options?: ResolveOptions): Promise<string[]> {
    return this.lists.tags(checkRepository(repository), options);
  }

  /** See {@link Uploader.upload}. */
  async uploadBlob(repository: Repository, blob: BlobIdentity, readAt: ReadAt, options?: UploadOptions): Promise<UploadOutcome> {
    return this.uploader.upload(checkRepository(repository), blob, readAt, options);
  }

  /** See {@link Uploader.provide}. */
  async provideBlob(
    repository: Repository,
    blob: BlobIdentity,
    options?: Pick<UploadOptions, 'signal' | 'mountFrom'>,
  ): Promise<'existed' | 'mounted' | undefined> {
    return this.uploader.provide(checkRepository(repository), blob, options);
  }

  /** See {@link ManifestWriter.putManifest}. */
  async putManifest(
    repository: Repository,
    tagOrDigest: string,
    bytes: Uint8Array,
    mediaType: string,
    options?: CallOptions,
  ): Promise<Digest> {
    return this.writer.putManifest(checkRepository(repository), tagOrDigest, bytes, mediaType, options);
  }

  /** See {@link ManifestWriter.deleteManifest}. */
  async deleteManifest(repository: Repository, tagOrDigest: string, options?: CallOptions): Promise<void> {
    await this.writer.deleteManifest(checkRepository(repository), tagOrDigest, options);
  }

  /** See {@link ManifestWriter.leaveReferrers}. */
  async leaveReferrers(repository: Repository, subject: Digest, digest: Digest, options?: CallOptions): Promise<void> {
    await this.writer.leaveReferrers(checkRepository(repository), subject, digest, options);
  }

  /** See {@link ManifestWriter.deleteBlob}. */
  async deleteBlob(repository: Repository, digest: Digest, options?: CallOptions): Promise<void> {
    await this.writer.deleteBlob(checkRepository(repository), digest, options);
  }

  /** Credentials changed: the next request of each repository asks their source. Otherwise a change counts within a second. */
  forgetLogins(): void {
    this.authenticator.forgetAll();
  }

  /** Cuts all connections; requests under way fail with Unavailable, later ones with Canceled. */
  async close(): Promise<void> {
    await this.transport.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}
