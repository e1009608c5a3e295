/**
 * Uploads blobs: mounted from another repository, in one request, or streamed and going on after a break. Source: OCI distribution-spec
 * v1.1, pushing blobs.
 */
import { Readable } from 'node:stream';
import type { Digest } from '../base/digest.ts';
import { AppError, isAppError } from '../base/errors.ts';
import { MAX_BLOB_BYTES } from '../base/limits.ts';
import type { Access } from './auth.ts';
import type { BlobIdentity } from './blobs.ts';
import { DiscardSink, HeadSink } from './body.ts';
import type { Endpoint, HostResolver } from './hosts.ts';
import { headerOf, peerError } from './http-errors.ts';
import {
  FIRST_BACKOFF_MS,
  MAX_BACKOFF_MS,
  MAX_STREAM_BREAKS,
  MONOLITHIC_UPLOAD_BYTES,
  UPLOAD_COMMIT_TIMEOUT_MS,
  UPLOAD_IDLE_TIMEOUT_MS,
  UPLOAD_READ_BYTES,
} from './limits.ts';
import { pushEndpoint } from './push.ts';
import { isRepositoryPath, type Repository } from './reference.ts';
import { withRetries } from './retry.ts';
import { type Deadline, type RegistryCall, resolveLocation, type Session } from './session.ts';
import type { ExchangeHead } from './transport.ts';

/** Where an upload's bytes come from; may be asked for the same bytes again after a break. Owned by the upload once returned. */
export type ReadAt = (offset: number, lengthBytes: number, signal?: AbortSignal) => Promise<Uint8Array>;

export interface UploadOptions {
  readonly signal?: AbortSignal;
  /** Repositories of the same registry that may hold the blob already: it is mounted from the first that does. At most four are tried. */
  readonly mountFrom?: readonly string[];
  /** Largest request body; some registries and proxies limit it. Default: the whole blob in one. */
  readonly chunkBytes?: number;
  /** Called with the bytes that the registry has confirmed. */
  readonly onProgress?: (confirmedBytes: number) => void;
}

export type UploadOutcome = 'existed' | 'mounted' | 'uploaded';

const MAX_MOUNT_TRIES = 4;

interface UploadState {
  readonly endpoint: Endpoint;
  readonly access: Access;
  readonly subject: string;
  location: URL;
}

export class Uploader {
  private readonly session: Session;
  private readonly hosts: HostResolver;

  constructor(session: Session, hosts: HostResolver) {
    this.session = session;
    this.hosts = hosts;
  }

  /**
   * Makes the repository hold the blob. Does nothing when it does; mounts when it can; uploads otherwise, going on where the registry
   * stands after a break (five breaks without progress end it). The registry checks the digest at the end: DataLoss when `readAt` gave
   * other bytes. May be called again after any error.
   */
  async upload(repository: Repository, blob: BlobIdentity, readAt: ReadAt, options: UploadOptions = {}): Promise<UploadOutcome> {
    if (!Number.isSafeInteger(blob.sizeBytes) || blob.sizeBytes < 0 || blob.sizeBytes > MAX_BLOB_BYTES) {
      throw new AppError('InvalidArgument', { op: 'upload', subject: blob.digest, what: `${blob.sizeBytes} is no size of a blob` });
    }
    const { signal } = options;
    const endpoint = await pushEndpoint(this.hosts, repository);
    const present = await this.findOrMount(endpoint, repository, blob, options);
    if (present !== undefined) return present;
    const state = await withRetries(this.session.clock, signal, () => this.start(endpoint, repository, blob.digest, signal));
    await this.transfer(state, blob, readAt, options);
    return 'uploaded';
  }

  /** Makes the repository hold a blob that the registry has: undefined when it has it neither there nor in a repository of `mountFrom`. */
  async provide(
    repository: Repository,
    blob: BlobIdentity,
    options: Pick<UploadOptions, 'signal' | 'mountFrom'> = {},
  ): Promise<'existed' | 'mounted' | undefined> {
    return this.findOrMount(await pushEndpoint(this.hosts, repository), repository, blob, options);
  }

