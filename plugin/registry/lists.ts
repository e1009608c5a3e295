/**
 * Lists: tags, and the artifacts that refer to a manifest. Source: OCI distribution-spec v1.1 (listing tags, listing referrers, the
 * referrers tag schema for registries without that API). Pages follow `Link: <…>; rel="next"` within the endpoint's own origin.
 */
import type { Digest } from '../base/digest.ts';
import { isAppError } from '../base/errors.ts';
import type { Descriptor } from '../image/oci/descriptor.ts';
import { parseIndex } from '../image/oci/manifest.ts';
import { isIndexType, MEDIA_TYPE } from '../image/oci/media-types.ts';
import { type BodySink, CollectSink, DiscardSink } from './body.ts';
import type { Endpoint } from './hosts.ts';
import { headerOf, type Purpose, peerError } from './http-errors.ts';
import { MAX_PAGE_BYTES, MAX_PAGES, MAX_REFERRERS, MAX_TAGS } from './limits.ts';
import type { CallOptions, ManifestReader, ResolveOptions } from './manifests.ts';
import type { Mirrors } from './mirrors.ts';
import { formatRepository, isTag, type Repository } from './reference.ts';
import { withRetries } from './retry.ts';
import { type Deadline, type RegistryCall, resolveLocation, type Session } from './session.ts';
import type { ExchangeHead } from './transport.ts';

interface Page {
  readonly head: ExchangeHead;
  readonly bytes: Uint8Array;
}

/** The tag under which registries without the referrers API keep the list. */
export function referrersTag(digest: Digest): string {
  return digest.replace(':', '-');
}

/** Answers that mean "there is no such API here". */
const NO_API: ReadonlySet<number> = new Set([400, 404, 405, 501]);

export class Lists {
  private readonly session: Session;
  private readonly mirrors: Mirrors;
  private readonly manifests: ManifestReader;

  constructor(session: Session, mirrors: Mirrors, manifests: ManifestReader) {
    this.session = session;
    this.mirrors = mirrors;
    this.manifests = manifests;
  }

  /**
   * Artifacts whose `subject` is `digest`, in the registry's order, at most 20,000; with `artifactType` only those. Asks the API, then the
   * fallback tag. An empty list when there are none. Entries that cannot be read are left out. Nothing here proves that an entry's
   * `subject` is right: check it when the manifest is fetched.
   */
  async referrers(repository: Repository, digest: Digest, options: CallOptions & { artifactType?: string } = {}): Promise<Descriptor[]> {
    const filter = options.artifactType;
    const all = (await this.fromApi(repository, digest, options)) ?? (await this.fromTag(repository, digest, options));
    return filter === undefined ? all : all.filter((descriptor) => descriptor.artifactType === filter);
  }

  /** Undefined when no endpoint has the API: a mirror without it says nothing about the registry behind it. */
  private async fromApi(
    repository: Repository,
    digest: Digest,
    options: CallOptions & { artifactType?: string },
  ): Promise<Descriptor[] | undefined> {
    const query = options.artifactType === undefined ? '' : `artifactType=${encodeURIComponent(options.artifactType)}`;
    let lacksApi = false;
    try {
      return await withRetries(this.session.clock, options.signal, () => {
        const deadline = this.session.deadline(options.signal, options.timeoutMs);
        const request = { op: 'list referrers', subject: digest, repository, capability: 'resolve' as const, deadline };
        return this.mirrors.first(request, async (endpoint, share) => {
          const call = this.callFor('list referrers', repository, digest, `/referrers/${digest}`, query, share, MEDIA_TYPE.ociIndex);
          const found: Descriptor[] = [];
          for await (const { head, bytes } of this.pages(endpoint, call)) {
            const type = (headerOf(head.headers, 'content-type') ?? '').split(';', 1)[0]!.trim();
            if (NO_API.has(head.status) || (head.status === 200 && !isIndexType(type))) {
              lacksApi = true;
              throw peerError('Unimplemented', this.session.purposeOf(endpoint, call), 'does not list referrers');
            }
            if (head.status !== 200) throw this.session.statusError(endpoint, call, head, bytes);
            const document = `referrers of ${formatRepository(repository)}@${digest}`;
            found.push(...parseIndex(bytes, type, document, { unusableEntries: 'skip' }).manifests);
            if (found.length > MAX_REFERRERS) throw this.tooMany(endpoint, call, `more than ${MAX_REFERRERS} referrers`);
          }
          return found;
        });
      });
    } catch (error) {
      // What could be asked of the others may lie in the tag, which the endpoint without the API may have.
      if (lacksApi && isAppError(error) && options.signal?.aborted !== true) return undefined;
      throw error;
    }
  }

