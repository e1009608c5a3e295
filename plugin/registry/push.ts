/**
 * Stores and deletes manifests, and keeps the referrers tag for registries without that API. Source: OCI distribution-spec v1.1 (pushing
 * manifests, pushing manifests with subject, deleting). Pushes go to the first endpoint that may take them, never to several.
 */
import { type Digest, isDigest, sha256 } from '../base/digest.ts';
import { AppError, isAppError } from '../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../base/limits.ts';
import type { Descriptor } from '../image/oci/descriptor.ts';
import { encodeManifest, type Index, parseIndex, parseManifestOrIndex } from '../image/oci/manifest.ts';
import { MEDIA_TYPE } from '../image/oci/media-types.ts';
import type { Access } from './auth.ts';
import { HeadSink } from './body.ts';
import type { Endpoint, HostResolver } from './hosts.ts';
import { headerOf, peerError } from './http-errors.ts';
import { FIRST_BACKOFF_MS, MAX_REFERRERS_ATTEMPTS, MAX_REFERRERS_CHECKED } from './limits.ts';
import { referrersTag } from './lists.ts';
import { type CallOptions, checkObject, type ManifestReader } from './manifests.ts';
import { formatRepository, type Repository } from './reference.ts';
import { withRetries } from './retry.ts';
import type { RegistryCall, Session } from './session.ts';
import type { ExchangeHead } from './transport.ts';

/** The endpoint that takes pushes. Throws FailedPrecondition when none does. */
export async function pushEndpoint(hosts: HostResolver, repository: Repository): Promise<Endpoint> {
  const endpoint = (await hosts.resolve(repository.host)).find((candidate) => candidate.capabilities.has('push'));
  if (endpoint !== undefined) return endpoint;
  throw new AppError('FailedPrecondition', {
    op: 'push to',
    subject: formatRepository(repository),
    what: 'no endpoint of the registry takes pushes',
  });
}

export class ManifestWriter {
  private readonly session: Session;
  private readonly hosts: HostResolver;
  private readonly manifests: ManifestReader;

  constructor(session: Session, hosts: HostResolver, manifests: ManifestReader) {
    this.session = session;
    this.hosts = hosts;
    this.manifests = manifests;
  }

  /**
   * Stores a manifest under a tag or its digest and returns the digest. A manifest with a `subject` is also entered into the referrers tag
   * when the registry does not do so itself. Throws InvalidArgument for a document that is no manifest, DataLoss when the registry
   * stored other bytes, and the errors of any request.
   */
  async putManifest(
    repository: Repository,
    tagOrDigest: string,
    bytes: Uint8Array,
    mediaType: string,
    options: CallOptions = {},
  ): Promise<Digest> {
    checkObject(repository, tagOrDigest);
    const digest = sha256(bytes);
    const document = `${formatRepository(repository)} ${tagOrDigest}`;
    const parsed = parseManifestOrIndex(bytes, mediaType, document);
    if (bytes.length > MAX_MANIFEST_BYTES || (isDigest(tagOrDigest) && tagOrDigest !== digest)) {
      throw new AppError('InvalidArgument', {
        op: 'push manifest',
        subject: document,
        what: `the document is ${digest}, ${bytes.length} bytes`,
      });
    }
    const endpoint = await pushEndpoint(this.hosts, repository);
    const head = await this.put(endpoint, repository, tagOrDigest, bytes, parsed.mediaType, digest, options);
    if (parsed.subject !== undefined && headerOf(head.headers, 'oci-subject') !== parsed.subject.digest) {
      const artifactType = parsed.artifactType ?? (parsed.kind === 'manifest' ? parsed.config.mediaType : undefined);
      const descriptor: Descriptor = {
        mediaType: parsed.mediaType,
        digest,
        sizeBytes: bytes.length,
        ...(parsed.annotations === undefined ? {} : { annotations: parsed.annotations }),
        ...(artifactType === undefined ? {} : { artifactType }),
      };
      await this.enterReferrer(endpoint, repository, parsed.subject.digest, descriptor, options);
    }
    return digest;
  }

  private put(
    endpoint: Endpoint,
    repository: Repository,
    object: string,
    bytes: Uint8Array,
    mediaType: string,
    digest: Digest,
    options: CallOptions,
  ): Promise<ExchangeHead> {
    const access: Access = { repository, actions: ['pull', 'push'] };
    return withRetries(this.session.clock, options.signal, async () => {
      const deadline = this.session.deadline(options.signal, options.timeoutMs);
      const call: RegistryCall = {
        op: 'push manifest',
        subject: object,
        access,
        method: 'PUT',
        target: `/manifests/${object}`,
        deadline,
        headers: { 'content-type': mediaType, 'content-length': String(bytes.length) },
        body: () => bytes,
      };
      const sink = new HeadSink();
      const head = await this.session.send(endpoint, call, () => sink);
      if (head.status !== 201 && head.status !== 200) throw this.session.statusError(endpoint, call, head, sink.bytes());
      const stored = headerOf(head.headers, 'docker-content-digest');
      if (stored !== undefined && stored !== digest) {
        throw peerError(
          'DataLoss',
          this.session.purposeOf(endpoint, call),
          `stored the manifest as ${stored.slice(0, 80)} instead of ${digest}`,
        );
      }
      return head;
    });
  }

  /** Adds an entry to the index under the referrers tag. */
  private enterReferrer(
    endpoint: Endpoint,
    repository: Repository,
    subject: Digest,
    entry: Descriptor,
    options: CallOptions,
  ): Promise<void> {
    return this.changeReferrers(endpoint, repository, subject, options, (present) =>
      present.some((descriptor) => descriptor.digest === entry.digest) ? undefined : [...present, entry],
    );
  }

