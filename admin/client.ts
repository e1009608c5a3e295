/** A small client of the admin API over its unix socket, for `obdctl`. */
import http from 'node:http';
import { AppError, errnoOf } from '../plugin/base/errors.ts';
import { MIB } from '../plugin/base/units.ts';
import { errorSchema } from './errors.ts';
import { HEARTBEAT_MS } from './limits.ts';

/** The largest page of a list is about 1 MiB; metrics of 1000 devices about the same. */
const MAX_ANSWER_BYTES = 64 * MIB;

export type AdminMethod = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';

export interface AdminRequest {
  socketPath: string;
  method: AdminMethod;
  path: string;
  body?: unknown;
  headers?: Readonly<Record<string, string>>;
  /** Milliseconds until the call is given up. */
  timeoutMs: number;
}

/** True when the service could not be reached at all, as against having refused. */
export function isUnreachable(error: unknown): boolean {
  return error instanceof AppError && error.details.isUnreachable === true;
}

function unreachable(socketPath: string, error: unknown): AppError {
  const errno = errnoOf(error);
  const common = { subject: socketPath, details: { isUnreachable: true }, cause: error };
  if (errno === 'ENOENT' || errno === 'ECONNREFUSED') {
    const what = 'the service is not running (systemctl status overlaybd-sidecar)';
    return new AppError('Unavailable', { op: 'connect to', what, ...common });
  }
  if (errno === 'EACCES' || errno === 'EPERM') {
    return new AppError('PermissionDenied', { op: 'connect to', what: 'only root may use the admin socket (sudo obdctl …)', ...common });
  }
  return new AppError('Unavailable', { op: 'talk to', what: `connection failed (${errno ?? String(error)})`, ...common });
}

/**
 * Sends one request and reads the whole answer. `text` is the body of any status below 400. Throws the service's AppError for the rest,
 * Unavailable when the service does not run, DeadlineExceeded after `timeoutMs`.
 */
export function callAdmin(request: AdminRequest): Promise<{ status: number; text: string }> {
  const { socketPath, method, path, timeoutMs } = request;
  const payload = request.body === undefined ? undefined : JSON.stringify(request.body);
  const headers = { host: 'localhost', ...request.headers, ...(payload === undefined ? {} : { 'content-type': 'application/json' }) };
  return new Promise((resolve, reject) => {
    const signal = AbortSignal.timeout(timeoutMs);
    const fail = (error: unknown): void => {
      const what = `no answer in ${timeoutMs / 1000} s`;
      reject(
        signal.aborted
          ? new AppError('DeadlineExceeded', { op: method, subject: path, what, cause: error })
          : unreachable(socketPath, error),
      );
    };
    const call = http.request({ socketPath, method, path, headers, signal }, (response) => {
      const chunks: Buffer[] = [];
      let sizeBytes = 0;
      response.on('data', (chunk: Buffer) => {
        sizeBytes += chunk.length;
        chunks.push(chunk);
        if (sizeBytes > MAX_ANSWER_BYTES) call.destroy(new Error(`answer is longer than ${MAX_ANSWER_BYTES} bytes`));
      });
      response.on('error', fail);
      response.on('end', () => {
        const text = Buffer.concat(chunks).toString('utf8');
        const status = response.statusCode ?? 500;
        if (status < 400) resolve({ status, text });
        else reject(refusal(method, path, status, text));
      });
    });
    call.on('error', fail);
    call.end(payload);
  });
}

/** Of a stream of events: two heartbeats did not come. */
const MAX_SILENCE_MS = 2.5 * HEARTBEAT_MS;

/** The longest event: a job is 2 KiB. */
const MAX_EVENT_BYTES = 1 * MIB;

/**
 * The data of server-sent events of one path, as they come, until the service ends the stream. Throws as {@link callAdmin}; a stream that
 * breaks, or is silent for `silenceMs`, is Unavailable.
 */
export async function* watchAdmin(socketPath: string, path: string, silenceMs = MAX_SILENCE_MS): AsyncGenerator<string> {
  const response = await new Promise<http.IncomingMessage>((resolve, reject) => {
    const headers = { host: 'localhost', accept: 'text/event-stream' };
    const call = http.request({ socketPath, method: 'GET', path, headers, timeout: silenceMs }, (begun) => {
      call.off('timeout', giveUp).on('timeout', () => begun.destroy(silence));
      resolve(begun);
    });
    const silence = new Error(`nothing came for ${silenceMs / 1000} s`);
    const giveUp = (): void => void call.destroy(silence);
    call.on('timeout', giveUp);
    call.on('error', (error) => reject(unreachable(socketPath, error)));
    call.end();
  });
  let text = '';
  try {
    for await (const chunk of response.setEncoding('utf8') as AsyncIterable<string>) {
      text += chunk;
      if (text.length > MAX_EVENT_BYTES) throw new Error(`an event is longer than ${MAX_EVENT_BYTES} bytes`);
      if ((response.statusCode ?? 500) >= 400) continue;
      for (let end = text.indexOf('\n\n'); end !== -1; end = text.indexOf('\n\n')) {
        const data = /^data: (.*)$/m.exec(text.slice(0, end))?.[1];
        text = text.slice(end + 2);
        if (data !== undefined) yield data;
      }
    }
  } catch (error) {
    throw unreachable(socketPath, error);
  }
  const status = response.statusCode ?? 500;
  if (status >= 400) throw refusal('GET', path, status, text);
}

/** The service's error, as it was thrown there. */
function refusal(method: string, path: string, status: number, text: string): AppError {
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch (error) {
    return new AppError('Internal', { op: method, subject: path, what: `status ${status} without a JSON body`, cause: error });
  }
  const wire = errorSchema.safeParse(body);
  if (!wire.success) return new AppError('Internal', { op: method, subject: path, what: `status ${status} without a reason` });
  const { message, details } = wire.data;
  const { kind, op, subject, retryAfterMs, ...facts } = details;
  return new AppError(kind, {
    ...{ op, subject, what: message.slice(`${op} ${subject}: `.length) },
    ...(retryAfterMs === undefined ? {} : { retryAfterMs }),
    details: Object.fromEntries(Object.entries(facts).flatMap(([name, fact]) => (isFact(fact) ? [[name, fact]] : []))),
  });
}

function isFact(value: unknown): value is string | number | boolean {
  return ['string', 'number', 'boolean'].includes(typeof value);
}
