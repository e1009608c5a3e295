/**
 * Mirrors in order, and which of them to pass over for a while. A mirror that fails is held back, longer with each failure, and tried
 * again by one request, for a short time, when its time is over. When all are held back all are tried: a registry that returns is
 * noticed at once. One that is silent until the caller gives up has failed too; the caller's next request finds it held back.
 */
import { LRUCache } from 'lru-cache';
import type { Clock } from '../base/clock.ts';
import { AppError, type AppErrorOptions, type ErrorCode, isAppError } from '../base/errors.ts';
import type { Endpoint, HostResolver } from './hosts.ts';
import type { Capability } from './hosts-toml.ts';
import { askedWaitMs } from './http-errors.ts';
import { MAX_MIRROR_STATES, MIRROR_HOLD_MAX_MS, MIRROR_HOLD_MS, MIRROR_TRIAL_MS } from './limits.ts';
import { formatRepository, type Repository } from './reference.ts';
import type { Deadline } from './session.ts';

interface Health {
  failureCount: number;
  heldUntilMs: number;
}

export interface MirrorRequest {
  readonly op: string;
  readonly subject: string;
  readonly repository: Repository;
  readonly capability: Capability;
  readonly deadline: Deadline;
  /** Keys of endpoints that sent wrong bytes: tried last, and afresh. */
  readonly avoid?: ReadonlySet<string>;
  /** The endpoint that served the same thing before. */
  readonly preferred?: string | undefined;
}

/** Which failure of several is told: the one that promises most for a later try, since a reader of a running container waits for it. */
const TELLING: readonly ErrorCode[] = [
  'Unavailable',
  'DeadlineExceeded',
  'DataLoss',
  'Unauthenticated',
  'PermissionDenied',
  'FailedPrecondition',
  'Unimplemented',
  'NotFound',
];

export class Mirrors {
  private readonly hosts: HostResolver;
  private readonly clock: Clock;
  private readonly health = new LRUCache<string, Health>({ max: MAX_MIRROR_STATES });

  constructor(hosts: HostResolver, clock: Clock) {
    this.hosts = hosts;
    this.clock = clock;
  }

  /**
   * Calls `action` for one endpoint after another until one succeeds. A broken connection is tried once more at once on the same one:
   * most are kept-alive connections that the server closed meanwhile. `action` gets its share of the deadline. Throws the most telling
   * of the failures, with all of them in its message, and `details.registryRefused` when the registry itself, no mirror, refused the
   * credentials, whatever is the most telling; Canceled at once.
   */
  async first<T>(request: MirrorRequest, action: (endpoint: Endpoint, deadline: Deadline) => Promise<T>): Promise<T> {
    const all = await this.hosts.resolve(request.repository.host);
    const order = this.order(all, request);
    const failures: AppError[] = [];
    let isRefused = false;
    for (const [index, endpoint] of order.entries()) {
      for (let attempt = 1; ; attempt += 1) {
        const startMs = this.clock.monotonicMs();
        try {
          const result = await action(endpoint, this.share(endpoint, request.deadline, index === order.length - 1));
          this.health.delete(endpoint.key);
          return result;
        } catch (error) {
          if (!isAppError(error)) throw error;
          const spentMs = this.clock.monotonicMs() - startMs;
          if (this.isFinal(error, request.deadline)) {
            // A caller in a hurry says nothing about the mirror.
            if (error.code === 'DeadlineExceeded' && spentMs >= MIRROR_HOLD_MS) this.hold(endpoint.key, spentMs);
            throw error;
          }
          if (attempt === 1 && error.details.fault === 'reset') continue;
          failures.push(error);
          isRefused ||= endpoint.credentialHost === request.repository.host && isAppError(error, 'Unauthenticated', 'PermissionDenied');
          if (blamesEndpoint(error)) this.hold(endpoint.key, spentMs);
          break;
        }
      }
    }
    throw combine(request, failures, isRefused);
  }

