/**
 * The one error type of the product. Its codes are the closed set that gRPC, HTTP and containerd's errdefs share, so that a front end
 * maps a failure without reading its message. Source of the codes: google.rpc.Code.
 */

export type ErrorCode =
  | 'InvalidArgument'
  | 'NotFound'
  | 'AlreadyExists'
  | 'FailedPrecondition'
  | 'Conflict'
  | 'ResourceExhausted'
  | 'Unauthenticated'
  | 'PermissionDenied'
  | 'Unavailable'
  | 'DeadlineExceeded'
  | 'Canceled'
  | 'DataLoss'
  | 'Unimplemented'
  | 'Internal';

/** gRPC status number and HTTP status of each code. */
export const ERROR_STATUS: Readonly<Record<ErrorCode, { grpc: number; http: number }>> = {
  InvalidArgument: { grpc: 3, http: 400 },
  NotFound: { grpc: 5, http: 404 },
  AlreadyExists: { grpc: 6, http: 409 },
  FailedPrecondition: { grpc: 9, http: 400 },
  Conflict: { grpc: 10, http: 409 },
  ResourceExhausted: { grpc: 8, http: 507 },
  Unauthenticated: { grpc: 16, http: 401 },
  PermissionDenied: { grpc: 7, http: 403 },
  Unavailable: { grpc: 14, http: 503 },
  DeadlineExceeded: { grpc: 4, http: 504 },
  Canceled: { grpc: 1, http: 499 },
  DataLoss: { grpc: 15, http: 500 },
  Unimplemented: { grpc: 12, http: 501 },
  Internal: { grpc: 13, http: 500 },
};

export interface AppErrorOptions {
  /** The step that failed, as a person would say it: `open layer`, `fetch range`. */
  op: string;
  /** What it failed on: a digest, path, reference or key. Never a secret. */
  subject: string;
  /** What was found and what was expected, with the limit if one was passed. */
  what: string;
  /** Milliseconds after which the same call may succeed; absent: not by waiting. */
  retryAfterMs?: number;
  /** Facts for machines (offset, limit, status). Never a secret. */
  details?: Readonly<Record<string, string | number | boolean>>;
  cause?: unknown;
}

/** A failure that is part of the contract. A broken invariant is not one: that is an assertion, and ends the process. */
export class AppError extends Error {
  readonly code: ErrorCode;
  readonly op: string;
  readonly subject: string;
  readonly retryAfterMs: number | undefined;
  readonly details: Readonly<Record<string, string | number | boolean>>;

  constructor(code: ErrorCode, options: AppErrorOptions) {
    super(`${options.op} ${options.subject}: ${options.what}`, options.cause === undefined ? undefined : { cause: options.cause });
    this.name = 'AppError';
    this.code = code;
    this.op = options.op;
    this.subject = options.subject;
    this.retryAfterMs = options.retryAfterMs;
    this.details = options.details ?? {};
  }

  /** Rebuilds an error that crossed a process border as JSON (see {@link toJSON}). */
  static fromJSON(value: unknown, fallback: { op: string; subject: string }): AppError {
    const v = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>;
    const code = typeof v.code === 'string' && v.code in ERROR_STATUS ? (v.code as ErrorCode) : 'Internal';
    const text = (key: string, other: string): string => (typeof v[key] === 'string' ? (v[key] as string) : other);
    const options: AppErrorOptions = {
      op: text('op', fallback.op),
      subject: text('subject', fallback.subject),
      what: text('what', text('message', 'failed')),
    };
    if (typeof v.retryAfterMs === 'number') options.retryAfterMs = v.retryAfterMs;
    if (typeof v.details === 'object' && v.details !== null) options.details = factsOf(v.details);
    return new AppError(code, options);
  }

  /** The form that crosses process borders; the cause stays behind (it is in the log of the process that saw it). */
  toJSON(): Record<string, unknown> {
    const what = this.message.slice(this.op.length + this.subject.length + 3);
    return { code: this.code, op: this.op, subject: this.subject, what, retryAfterMs: this.retryAfterMs, details: this.details };
  }
}

/** What is plain of an object that crossed a process border. */
function factsOf(details: object): Record<string, string | number | boolean> {
  const isPlain = (value: unknown): boolean => ['string', 'number', 'boolean'].includes(typeof value);
  return Object.fromEntries(Object.entries(details).filter(([, value]) => isPlain(value)));
}

/** True for an {@link AppError}, with one of the given codes if any are given. */
export function isAppError(error: unknown, ...codes: ErrorCode[]): error is AppError {
  return error instanceof AppError && (codes.length === 0 || codes.includes(error.code));
}

/** The `code` of a Node system error (`ENOENT`), or undefined. */
export function errnoOf(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' && !(error instanceof AppError)
    ? error.code
    : undefined;
}

/** One line about any thrown value, causes included, for logs and events. */
export function describeError(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause === undefined ? error.message : `${error.message} (${describeError(error.cause)})`;
}
