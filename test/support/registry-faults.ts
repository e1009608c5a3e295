/**
 * Faults that a test asks of a registry, and their effect on an answer that is otherwise complete. Used by the in-memory registry and by
 * the proxy in front of a real one.
 */
import type { IncomingMessage, ServerResponse } from 'node:http';

export type FaultEffect =
  /** Break the connection (RST) before the head, or after this much of the body. */
  | { readonly kind: 'reset'; readonly afterBytes?: number }
  /** Send this much of the body (or not even the head) and then nothing, until the client goes away. */
  | { readonly kind: 'stall'; readonly afterBytes?: number }
  /** Announce the whole body, close (FIN) after this much. */
  | { readonly kind: 'truncate'; readonly afterBytes: number }
  /** Another Content-Range than the one that was asked for. */
  | { readonly kind: 'contentRange'; readonly value: string }
  /** Answer a range with 200 and the whole blob. */
  | { readonly kind: 'ignoreRange' }
  /** Any status instead of the answer. */
  | { readonly kind: 'status'; readonly status: number; readonly headers?: Readonly<Record<string, string>>; readonly body?: string }
  /** 307 to there. */
  | { readonly kind: 'redirect'; readonly location: string }
  /** Flip the bits of one byte of the body. */
  | { readonly kind: 'corrupt'; readonly atByte?: number }
  /** Take this much of the request's body, keep it, and break the connection. */
  | { readonly kind: 'resetUpload'; readonly afterBytes: number }
  /** Wait before answering properly. */
  | { readonly kind: 'delay'; readonly delayMs: number };

export interface Fault {
  readonly effect: FaultEffect;
  /** How many matching requests it hits. Default 1. */
  readonly times?: number;
  readonly method?: string;
  /** Tested against path and query. Default: blobs' GETs of any kind. */
  readonly path?: RegExp;
  /** Which server. Default: any. */
  readonly server?: 'registry' | 'storage' | 'token';
}

/** The faults still to come, in the order they were asked for. */
export class FaultList {
  private readonly faults: { fault: Fault; left: number }[] = [];

  add(fault: Fault): void {
    this.faults.push({ fault, left: fault.times ?? 1 });
  }

  clear(): void {
    this.faults.length = 0;
  }

  /** Takes the first fault that fits the request. */
  take(request: { method: string; url: string; server: 'registry' | 'storage' | 'token' }): FaultEffect | undefined {
    const found = this.faults.find(({ fault, left }) => {
      if (left === 0 || (fault.server !== undefined && fault.server !== request.server)) return false;
      if (fault.method !== undefined && fault.method !== request.method) return false;
      return (fault.path ?? /\/(blobs|storage)\//).test(request.url);
    });
    if (found === undefined) return undefined;
    found.left -= 1;
    return found.fault.effect;
  }
}

/** An answer before a fault gets at it. */
export interface Answer {
  status: number;
  headers: Record<string, string>;
  body: Buffer;
}

/** Changes what is said; how it is sent is {@link sendAnswer}'s business. `whole` is the blob of which `answer` holds a range. */
export function applyFault(answer: Answer, effect: FaultEffect | undefined, whole: Buffer | undefined): Answer {
  switch (effect?.kind) {
    case 'contentRange':
      return { ...answer, headers: { ...answer.headers, 'content-range': effect.value } };
    case 'ignoreRange':
      if (whole === undefined) return answer;
      return { status: 200, headers: { 'content-type': 'application/octet-stream', 'content-length': String(whole.length) }, body: whole };
    case 'status': {
      const body = Buffer.from(effect.body ?? '');
      return { status: effect.status, headers: { 'content-length': String(body.length), ...effect.headers }, body };
    }
    case 'redirect':
      return { status: 307, headers: { location: effect.location, 'content-length': '0' }, body: Buffer.alloc(0) };
    case 'corrupt': {
      const body = Buffer.from(answer.body);
      const at = Math.min(effect.atByte ?? 0, body.length - 1);
      if (at >= 0) body[at] = body[at]! ^ 0xff;
      return { ...answer, body };
    }
    default:
      return answer;
  }
}

/** Sends an answer, breaking off as the fault says. Resolves to the bytes of body sent. */
export async function sendAnswer(
  request: IncomingMessage,
  response: ServerResponse,
  answer: Answer,
  effect: FaultEffect | undefined,
): Promise<number> {
  const { socket } = response;
  if (effect?.kind === 'delay') await new Promise((resolve) => setTimeout(resolve, effect.delayMs));
  const isHead = request.method === 'HEAD';
  const isBroken = effect?.kind === 'reset' || effect?.kind === 'stall' || effect?.kind === 'truncate';
  if (!isBroken || isHead) {
    response.writeHead(answer.status, answer.headers);
    response.end(isHead ? undefined : answer.body);
    return isHead ? 0 : answer.body.length;
  }
  const { afterBytes } = effect;
  if (afterBytes !== undefined) {
    response.writeHead(answer.status, answer.headers);
    response.flushHeaders();
    const part = answer.body.subarray(0, afterBytes);
    await new Promise<void>((resolve) => response.write(part, () => resolve()));
  }
  if (effect.kind === 'reset') socket?.resetAndDestroy();
  else if (effect.kind === 'truncate') socket?.end();
  return afterBytes ?? 0;
}