  private async findOrMount(
    endpoint: Endpoint,
    repository: Repository,
    blob: BlobIdentity,
    { signal, mountFrom = [] }: Pick<UploadOptions, 'signal' | 'mountFrom'>,
  ): Promise<'existed' | 'mounted' | undefined> {
    if (await this.exists(endpoint, repository, blob, signal)) return 'existed';
    for (const source of mountFrom.slice(0, MAX_MOUNT_TRIES)) {
      if (await this.mount(endpoint, repository, blob.digest, source, signal)) return 'mounted';
    }
    return undefined;
  }

  /** Asked of the endpoint that takes pushes alone: a mirror's copy does not help a manifest that is pushed there. */
  private exists(endpoint: Endpoint, repository: Repository, blob: BlobIdentity, signal: AbortSignal | undefined): Promise<boolean> {
    return withRetries(this.session.clock, signal, async () => {
      const access: Access = { repository, actions: ['pull', 'push'] };
      const call = this.call('look up blob', blob.digest, access, 'HEAD', `/blobs/${blob.digest}`, this.session.deadline(signal));
      const { head } = await this.session.follow(endpoint, call, () => new DiscardSink());
      // A registry that does not know HEAD is sent the blob, whether it has it or not.
      if (head.status === 404 || isUnknownMethod(head)) return false;
      if (head.status !== 200) throw this.session.statusError(endpoint, call, head);
      return headerOf(head.headers, 'content-length') === String(blob.sizeBytes);
    });
  }

  private call(
    op: string,
    subject: string,
    access: Access,
    method: RegistryCall['method'],
    target: string | URL,
    deadline: Deadline,
    more: Partial<RegistryCall> = {},
  ): RegistryCall {
    return { op, subject, access, method, target, deadline, ...more };
  }

  private async mount(
    endpoint: Endpoint,
    repository: Repository,
    digest: Digest,
    source: string,
    signal: AbortSignal | undefined,
  ): Promise<boolean> {
    if (!isRepositoryPath(source) || source === repository.repository) return false;
    const access: Access = { repository, actions: ['pull', 'push'], alsoPull: source };
    const query = `mount=${encodeURIComponent(digest)}&from=${encodeURIComponent(source)}`;
    const call = this.call('mount', digest, access, 'POST', '/blobs/uploads/', this.session.deadline(signal), {
      query,
      body: () => new Uint8Array(),
    });
    try {
      const head = await withRetries(this.session.clock, signal, () => this.session.send(endpoint, call, () => new DiscardSink()));
      if (head.status === 201) return true;
      // 202: the registry did not find it there and began an upload instead, which it forgets by itself; ending it is a courtesy.
      if (head.status === 202) await this.cancel(endpoint, { ...call, access: { repository, actions: ['pull', 'push'] } }, head);
      return false;
    } catch (error) {
      // Being refused to read the source is no reason not to upload.
      if (isAppError(error, 'Unauthenticated', 'PermissionDenied', 'NotFound')) return false;
      throw error;
    }
  }

  /** How it goes is of no interest: the upload is forgotten either way, and the next request to the registry meets whatever was wrong. */
  private async cancel(endpoint: Endpoint, call: RegistryCall, head: ExchangeHead): Promise<void> {
    try {
      const location = this.locationOf(endpoint, call, head);
      const remove = this.call('cancel upload', call.subject, call.access, 'DELETE', location, call.deadline);
      await this.session.send(endpoint, remove, () => new DiscardSink());
    } catch (error) {
      if (!isAppError(error)) throw error;
    }
  }

  private async start(endpoint: Endpoint, repository: Repository, digest: Digest, signal: AbortSignal | undefined): Promise<UploadState> {
    const access: Access = { repository, actions: ['pull', 'push'] };
    const call = this.call('start upload', digest, access, 'POST', '/blobs/uploads/', this.session.deadline(signal), {
      body: () => new Uint8Array(),
    });
    const sink = new HeadSink();
    const head = await this.session.send(endpoint, call, () => sink);
    if (head.status !== 202) throw this.session.statusError(endpoint, call, head, sink.bytes());
    return { endpoint, access, subject: digest, location: this.locationOf(endpoint, call, head) };
  }

