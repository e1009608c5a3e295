/** Whole blobs: streamed with a check of size and digest, going on after breaks; and small ones in one piece. */
import { createHash } from 'node:crypto';
import { type Digest, sha256 } from '../base/digest.ts';
import { AppError, isAppError } from '../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../base/limits.ts';
import { type BodySink, CollectSink, DiscardSink, StreamSink } from './body.ts';
import type { Endpoint } from './hosts.ts';
import { headerOf, peerError } from './http-errors.ts';
import {
  FIRST_BACKOFF_MS,
  MAX_BACKOFF_MS,
  MAX_SMALL_BLOB_BYTES,
  MAX_STREAM_BREAKS,
  REQUEST_TIMEOUT_MS,
  SLOWEST_BYTES_PER_MS,
} from './limits.ts';
import type { CallOptions, ResolveOptions } from './manifests.ts';
import type { Mirrors } from './mirrors.ts';
import { formatRepository, type Repository } from './reference.ts';
import { withRetries } from './retry.ts';
import type { Deadline, RegistryCall, Session } from './session.ts';
import type { ExchangeHead } from './transport.ts';

/** What a blob must turn out to be. */
export interface BlobIdentity {
  readonly digest: Digest;
  readonly sizeBytes: number;
}

export class BlobReader {
  private readonly session: Session;
  private readonly mirrors: Mirrors;

  constructor(session: Session, mirrors: Mirrors) {
    this.session = session;
    this.mirrors = mirrors;
  }

  /**
   * The blob as a stream of owned chunks. What it yields is unverified until the iteration ends without an error: then size and digest
   * were right. Goes on from the last byte, also at another mirror, after a break. Throws DataLoss at the end for wrong content, and the
   * errors of a range read. Leaving the iteration early cuts the connection.
   */
  async *stream(
    repository: Repository,
    blob: BlobIdentity,
    options: { signal?: AbortSignal } = {},
  ): AsyncGenerator<Uint8Array, void, void> {
    const hash = createHash('sha256');
    const { signal } = options;
    let offset = 0;
    let breakCount = 0;
    const avoid = new Set<string>();
    while (offset < blob.sizeBytes) {
      const startedAt = offset;
      let mirror = '';
      try {
        const opened = await this.open(repository, blob, offset, avoid, signal);
        mirror = opened.mirror;
        for await (const chunk of opened.body) {
          offset += chunk.length;
          if (offset > blob.sizeBytes) throw this.mismatch(repository, blob, `more than ${blob.sizeBytes} bytes`);
          hash.update(chunk);
          yield chunk;
        }
        if (offset < blob.sizeBytes && offset === startedAt) throw this.short(repository, blob, offset);
      } catch (error) {
        if (!isAppError(error, 'Unavailable') || signal?.aborted) throw error;
        breakCount = offset > startedAt ? 1 : breakCount + 1;
        if (breakCount > MAX_STREAM_BREAKS) throw error;
        if (mirror !== '') avoid.add(mirror);
        const waitMs = Math.min(Math.max(error.retryAfterMs ?? 0, FIRST_BACKOFF_MS * 2 ** (breakCount - 1)), MAX_BACKOFF_MS);
        await this.session.clock.sleep(waitMs, signal);
      }
    }
    const digest: Digest = `sha256:${hash.digest('hex')}`;
    if (digest !== blob.digest) throw this.mismatch(repository, blob, `content with the digest ${digest}`);
  }

  /**
   * A small blob in one piece, checked: a config (at most 8 MiB, the default of `maxBytes`), or what the caller has room for (an index: at
   * most 64 MiB). Errors: InvalidArgument for a larger one, DataLoss for other content, and those of any request.
   */
  async get(repository: Repository, blob: BlobIdentity, options: CallOptions & { maxBytes?: number } = {}): Promise<Uint8Array> {
    const maxBytes = Math.min(options.maxBytes ?? MAX_MANIFEST_BYTES, MAX_SMALL_BLOB_BYTES);
    if (blob.sizeBytes > maxBytes) {
      throw new AppError('InvalidArgument', {
        op: 'fetch blob',
        subject: `${formatRepository(repository)} ${blob.digest}`,
        what: `${blob.sizeBytes} bytes, more than ${maxBytes}`,
      });
    }
    const timeoutMs = options.timeoutMs ?? REQUEST_TIMEOUT_MS + blob.sizeBytes / SLOWEST_BYTES_PER_MS;
    return withRetries(this.session.clock, options.signal, () => {
      const deadline = this.session.deadline(options.signal, timeoutMs);
      return this.mirrors.first({ op: 'fetch blob', subject: blob.digest, repository, capability: 'pull', deadline }, (endpoint, share) =>
        this.getFrom(endpoint, repository, blob, share),
      );
    });
  }

  /** The size the registry gives for a blob, or undefined when it does not have it. */
  async stat(repository: Repository, digest: Digest, options: ResolveOptions = {}): Promise<number | undefined> {
    const capability = options.isCurrent === true ? 'push' : 'pull';
    try {
      return await withRetries(this.session.clock, options.signal, () => {
        const deadline = this.session.deadline(options.signal, options.timeoutMs);
        return this.mirrors.first({ op: 'look up blob', subject: digest, repository, capability, deadline }, async (endpoint, share) => {
          const call = this.callFor('look up blob', 'HEAD', repository, digest, share);
          const { head } = await this.session.follow(endpoint, call, () => new DiscardSink());
          if (head.status === 405 || head.status === 501) return this.sizeByRange(endpoint, repository, digest, share);
          if (head.status !== 200) throw this.session.statusError(endpoint, call, head);
          return this.sizeIn(headerOf(head.headers, 'content-length'), endpoint, call);
        });
      });
    } catch (error) {
      if (isAppError(error, 'NotFound')) return undefined;
      throw error;
    }
  }

