/**
 * Reads a range of a blob: the path of every miss. Where a redirect led is remembered per blob, so that later ranges go straight to the
 * storage; every answer is checked against what was asked before a byte is handed on.
 */
import assert from 'node:assert';
import { LRUCache } from 'lru-cache';
import { type Digest, isDigest } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import { MAX_BLOB_BYTES } from '../base/limits.ts';
import type { BodySink } from './body.ts';
import { DiscardSink, FillSink } from './body.ts';
import type { Endpoint } from './hosts.ts';
import { headerOf, type Purpose, peerError } from './http-errors.ts';
import { MAX_RANGE_BYTES, MAX_ROUTES, MAX_WHOLE_BLOB_BYTES, RANGE_TIMEOUT_MS, ROUTE_LIFETIME_MS, SLOWEST_BYTES_PER_MS } from './limits.ts';
import type { Mirrors } from './mirrors.ts';
import { checkRepository, formatRepository, type Repository } from './reference.ts';
import type { Deadline, Redirect, RegistryCall, Session } from './session.ts';
import type { ExchangeHead } from './transport.ts';

export interface RangeOptions {
  readonly signal?: AbortSignal;
  /** Endpoints whose bytes turned out wrong ({@link RangeResult.mirror}): tried last, and without remembered redirects. */
  readonly avoidMirrors?: readonly string[];
  /** Called with each endpoint that is asked, before it is. */
  readonly onAsked?: (endpoint: string) => void;
  /** Called with each piece of the answer: a slow link is not a stuck one. Must return quickly. */
  readonly onProgress?: () => void;
  /** As long as the range: the bytes go there, and it is returned. Not to be read or used again when the fetch fails. */
  readonly target?: Uint8Array<ArrayBuffer>;
  /** Milliseconds for all mirrors together. Default: 30 s and the length at 32 KiB/s. */
  readonly timeoutMs?: number;
}

export interface RangeResult {
  /** Owned; exactly as long as asked. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The endpoint that sent them: for `avoidMirrors` and messages. */
  readonly mirror: string;
}

interface Route {
  readonly endpointKey: string;
  readonly redirect: Redirect | undefined;
  readonly untilMs: number;
}

interface RangeCall {
  readonly repository: Repository;
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly offset: number;
  readonly target: Uint8Array;
  readonly routeKey: string;
  readonly onProgress: (() => void) | undefined;
}

/** A signed URL that is over is answered with one of these, depending on the store. */
const EXPIRED: ReadonlySet<number> = new Set([400, 401, 403, 404, 410]);

export class RangeReader {
  private readonly session: Session;
  private readonly mirrors: Mirrors;
  private readonly routes = new LRUCache<string, Route>({ max: MAX_ROUTES });

  constructor(session: Session, mirrors: Mirrors) {
    this.session = session;
    this.mirrors = mirrors;
  }

  /**
   * Fetches `length` bytes at `offset` of a blob of `sizeBytes`. Each endpoint is tried once. Throws AppError: Unavailable (with
   * retryAfterMs), DeadlineExceeded, Canceled, NotFound, Unauthenticated, PermissionDenied, DataLoss (the answer contradicts the
   * descriptor), Unimplemented (the registry ignores Range on a large blob), InvalidArgument (a range outside the blob). May be called
   * again after any of them.
   */
  async fetch(
    repository: Repository,
    digest: Digest,
    sizeBytes: number,
    offset: number,
    length: number,
    options: RangeOptions,
  ): Promise<RangeResult> {
    checkArguments(repository, digest, sizeBytes, offset, length);
    const target = options.target ?? new Uint8Array(Buffer.allocUnsafeSlow(length).buffer as ArrayBuffer);
    assert(target.length === length, 'the target is as long as the range');
    if (length === 0) return { bytes: target, mirror: '' };
    const routeKey = `${repository.host}\n${repository.repository}\n${digest}`;
    // A name that has a route was checked when it was made.
    if (!this.routes.has(routeKey)) checkRepository(repository);
    const call: RangeCall = { repository, digest, sizeBytes, offset, target, routeKey, onProgress: options.onProgress };
    const avoid = options.avoidMirrors === undefined || options.avoidMirrors.length === 0 ? undefined : new Set(options.avoidMirrors);
    if (avoid !== undefined) this.routes.delete(routeKey);
    const deadline = this.session.deadline(options.signal, options.timeoutMs ?? RANGE_TIMEOUT_MS + length / SLOWEST_BYTES_PER_MS);
    const mirror = await this.mirrors.first(
      {
        op: 'fetch range',
        subject: digest,
        repository,
        capability: 'pull',
        deadline,
        preferred: this.routeOf(routeKey)?.endpointKey,
        ...(avoid === undefined ? {} : { avoid }),
      },
      (endpoint, share) => {
        options.onAsked?.(endpoint.key);
        return this.attempt(endpoint, call, share);
      },
    );
    return { bytes: target, mirror };
  }

  private routeOf(key: string): Route | undefined {
    const route = this.routes.get(key);
    if (route !== undefined && this.session.clock.monotonicMs() < route.untilMs) return route;
    return undefined;
  }