  private locationOf(endpoint: Endpoint, call: RegistryCall, head: ExchangeHead): URL {
    const purpose = this.session.purposeOf(endpoint, call);
    const location = headerOf(head.headers, 'location');
    if (location === undefined) throw peerError('Unavailable', purpose, 'answered without a Location');
    return resolveLocation(location, { origin: endpoint.origin, path: `${endpoint.basePath}/` }, purpose);
  }

  private async transfer(state: UploadState, blob: BlobIdentity, readAt: ReadAt, options: UploadOptions): Promise<void> {
    const chunkBytes = Math.max(options.chunkBytes ?? Number.MAX_SAFE_INTEGER, UPLOAD_READ_BYTES);
    const isMonolithic = blob.sizeBytes <= Math.min(MONOLITHIC_UPLOAD_BYTES, chunkBytes);
    let offset = 0;
    let bestOffset = 0;
    let breakCount = 0;
    for (;;) {
      try {
        if (!isMonolithic && offset < blob.sizeBytes) {
          offset = await this.sendChunk(state, offset, Math.min(offset + chunkBytes, blob.sizeBytes), readAt, options.signal);
          options.onProgress?.(offset);
        } else {
          const body = isMonolithic ? await readExactly(readAt, 0, blob.sizeBytes, options.signal) : new Uint8Array();
          await this.commit(state, blob, body, options.signal);
          options.onProgress?.(blob.sizeBytes);
          return;
        }
      } catch (error) {
        if (!isAppError(error, 'Unavailable') || options.signal?.aborted) throw error;
        breakCount += 1;
        if (breakCount > MAX_STREAM_BREAKS) throw error;
        const ownMs = FIRST_BACKOFF_MS * 2 ** (breakCount - 1);
        await this.session.clock.sleep(Math.min(Math.max(error.retryAfterMs ?? 0, ownMs), MAX_BACKOFF_MS), options.signal);
        const stand = isMonolithic ? await this.restart(state, blob, options.signal) : await this.resume(state, blob, options.signal);
        if (stand === 'done') return;
        offset = stand;
      }
      // Only bytes never confirmed before count as progress: a registry that loses and takes the same ones again must not keep us for ever.
      if (offset > bestOffset) breakCount = 0;
      bestOffset = Math.max(bestOffset, offset);
    }
  }

  /** Sends one PATCH; resolves to where the registry stands then. */
  private async sendChunk(
    state: UploadState,
    offset: number,
    end: number,
    readAt: ReadAt,
    signal: AbortSignal | undefined,
  ): Promise<number> {
    const call = this.call(
      'upload',
      state.subject,
      state.access,
      'PATCH',
      state.location,
      { atMs: Number.POSITIVE_INFINITY, signal },
      {
        headers: {
          'content-type': 'application/octet-stream',
          'content-length': String(end - offset),
          'content-range': `${offset}-${end - 1}`,
        },
        body: () => Readable.from(pieces(readAt, offset, end, signal), { objectMode: false, highWaterMark: UPLOAD_READ_BYTES }),
        headersTimeoutMs: UPLOAD_IDLE_TIMEOUT_MS,
      },
    );
    const sink = new HeadSink();
    const head = await this.session.send(state.endpoint, call, () => sink);
    if (head.status !== 202 && head.status !== 204) throw this.stepError(state, call, head, sink.bytes());
    state.location = this.locationOf(state.endpoint, call, head);
    const stand = rangeEnd(head) ?? end;
    if (stand > offset && stand <= end) return stand;
    throw peerError('Unavailable', this.session.purposeOf(state.endpoint, call), `has ${stand} bytes after ${end} were sent`);
  }

  /** 416: the registry stands elsewhere than we think; 404, 410: it has forgotten the upload. Asking it puts both right. */
  private stepError(state: UploadState, call: RegistryCall, head: ExchangeHead, body: Uint8Array): AppError {
    const purpose = this.session.purposeOf(state.endpoint, call);
    if (head.status === 416) return peerError('Unavailable', purpose, 'stands at another offset of the upload');
    if (isForgotten(head)) return peerError('Unavailable', purpose, 'has forgotten the upload');
    return this.session.statusError(state.endpoint, call, head, body);
  }