  /** The size from a registry that does not know HEAD: it stands behind the first byte, or before the whole blob, which is cut off. */
  private async sizeByRange(endpoint: Endpoint, repository: Repository, digest: Digest, deadline: Deadline): Promise<number> {
    const call = this.callFor('look up blob', 'GET', repository, digest, deadline, { range: 'bytes=0-0' });
    const { head } = await this.session.follow(endpoint, call, () => new DiscardSink());
    if (head.status === 200) return this.sizeIn(headerOf(head.headers, 'content-length'), endpoint, call);
    if (head.status !== 206) throw this.session.statusError(endpoint, call, head);
    return this.sizeIn(headerOf(head.headers, 'content-range')?.replace(/^bytes 0-0\//, ''), endpoint, call);
  }

  private sizeIn(text: string | undefined, endpoint: Endpoint, call: RegistryCall): number {
    if (text !== undefined && /^\d{1,16}$/.test(text)) return Number(text);
    throw peerError('DataLoss', this.session.purposeOf(endpoint, call), 'tells no size');
  }

  private async getFrom(endpoint: Endpoint, repository: Repository, blob: BlobIdentity, deadline: Deadline): Promise<Uint8Array> {
    const call = this.callFor('fetch blob', 'GET', repository, blob.digest, deadline);
    const purpose = this.session.purposeOf(endpoint, call);
    let sink: CollectSink | undefined;
    const { head } = await this.session.follow(endpoint, call, (answer): BodySink => {
      if (answer.status !== 200) return new DiscardSink();
      sink = new CollectSink(blob.sizeBytes, () => peerError('DataLoss', purpose, `sent more than ${blob.sizeBytes} bytes`));
      return sink;
    });
    if (head.status !== 200 || sink === undefined) throw this.session.statusError(endpoint, call, head);
    const bytes = sink.bytes();
    const digest = sha256(bytes);
    if (digest !== blob.digest) throw peerError('DataLoss', purpose, `sent ${bytes.length} bytes with the digest ${digest}`);
    return bytes;
  }

  /** Opens the blob at an offset and resolves when the answer's head is right. */
  private async open(
    repository: Repository,
    blob: BlobIdentity,
    offset: number,
    avoid: ReadonlySet<string>,
    signal: AbortSignal | undefined,
  ): Promise<{ mirror: string; body: AsyncIterable<Uint8Array> }> {
    const deadline: Deadline = { atMs: Number.POSITIVE_INFINITY, signal };
    return this.mirrors.first(
      { op: 'fetch blob', subject: blob.digest, repository, capability: 'pull', deadline, avoid },
      async (endpoint, share) => {
        const call = this.callFor('fetch blob', 'GET', repository, blob.digest, share, offset === 0 ? {} : { range: `bytes=${offset}-` });
        const purpose = this.session.purposeOf(endpoint, call);
        const wanted = offset === 0 ? 200 : 206;
        const contentRange = `bytes ${offset}-${blob.sizeBytes - 1}/${blob.sizeBytes}`;
        let body: StreamSink | undefined;
        const choose = (answer: ExchangeHead): BodySink => {
          if (answer.status !== wanted) return new DiscardSink();
          if (offset > 0 && headerOf(answer.headers, 'content-range') !== contentRange)
            throw peerError('DataLoss', purpose, 'answered with another range');
          const length = headerOf(answer.headers, 'content-length');
          if (length !== undefined && length !== String(blob.sizeBytes - offset)) {
            throw peerError('DataLoss', purpose, `announced ${length.slice(0, 20)} bytes instead of ${blob.sizeBytes - offset}`);
          }
          body = new StreamSink();
          return body;
        };
        const { head } = await this.session.follow(endpoint, call, choose, 'head');
        if (body !== undefined) return { mirror: endpoint.key, body };
        if (head.status === 200) throw peerError('Unimplemented', purpose, 'ignores Range, so that a broken transfer cannot go on');
        throw this.session.statusError(endpoint, call, head);
      },
    );
  }

  private callFor(
    op: string,
    method: 'GET' | 'HEAD',
    repository: Repository,
    digest: Digest,
    deadline: Deadline,
    headers: Readonly<Record<string, string>> = {},
  ): RegistryCall {
    return {
      op,
      subject: digest,
      access: { repository, actions: ['pull'] },
      method,
      target: `/blobs/${digest}`,
      headers: { 'accept-encoding': 'identity', ...headers },
      deadline,
    };
  }

  private mismatch(repository: Repository, blob: BlobIdentity, what: string): AppError {
    return new AppError('DataLoss', {
      op: 'fetch blob',
      subject: `${formatRepository(repository)} ${blob.digest}`,
      what: `the registry sent ${what}`,
    });
  }

  private short(repository: Repository, blob: BlobIdentity, offset: number): AppError {
    const what = `the registry sent nothing at ${offset} of ${blob.sizeBytes} bytes`;
    return new AppError('Unavailable', {
      op: 'fetch blob',
      subject: `${formatRepository(repository)} ${blob.digest}`,
      what,
      retryAfterMs: FIRST_BACKOFF_MS,
    });
  }
}