  private async attempt(endpoint: Endpoint, range: RangeCall, deadline: Deadline): Promise<string> {
    const last = range.offset + range.target.length - 1;
    const call: RegistryCall = {
      op: 'fetch range',
      subject: range.digest,
      access: { repository: range.repository, actions: ['pull'] },
      method: 'GET',
      target: `/blobs/${range.digest}`,
      headers: { range: `bytes=${range.offset}-${last}`, 'accept-encoding': 'identity' },
      deadline,
    };
    const purpose = this.session.purposeOf(endpoint, call);
    const chooseSink = (head: ExchangeHead): BodySink => sinkFor(head, range, purpose);

    const route = this.routeOf(range.routeKey);
    if (route?.endpointKey === endpoint.key && route.redirect !== undefined) {
      const head = await this.session.sendAway(endpoint, call, route.redirect, chooseSink);
      if (head.status === 206 || head.status === 200) return endpoint.key;
      if (!EXPIRED.has(head.status) && !(head.status >= 300 && head.status < 400)) throw this.session.statusError(endpoint, call, head);
      this.routes.delete(range.routeKey);
    }

    const { head, redirect } = await this.session.follow(endpoint, call, chooseSink);
    if (head.status !== 206 && head.status !== 200) throw this.refusal(endpoint, call, head, redirect);
    if (route === undefined || route.endpointKey !== endpoint.key || route.redirect !== redirect) {
      this.routes.set(range.routeKey, {
        endpointKey: endpoint.key,
        redirect,
        untilMs: this.session.clock.monotonicMs() + ROUTE_LIFETIME_MS,
      });
    }
    return endpoint.key;
  }

  /** A storage that refuses a redirect just made is a fault that passes; the same status from the registry itself is its word. */
  private refusal(endpoint: Endpoint, call: RegistryCall, head: ExchangeHead, redirect: Redirect | undefined): AppError {
    if (redirect === undefined || !EXPIRED.has(head.status)) return this.session.statusError(endpoint, call, head);
    const purpose = this.session.purposeOf(endpoint, call);
    return peerError('Unavailable', purpose, `redirected to ${redirect.origin}, which answered ${head.status} (an expired URL?)`);
  }
}

const CONTENT_RANGE = /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16})$/;

/** Where the body of an answer goes, after its head was held against the question. */
function sinkFor(head: ExchangeHead, range: RangeCall, purpose: Purpose): BodySink {
  if (head.status !== 206 && head.status !== 200) return new DiscardSink();
  const fault = (what: string): AppError => peerError('Unavailable', purpose, what);
  const encoding = headerOf(head.headers, 'content-encoding');
  if (encoding !== undefined && encoding !== 'identity') throw peerError('DataLoss', purpose, 'sent the blob in another content encoding');
  const end = range.offset + range.target.length;
  if (head.status === 206) {
    const text = headerOf(head.headers, 'content-range') ?? '';
    const match = CONTENT_RANGE.exec(text);
    const isRight =
      match !== null && Number(match[1]) === range.offset && Number(match[2]) === end - 1 && Number(match[3]) === range.sizeBytes;
    if (!isRight) {
      const asked = `bytes ${range.offset}-${end - 1}/${range.sizeBytes}`;
      throw peerError('DataLoss', purpose, `asked for ${asked}, answered Content-Range ${JSON.stringify(text.slice(0, 80))}`);
    }
    return new FillSink(range.target, 0, { isExact: true, fault, onProgress: range.onProgress });
  }
  const announced = headerOf(head.headers, 'content-length');
  if (announced !== String(range.sizeBytes)) {
    throw peerError(
      'DataLoss',
      purpose,
      `answered a range with the whole blob of ${announced?.slice(0, 20) ?? 'unknown'} bytes instead of ${range.sizeBytes}`,
    );
  }
  const isWhole = end === range.sizeBytes;
  if (end > MAX_WHOLE_BLOB_BYTES && !(isWhole && range.offset === 0)) {
    throw peerError(
      'Unimplemented',
      purpose,
      `ignores Range and sends the whole blob; that is read up to ${MAX_WHOLE_BLOB_BYTES} bytes only, not to ${end}`,
    );
  }
  return new FillSink(range.target, range.offset, { isExact: isWhole, fault, onProgress: range.onProgress });
}

function checkArguments(repository: Repository, digest: Digest, sizeBytes: number, offset: number, length: number): void {
  assert(isDigest(digest), 'a blob is named by its digest');
  const isSize = Number.isSafeInteger(sizeBytes) && sizeBytes >= 0 && sizeBytes <= MAX_BLOB_BYTES;
  const isRange = Number.isSafeInteger(offset) && Number.isSafeInteger(length) && offset >= 0 && length >= 0 && length <= MAX_RANGE_BYTES;
  if (!isSize || !isRange || offset + length > sizeBytes) {
    throw new AppError('InvalidArgument', {
      op: 'fetch range',
      subject: `${formatRepository(repository)} ${digest}`,
      what: `${length} bytes at ${offset} of a blob of ${sizeBytes}; at most ${MAX_RANGE_BYTES} within the blob`,
    });
  }
}