  private async commit(state: UploadState, blob: BlobIdentity, content: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    const deadline = this.session.deadline(signal, UPLOAD_COMMIT_TIMEOUT_MS);
    const call = this.call('finish upload', blob.digest, state.access, 'PUT', state.location, deadline, {
      query: `digest=${encodeURIComponent(blob.digest)}`,
      headers: { 'content-type': 'application/octet-stream', 'content-length': String(content.length) },
      body: () => content,
      headersTimeoutMs: UPLOAD_COMMIT_TIMEOUT_MS,
    });
    const sink = new HeadSink();
    const head = await this.session.send(state.endpoint, call, () => sink);
    if (head.status === 201 || head.status === 204) return;
    const error = this.stepError(state, call, head, sink.bytes());
    const isWrong = error.details.registryCode === 'DIGEST_INVALID' || error.details.registryCode === 'SIZE_INVALID';
    throw isWrong
      ? peerError('DataLoss', this.session.purposeOf(state.endpoint, call), 'the bytes uploaded do not have the digest')
      : error;
  }

  /** After a break: where the registry stands, from its status; a forgotten upload begins anew, unless the blob is there already. */
  private async resume(state: UploadState, blob: BlobIdentity, signal: AbortSignal | undefined): Promise<number | 'done'> {
    return withRetries(this.session.clock, signal, async () => {
      const call = this.call('resume upload', state.subject, state.access, 'GET', state.location, this.session.deadline(signal));
      const head = await this.session.send(state.endpoint, call, () => new DiscardSink());
      if (head.status === 204 || head.status === 202) {
        if (headerOf(head.headers, 'location') !== undefined) state.location = this.locationOf(state.endpoint, call, head);
        return Math.min(rangeEnd(head) ?? 0, blob.sizeBytes);
      }
      if (!isForgotten(head) && head.status !== 400) throw this.session.statusError(state.endpoint, call, head);
      return this.restart(state, blob, signal);
    });
  }

  /** A new upload in the place of a broken one, unless the broken one's last request got through. */
  private async restart(state: UploadState, blob: BlobIdentity, signal: AbortSignal | undefined): Promise<number | 'done'> {
    const { repository } = state.access;
    if (await this.exists(state.endpoint, repository, blob, signal)) return 'done';
    state.location = (await this.start(state.endpoint, repository, blob.digest, signal)).location;
    return 0;
  }
}

function isForgotten({ status }: ExchangeHead): boolean {
  return status === 404 || status === 410;
}

/** Answers of a server that has no such request at all. */
function isUnknownMethod({ status }: ExchangeHead): boolean {
  return status === 405 || status === 501;
}

/** `Range: 0-99` after a chunk means that 100 bytes are there. */
function rangeEnd(head: ExchangeHead): number | undefined {
  const match = /^(?:bytes=)?0-(\d{1,16})$/.exec(headerOf(head.headers, 'range') ?? '');
  // A fresh upload is described as `0-0`, although it has no byte: sending the first byte again would be refused, so 0 means empty.
  return match === null ? undefined : match[1] === '0' ? 0 : Number(match[1]) + 1;
}

async function readExactly(readAt: ReadAt, offset: number, length: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
  if (length === 0) return new Uint8Array();
  const bytes = await readAt(offset, length, signal);
  if (bytes.length === length) return bytes;
  throw new AppError('DataLoss', { op: 'read for upload', subject: `at ${offset}`, what: `got ${bytes.length} of ${length} bytes` });
}

/** The bytes from `offset` to `end`, a piece ahead of what the connection takes. */
async function* pieces(
  readAt: ReadAt,
  offset: number,
  end: number,
  signal: AbortSignal | undefined,
): AsyncGenerator<Uint8Array, void, void> {
  for (let at = offset; at < end; ) {
    const length = Math.min(UPLOAD_READ_BYTES, end - at);
    yield await readExactly(readAt, at, length, signal);
    at += length;
  }
}
