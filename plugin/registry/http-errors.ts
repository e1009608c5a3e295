/**
 * From what went wrong on the wire to the product's error codes. Messages and causes carry no header, no query and no body text of the
 * peer: signed URLs and tokens travel there.
 */
import { AppError, type AppErrorOptions, type ErrorCode, isAppError } from '../base/errors.ts';
import { DEFAULT_RETRY_AFTER_MS, MAX_RETRY_AFTER_MS } from './limits.ts';

/** What a request was about, for messages: `fetch range`, `registry.example/app sha256:…`, at `https://mirror.example`. */
export interface Purpose {
  readonly op: string;
  readonly subject: string;
  /** Origin and path prefix of the endpoint, never a query. */
  readonly at: string;
}

export type Headers = Readonly<Record<string, string | string[] | undefined>>;

/** One value of a header; the first when it was sent several times. */
export function headerOf(headers: Headers, name: string): string | undefined {
  const value = headers[name];
  return Array.isArray(value) ? value[0] : value;
}

/** Retry-After in milliseconds, bounded: seconds or a date. Undefined when absent or not understood. */
export function retryAfterOf(headers: Headers, nowMs: number): number | undefined {
  const text = headerOf(headers, 'retry-after')?.trim();
  if (text === undefined) return undefined;
  const delayMs = /^\d{1,9}$/.test(text) ? Number(text) * 1000 : Date.parse(text) - nowMs;
  return Number.isFinite(delayMs) ? Math.min(Math.max(delayMs, 0), MAX_RETRY_AFTER_MS) : undefined;
}

const STATUS_CODE: ReadonlyMap<number, ErrorCode> = new Map([
  [400, 'InvalidArgument'],
  [401, 'Unauthenticated'],
  [403, 'PermissionDenied'],
  [404, 'NotFound'],
  [405, 'Unimplemented'],
  [408, 'Unavailable'],
  [409, 'Conflict'],
  [410, 'NotFound'],
  [413, 'ResourceExhausted'],
  [416, 'DataLoss'],
  [425, 'Unavailable'],
  [429, 'Unavailable'],
  [501, 'Unimplemented'],
  [507, 'ResourceExhausted'],
]);

const STATUS_TEXT: ReadonlyMap<number, string> = new Map([
  [401, 'the credentials were refused, or there are none for it'],
  [403, 'access denied'],
  [404, 'not there'],
  [416, 'the registry says that the blob is shorter than its descriptor'],
  [429, 'too many requests'],
]);

/** The error for an answer with an unwanted status. */
export function statusError(purpose: Purpose, status: number, headers: Headers, nowMs: number, body?: Uint8Array): AppError {
  const code = STATUS_CODE.get(status) ?? (status >= 500 && status <= 599 ? 'Unavailable' : 'Internal');
  const registryCode = body === undefined ? undefined : registryErrorCode(body);
  const text = STATUS_TEXT.get(status);
  const options: AppErrorOptions = {
    op: purpose.op,
    subject: purpose.subject,
    what: `${purpose.at} answered ${status}${registryCode === undefined ? '' : ` ${registryCode}`}${text === undefined ? '' : `: ${text}`}`,
    details: { status, endpoint: purpose.at, ...(registryCode === undefined ? {} : { registryCode }) },
  };
  if (code === 'Unavailable') {
    const askedMs = retryAfterOf(headers, nowMs);
    options.retryAfterMs = askedMs ?? DEFAULT_RETRY_AFTER_MS;
    if (askedMs !== undefined) options.details = { ...options.details, isRetryAfterAsked: true };
  }
  return new AppError(code, options);
}

/** True when the registry refused the credentials, also where a mirror that is away made the most telling failure of the request. */
export function isRefusal(error: unknown): boolean {
  return isAppError(error, 'Unauthenticated', 'PermissionDenied') || (isAppError(error) && error.details.registryRefused === true);
}

/** The wait that the peer itself asked for, in milliseconds; 0 when it asked for none, whatever wait the client proposes. */
export function askedWaitMs({ details, retryAfterMs }: AppError): number {
  return details.isRetryAfterAsked === true ? (retryAfterMs ?? 0) : 0;
}