  /** The endpoints in the order of trying: usable, held back, to be avoided. */
  private order(all: readonly Endpoint[], request: MirrorRequest): Endpoint[] {
    const nowMs = this.clock.monotonicMs();
    const usable: Endpoint[] = [];
    const held: Endpoint[] = [];
    const avoided: Endpoint[] = [];
    for (const endpoint of all) {
      if (!endpoint.capabilities.has(request.capability)) continue;
      const health = this.health.get(endpoint.key);
      if (request.avoid?.has(endpoint.key)) avoided.push(endpoint);
      else if (health !== undefined && nowMs < health.heldUntilMs) held.push(endpoint);
      else if (endpoint.key === request.preferred) usable.unshift(endpoint);
      else usable.push(endpoint);
    }
    const probed = usable.length + held.length > 1 && usable[0] !== undefined ? this.health.get(usable[0].key) : undefined;
    // This request tries a mirror whose time is over; others pass it over until the answer is known.
    if (probed !== undefined) probed.heldUntilMs = nowMs + MIRROR_TRIAL_MS;
    return [...usable, ...held, ...avoided];
  }

  /** Longer with each failure, and no shorter than it kept a request waiting. */
  private hold(key: string, spentMs: number): void {
    const failureCount = (this.health.get(key)?.failureCount ?? 0) + 1;
    const holdMs = Math.min(Math.max(MIRROR_HOLD_MS * 2 ** (failureCount - 1), spentMs), MIRROR_HOLD_MAX_MS);
    this.health.set(key, { failureCount, heldUntilMs: this.clock.monotonicMs() + holdMs });
  }

  /** Half of what is left while others can still be tried, so that one slow mirror does not use up the time of all; less on trial. */
  private share(endpoint: Endpoint, deadline: Deadline, isLast: boolean): Deadline {
    if (isLast || deadline.atMs === Infinity) return deadline;
    const nowMs = this.clock.monotonicMs();
    const halfMs = (deadline.atMs - nowMs) / 2;
    const shareMs = this.health.has(endpoint.key) ? Math.min(halfMs, MIRROR_TRIAL_MS) : halfMs;
    return { atMs: nowMs + shareMs, signal: deadline.signal };
  }

  private isFinal(error: AppError, deadline: Deadline): boolean {
    if (error.code === 'Canceled' || error.code === 'ResourceExhausted' || deadline.signal?.aborted === true) return true;
    return error.code === 'DeadlineExceeded' && this.clock.monotonicMs() >= deadline.atMs;
  }
}

function blamesEndpoint(error: AppError): boolean {
  return error.code === 'Unavailable' || error.code === 'DeadlineExceeded';
}

function combine(request: MirrorRequest, failures: readonly AppError[], isRefused: boolean): AppError {
  const subject = `${formatRepository(request.repository)} ${request.subject}`;
  if (failures.length === 0) {
    return new AppError('FailedPrecondition', {
      op: request.op,
      subject,
      what: `no endpoint of the registry has the capability ${request.capability}`,
    });
  }
  if (failures.length === 1) return failures[0]!;
  // Of equal ones the first that asks for the shortest wait: the others' requests must not keep callers from it.
  const patient = failures.toSorted((a, b) => askedWaitMs(a) - askedWaitMs(b));
  const telling =
    TELLING.map((code) => patient.find((failure) => failure.code === code)).find((failure) => failure !== undefined) ?? failures.at(-1)!;
  const whats = failures.map((failure) => failure.message.slice(failure.op.length + failure.subject.length + 3));
  const details = isRefused ? { ...telling.details, registryRefused: true } : telling.details;
  const options: AppErrorOptions = { op: request.op, subject, what: whats.join('; '), details, cause: telling };
  if (telling.retryAfterMs !== undefined) options.retryAfterMs = telling.retryAfterMs;
  return new AppError(telling.code, options);
}