  private async fromTag(repository: Repository, digest: Digest, options: CallOptions): Promise<Descriptor[]> {
    try {
      const { bytes, descriptor } = await this.manifests.get(repository, referrersTag(digest), options);
      const document = `${formatRepository(repository)}:${referrersTag(digest)}`;
      return [...parseIndex(bytes, descriptor.mediaType, document, { unusableEntries: 'skip' }).manifests];
    } catch (error) {
      if (isAppError(error, 'NotFound')) return [];
      throw error;
    }
  }

  /** All tags, at most 100,000, in the registry's order. Texts that are no tags are left out. */
  tags(repository: Repository, options: ResolveOptions = {}): Promise<string[]> {
    const capability = options.isCurrent === true ? 'push' : 'resolve';
    return withRetries(this.session.clock, options.signal, () => {
      const deadline = this.session.deadline(options.signal, options.timeoutMs);
      return this.mirrors.first({ op: 'list tags', subject: 'tags', repository, capability, deadline }, async (endpoint, share) => {
        const call = this.callFor('list tags', repository, 'tags', '/tags/list', 'n=1000', share, 'application/json');
        const tags: string[] = [];
        for await (const { head, bytes } of this.pages(endpoint, call)) {
          if (head.status !== 200) throw this.session.statusError(endpoint, call, head, bytes);
          tags.push(...parseTags(bytes, this.session.purposeOf(endpoint, call)));
          if (tags.length > MAX_TAGS) throw this.tooMany(endpoint, call, `more than ${MAX_TAGS} tags`);
        }
        return tags;
      });
    });
  }

  private async *pages(endpoint: Endpoint, first: RegistryCall): AsyncGenerator<Page, void, void> {
    const purpose = this.session.purposeOf(endpoint, first);
    let call: RegistryCall | undefined = first;
    for (let count = 0; call !== undefined; count += 1) {
      if (count === MAX_PAGES) throw this.tooMany(endpoint, first, `more than ${MAX_PAGES} pages`);
      let sink: CollectSink | undefined;
      const { head } = await this.session.follow(endpoint, call, (answer): BodySink => {
        if (answer.status !== 200) return new DiscardSink();
        sink = new CollectSink(MAX_PAGE_BYTES, () => peerError('Unavailable', purpose, `sent a page of more than ${MAX_PAGE_BYTES} bytes`));
        return sink;
      });
      yield { head, bytes: sink?.bytes() ?? new Uint8Array() };
      call = this.nextPage(endpoint, first, head, purpose);
    }
  }

  private nextPage(endpoint: Endpoint, first: RegistryCall, head: ExchangeHead, purpose: Purpose): RegistryCall | undefined {
    const link = head.status === 200 ? headerOf(head.headers, 'link') : undefined;
    const match = link === undefined ? null : /<([^<>\s]+)>\s*;[^,]*\brel="?next"?/.exec(link.slice(0, 8192));
    if (match === null) return undefined;
    const from = { origin: endpoint.origin, path: `${endpoint.basePath}/${first.access.repository.repository}${first.target as string}` };
    const target = resolveLocation(match[1]!, from, purpose);
    if (target.origin !== endpoint.origin)
      throw peerError('PermissionDenied', purpose, `continues its list at ${target.origin}; that is refused`);
    return { ...first, target, query: target.searchParams.has('ns') ? '' : endpoint.namespaceQuery };
  }

  private callFor(
    op: string,
    repository: Repository,
    subject: string,
    target: string,
    query: string,
    deadline: Deadline,
    accept: string,
  ): RegistryCall {
    return { op, subject, access: { repository, actions: ['pull'] }, method: 'GET', target, query, headers: { accept }, deadline };
  }

  private tooMany(endpoint: Endpoint, call: RegistryCall, what: string): Error {
    return peerError('PermissionDenied', this.session.purposeOf(endpoint, call), `lists ${what}; that is refused`);
  }
}

function parseTags(bytes: Uint8Array, purpose: Purpose): string[] {
  let tags: unknown;
  try {
    tags = (JSON.parse(new TextDecoder().decode(bytes)) as { tags?: unknown } | null)?.tags ?? [];
  } catch (cause) {
    if (cause instanceof SyntaxError) throw peerError('Unavailable', purpose, 'the list of tags is not JSON');
    throw cause;
  }
  if (!Array.isArray(tags)) throw peerError('Unavailable', purpose, 'the list of tags is not a list');
  return tags.filter((tag): tag is string => typeof tag === 'string' && isTag(tag));
}
