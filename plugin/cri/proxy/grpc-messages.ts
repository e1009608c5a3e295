/**
 * gRPC over HTTP/2 for calls of one message each way. Source: grpc/doc/PROTOCOL-HTTP2.md (length-prefixed messages, status in trailers,
 * percent-encoding of the message).
 */
import type { StatusObject } from '@grpc/grpc-js';
import { AppError } from '../../base/errors.ts';

/** Names and values in turn, as they come from the wire; equal names stay apart. */
export type RawHeaders = readonly string[];

/** One answer: headers, at most one message, trailers (empty when the headers ended the stream). */
export interface UnaryAnswer {
  readonly headers: RawHeaders;
  /** Undefined when the call failed. Owned. */
  readonly message: Uint8Array | undefined;
  readonly trailers: RawHeaders;
}

const PREFIX_BYTES = 5;

/** The length-prefixed form of an uncompressed message. */
export function frameMessage(message: Uint8Array): Buffer {
  const framed = Buffer.alloc(PREFIX_BYTES + message.length);
  framed.writeUInt32BE(message.length, 1);
  framed.set(message, PREFIX_BYTES);
  return framed;
}

/** The one message of a body. Undefined: there is none, or it is compressed, or not alone, so that it is passed on unread. */
export function unframeMessage(body: Uint8Array): Uint8Array | undefined {
  if (body.length < PREFIX_BYTES || body[0] !== 0) return undefined;
  const length = Buffer.from(body.buffer, body.byteOffset, body.length).readUInt32BE(1);
  return body.length === PREFIX_BYTES + length ? body.subarray(PREFIX_BYTES) : undefined;
}

/** The first value of a header; undefined when it is absent. */
export function headerValue(headers: RawHeaders, name: string): string | undefined {
  for (let i = 0; i + 1 < headers.length; i += 2) if (headers[i] === name) return headers[i + 1];
  return undefined;
}

/** gRPC status of an answer: 0 is success. 2 (Unknown) when it says none. */
export function grpcStatusOf(answer: UnaryAnswer): number {
  const text = headerValue(answer.trailers, 'grpc-status') ?? headerValue(answer.headers, 'grpc-status');
  return text === undefined ? 2 : Number(text);
}

/** What gRPC allows unescaped in `grpc-message`: printable ASCII without `%`. */
function percentEncode(text: string): string {
  return text.replace(/[^\x20-\x24\x26-\x7e]/gu, (character) => encodeURIComponent(character.isWellFormed() ? character : '\ufffd'));
}

/** A success with this message. */
export function successAnswer(message: Uint8Array): UnaryAnswer {
  return { headers: [':status', '200', 'content-type', 'application/grpc'], message, trailers: ['grpc-status', '0'] };
}

type Status = Pick<StatusObject, 'code' | 'details'>;

/** What ends an answer that has begun and cannot go on. */
export function failureTrailers({ code, details }: Status): RawHeaders {
  return ['grpc-status', String(code), 'grpc-message', percentEncode(details)];
}

/** A failure, as headers alone. */
export function failureAnswer(status: Status): UnaryAnswer {
  const headers = [':status', '200', 'content-type', 'application/grpc', ...failureTrailers(status)];
  return { headers, message: undefined, trailers: [] };
}

/** containerd cannot be reached. */
export function awayError(socketPath: string, cause: unknown): AppError {
  return new AppError('Unavailable', { op: 'connect to containerd at', subject: socketPath, what: 'it does not answer', cause });
}