  /**
   * Takes a manifest that was deleted out of its subject's referrers tag; registries with the referrers API have none, and nothing is done.
   * Throws Conflict when other writers keep replacing the list, and the errors of any request.
   */
  async leaveReferrers(repository: Repository, subject: Digest, digest: Digest, options: CallOptions = {}): Promise<void> {
    const endpoint = await pushEndpoint(this.hosts, repository);
    await this.changeReferrers(endpoint, repository, subject, options, (present) =>
      present.some((descriptor) => descriptor.digest === digest) ? present.filter((descriptor) => descriptor.digest !== digest) : undefined,
    );
  }

  /** Changes the list until `change` has nothing to change. Two writers may overwrite each other, so the result is read back. */
  private async changeReferrers(
    endpoint: Endpoint,
    repository: Repository,
    subject: Digest,
    options: CallOptions,
    change: (present: readonly Descriptor[]) => readonly Descriptor[] | undefined,
  ): Promise<void> {
    const tag = referrersTag(subject);
    const next = async (): Promise<Index | undefined> => {
      const index = await this.readReferrers(endpoint, repository, tag, options);
      const manifests = change(index.manifests);
      return manifests === undefined ? undefined : { ...index, manifests };
    };
    for (let attempt = 0; ; attempt += 1) {
      let index = await next();
      if (index !== undefined && attempt > 0) {
        if (attempt === MAX_REFERRERS_ATTEMPTS) break;
        // Writers that met once would meet again. The list is read after the pause: what is written must follow at once.
        await this.session.clock.sleep(FIRST_BACKOFF_MS * attempt * Math.random(), options.signal);
        index = await next();
      }
      if (index === undefined) return;
      await this.putReferrers(endpoint, repository, tag, index, options);
    }
    throw new AppError('Conflict', {
      op: 'change referrers',
      subject: `${formatRepository(repository)}:${tag}`,
      what: `other writers replaced the list ${MAX_REFERRERS_ATTEMPTS} times`,
      retryAfterMs: 1000,
    });
  }

  private async putReferrers(endpoint: Endpoint, repository: Repository, tag: string, index: Index, options: CallOptions): Promise<void> {
    const put = async (list: Index): Promise<void> => {
      const bytes = encodeManifest(list);
      await this.put(endpoint, repository, tag, bytes, MEDIA_TYPE.ociIndex, sha256(bytes), options);
    };
    try {
      await put(index);
    } catch (error) {
      // Some registries take no index that names a manifest they do not have, and an artifact may have been deleted without us.
      if (!isAppError(error) || error.details.registryCode !== 'MANIFEST_BLOB_UNKNOWN') throw error;
      const there = await this.present(endpoint, repository, index.manifests, options);
      if (there.length === index.manifests.length) throw error;
      await put({ ...index, manifests: there });
    }
  }

  /** Those that the registry has; more than can be asked for count as there. */
  private async present(
    endpoint: Endpoint,
    repository: Repository,
    descriptors: readonly Descriptor[],
    options: CallOptions,
  ): Promise<Descriptor[]> {
    const found: Descriptor[] = [];
    for (const [i, descriptor] of descriptors.entries()) {
      if (i >= MAX_REFERRERS_CHECKED || (await this.isThere(endpoint, repository, descriptor.digest, options))) found.push(descriptor);
    }
    return found;
  }

  private async isThere(endpoint: Endpoint, repository: Repository, digest: Digest, options: CallOptions): Promise<boolean> {
    try {
      await withRetries(this.session.clock, options.signal, () =>
        this.manifests.getFrom(endpoint, repository, digest, this.session.deadline(options.signal, options.timeoutMs)),
      );
      return true;
    } catch (error) {
      if (isAppError(error, 'NotFound')) return false;
      throw error;
    }
  }

  private async readReferrers(endpoint: Endpoint, repository: Repository, tag: string, options: CallOptions): Promise<Index> {
    try {
      const { bytes, descriptor } = await withRetries(this.session.clock, options.signal, () =>
        this.manifests.getFrom(endpoint, repository, tag, this.session.deadline(options.signal, options.timeoutMs)),
      );
      return parseIndex(bytes, descriptor.mediaType, `${formatRepository(repository)}:${tag}`);
    } catch (error) {
      if (isAppError(error, 'NotFound')) return { kind: 'index', mediaType: MEDIA_TYPE.ociIndex, manifests: [] };
      throw error;
    }
  }

  /** Deletes a manifest by digest, or a tag where the registry allows it. NotFound when it is not there. */
  deleteManifest(repository: Repository, tagOrDigest: string, options: CallOptions = {}): Promise<void> {
    checkObject(repository, tagOrDigest);
    return this.remove(repository, `/manifests/${tagOrDigest}`, tagOrDigest, options);
  }

  /** Deletes a blob from the repository. NotFound when it is not there. */
  deleteBlob(repository: Repository, digest: Digest, options: CallOptions = {}): Promise<void> {
    return this.remove(repository, `/blobs/${digest}`, digest, options);
  }

  private async remove(repository: Repository, target: string, subject: string, options: CallOptions): Promise<void> {
    const endpoint = await pushEndpoint(this.hosts, repository);
    const access: Access = { repository, actions: ['pull', 'push', 'delete'] };
    await withRetries(this.session.clock, options.signal, async () => {
      const deadline = this.session.deadline(options.signal, options.timeoutMs);
      const call: RegistryCall = { op: 'delete', subject, access, method: 'DELETE', target, deadline };
      const sink = new HeadSink();
      const head = await this.session.send(endpoint, call, () => sink);
      if (head.status !== 202 && head.status !== 200 && head.status !== 204)
        throw this.session.statusError(endpoint, call, head, sink.bytes());
    });
  }
}