/** The `code` of the first entry of a registry's error document; nothing else of it is trusted into a message. */
function registryErrorCode(body: Uint8Array): string | undefined {
  try {
    const parsed = JSON.parse(new TextDecoder().decode(body)) as { errors?: { code?: unknown }[] } | null;
    const code = parsed?.errors?.[0]?.code;
    return typeof code === 'string' && /^[A-Z_]{1,64}$/.test(code) ? code : undefined;
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TypeError) return undefined;
    throw error;
  }
}

export type NetworkFault = 'refused' | 'reset' | 'timeout' | 'tls' | 'dns' | 'protocol' | 'proxy' | 'network';

const FAULT: Readonly<Record<string, NetworkFault>> = {
  ECONNREFUSED: 'refused',
  ECONNRESET: 'reset',
  EPIPE: 'reset',
  UND_ERR_SOCKET: 'reset',
  UND_ERR_REQ_CONTENT_LENGTH_MISMATCH: 'reset',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'reset',
  ETIMEDOUT: 'timeout',
  UND_ERR_CONNECT_TIMEOUT: 'timeout',
  UND_ERR_HEADERS_TIMEOUT: 'timeout',
  UND_ERR_BODY_TIMEOUT: 'timeout',
  ENOTFOUND: 'dns',
  EAI_AGAIN: 'dns',
  EAI_FAIL: 'dns',
  UND_ERR_PRX_TLS: 'proxy',
  UND_ERR_PRX_CONN: 'proxy',
  UND_ERR_ABORTED: 'proxy',
  UND_ERR_HEADERS_OVERFLOW: 'protocol',
  UND_ERR_RESPONSE: 'protocol',
};

const FAULT_TEXT: Readonly<Record<NetworkFault, string>> = {
  refused: 'connection refused',
  reset: 'the connection broke',
  timeout: 'no answer in time',
  tls: 'the TLS connection could not be trusted or made (a private CA belongs in the registry’s hosts.toml)',
  dns: 'the name could not be looked up',
  protocol: 'the answer is not valid HTTP',
  proxy: 'the proxy refused or failed',
  network: 'the network failed',
};

const TLS_CODE = /^(ERR_TLS_|ERR_SSL_|CERT_|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_MISMATCH|INVALID_CA|INVALID_PURPOSE|CRL_|EPROTO$)/;

/** The `code` of an error, or of the first of several that were tried (IPv6, then IPv4). */
function codeOf(error: unknown): string {
  if (!(error instanceof Error)) return '';
  if ('code' in error && typeof error.code === 'string') return error.code;
  return error instanceof AggregateError ? codeOf(error.errors[0]) : '';
}

/** Sorts an error of the HTTP library or a socket. */
export function networkFaultOf(error: unknown): NetworkFault {
  const code = codeOf(error);
  if (TLS_CODE.test(code)) return 'tls';
  if (code.startsWith('HPE_')) return 'protocol';
  return FAULT[code] ?? 'network';
}

/** The error for a request that got no proper answer: always worth another try later. */
export function networkError(purpose: Purpose, error: unknown): AppError {
  const fault = networkFaultOf(error);
  const code = codeOf(error);
  return new AppError('Unavailable', {
    op: purpose.op,
    subject: purpose.subject,
    what: `${purpose.at}: ${FAULT_TEXT[fault]}${code === '' ? '' : ` (${code})`}`,
    // A certificate is mended by a person; asking every 200 ms for ten minutes helps nobody.
    retryAfterMs: fault === 'tls' ? 5_000 : DEFAULT_RETRY_AFTER_MS,
    details: { fault, endpoint: purpose.at },
  });
}

/** The peer broke the rules of HTTP or of the registry API in a way that another mirror may not. */
export function peerError(
  code: 'DataLoss' | 'Unavailable' | 'Unimplemented' | 'PermissionDenied',
  purpose: Purpose,
  what: string,
): AppError {
  return new AppError(code, {
    op: purpose.op,
    subject: purpose.subject,
    what: `${purpose.at}: ${what}`,
    details: { endpoint: purpose.at },
    ...(code === 'Unavailable' ? { retryAfterMs: DEFAULT_RETRY_AFTER_MS } : {}),
  });
}
