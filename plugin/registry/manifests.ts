/** Manifests: tags to descriptors, and documents checked against their digest. Source: OCI distribution-spec v1.1, pulling manifests. */
import { type Digest, isDigest, sha256 } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../base/limits.ts';
import type { Descriptor } from '../image/oci/descriptor.ts';
import { MANIFEST_ACCEPT } from '../image/oci/media-types.ts';
import { type BodySink, CollectSink, DiscardSink, HeadSink } from './body.ts';
import type { Endpoint } from './hosts.ts';
import { headerOf, peerError } from './http-errors.ts';
import type { Mirrors } from './mirrors.ts';
import { formatRepository, isTag, type Repository } from './reference.ts';
import { withRetries } from './retry.ts';
import type { Deadline, RegistryCall, Session } from './session.ts';
import type { ExchangeHead } from './transport.ts';

export interface CallOptions {
  readonly signal?: AbortSignal;
  /** Milliseconds for one attempt over all mirrors; default 30 s. */
  readonly timeoutMs?: number;
}

export interface ResolveOptions extends CallOptions {
  /** Ask only where pushes go: a mirror may not know yet what a tag was moved to, and what it has says nothing about the registry. */
  readonly isCurrent?: boolean;
}

export interface FetchedManifest {
  /** `mediaType` is what the registry announced (without parameters); it is checked when the document is parsed. */
  readonly descriptor: Pick<Descriptor, 'mediaType' | 'digest' | 'sizeBytes'>;
  /** Owned; their SHA-256 is `descriptor.digest`. */
  readonly bytes: Uint8Array;
}

export class ManifestReader {
  private readonly session: Session;
  private readonly mirrors: Mirrors;

  constructor(session: Session, mirrors: Mirrors) {
    this.session = session;
    this.mirrors = mirrors;
  }

  /**
   * What a tag (or digest) names now: one HEAD, or a GET when the registry's HEAD says too little. Throws NotFound when it names nothing,
   * and the errors of any request. Retries a little by itself.
   */
  resolve(repository: Repository, tagOrDigest: string, options: ResolveOptions = {}): Promise<FetchedManifest['descriptor']> {
    checkObject(repository, tagOrDigest);
    return this.firstMirror('resolve', repository, tagOrDigest, options, async (endpoint, deadline) => {
      const call = this.callFor('resolve', 'HEAD', repository, tagOrDigest, deadline);
      const { head } = await this.session.follow(endpoint, call, () => new DiscardSink());
      // Some registries do not know HEAD; a real 404 says so again.
      if (head.status === 200) {
        const found = this.describe(head, tagOrDigest);
        if (found !== undefined) return found;
      } else if (head.status !== 405 && head.status !== 400 && head.status !== 501) {
        throw this.session.statusError(endpoint, call, head);
      }
      return (await this.getFrom(endpoint, repository, tagOrDigest, deadline)).descriptor;
    });
  }

  /**
   * The document that a tag or digest names, at most 8 MiB, checked against the digest. Throws as {@link resolve}, and DataLoss when the
   * bytes have another digest than asked for (after trying the other mirrors).
   */
  get(repository: Repository, tagOrDigest: string, options: ResolveOptions = {}): Promise<FetchedManifest> {
    checkObject(repository, tagOrDigest);
    return this.firstMirror('fetch manifest', repository, tagOrDigest, options, (endpoint, deadline) =>
      this.getFrom(endpoint, repository, tagOrDigest, deadline),
    );
  }

  private firstMirror<T>(
    op: string,
    repository: Repository,
    subject: string,
    options: ResolveOptions,
    action: (endpoint: Endpoint, deadline: Deadline) => Promise<T>,
  ): Promise<T> {
    return withRetries(this.session.clock, options.signal, () => {
      const deadline = this.session.deadline(options.signal, options.timeoutMs);
      const capability = options.isCurrent === true ? 'push' : isDigest(subject) ? 'pull' : 'resolve';
      return this.mirrors.first({ op, subject, repository, capability, deadline }, action);
    });
  }

  private callFor(op: string, method: 'GET' | 'HEAD', repository: Repository, object: string, deadline: Deadline): RegistryCall {
    return {
      op,
      subject: object,
      access: { repository, actions: ['pull'] },
      method,
      target: `/manifests/${object}`,
      headers: { accept: MANIFEST_ACCEPT },
      deadline,
    };
  }

  private describe(head: ExchangeHead, object: string): FetchedManifest['descriptor'] | undefined {
    const digest = headerOf(head.headers, 'docker-content-digest');
    const length = headerOf(head.headers, 'content-length') ?? '';
    const mediaType = mediaTypeOf(head);
    if (!isDigest(digest) || !/^\d{1,8}$/.test(length) || mediaType === '' || Number(length) > MAX_MANIFEST_BYTES) return undefined;
    if (isDigest(object) && object !== digest) return undefined;
    return { mediaType, digest, sizeBytes: Number(length) };
  }

  /** One attempt at one endpoint: for writers, which must not be answered by a mirror. */
  async getFrom(endpoint: Endpoint, repository: Repository, object: string, deadline: Deadline): Promise<FetchedManifest> {
    const call = this.callFor('fetch manifest', 'GET', repository, object, deadline);
    const purpose = this.session.purposeOf(endpoint, call);
    let sink: CollectSink | HeadSink | undefined;
    const { head } = await this.session.follow(endpoint, call, (answer): BodySink => {
      const tooLarge = (): AppError => peerError('DataLoss', purpose, `sent a manifest of more than ${MAX_MANIFEST_BYTES} bytes`);
      sink = answer.status === 200 ? new CollectSink(MAX_MANIFEST_BYTES, tooLarge) : new HeadSink();
      return sink;
    });
    const bytes = sink?.bytes() ?? new Uint8Array();
    if (head.status !== 200) throw this.session.statusError(endpoint, call, head, bytes);
    const digest: Digest = sha256(bytes);
    if (isDigest(object) && digest !== object) throw peerError('DataLoss', purpose, `sent ${bytes.length} bytes with the digest ${digest}`);
    return { descriptor: { mediaType: mediaTypeOf(head), digest, sizeBytes: bytes.length }, bytes };
  }
}

function mediaTypeOf(head: ExchangeHead): string {
  return (headerOf(head.headers, 'content-type') ?? '').split(';', 1)[0]!.trim();
}

/** Throws InvalidArgument unless `object` is a tag or digest: it becomes part of a path. */
export function checkObject(repository: Repository, object: string): void {
  if (isDigest(object) || isTag(object)) return;
  throw new AppError('InvalidArgument', {
    op: 'ask for',
    subject: `${formatRepository(repository)} ${JSON.stringify(object.slice(0, 100))}`,
    what: 'neither a tag nor a digest',
  });
}
