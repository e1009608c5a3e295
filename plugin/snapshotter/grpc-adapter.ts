/**
 * Joins protobuf-es message types to @grpc/grpc-js, and failures to gRPC statuses as containerd reads them: the code decides, and the
 * text ends with the code's words in containerd's package `errdefs`, which its client takes off again.
 */
import { type DescService, fromBinary, toBinary } from '@bufbuild/protobuf';
import type { MethodDefinition, ServiceDefinition, StatusObject, UntypedServiceImplementation } from '@grpc/grpc-js';
import { Metadata } from '@grpc/grpc-js';
import { AppError, ERROR_STATUS, type ErrorCode } from '../base/errors.ts';

const ERRDEFS_TEXT: Partial<Record<ErrorCode, string>> = {
  InvalidArgument: 'invalid argument',
  NotFound: 'not found',
  AlreadyExists: 'already exists',
  FailedPrecondition: 'failed precondition',
  Unavailable: 'unavailable',
  Unimplemented: 'not implemented',
  Canceled: 'context canceled',
  DeadlineExceeded: 'context deadline exceeded',
};

/** A header frame holds 16 KiB by default; a longer message would break the answer itself. */
const MAX_MESSAGE_CHARS = 4096;

/** The status that tells a caller about `error`. An error that is not an AppError is a fault of ours; its text stays in the log. */
export function statusOf(error: unknown): StatusObject {
  const metadata = new Metadata();
  if (!(error instanceof AppError)) return { code: ERROR_STATUS.Internal.grpc, details: 'internal error, see the log: unknown', metadata };
  const ending = ERRDEFS_TEXT[error.code];
  const text = error.message.slice(0, MAX_MESSAGE_CHARS);
  return { code: ERROR_STATUS[error.code].grpc, details: ending === undefined ? text : `${text}: ${ending}`, metadata };
}

/** A grpc-js service definition of a generated service. */
export function serviceDefinitionOf(service: DescService): ServiceDefinition<UntypedServiceImplementation> {
  const methods = service.methods.map((method): [string, MethodDefinition<unknown, unknown>] => [
    method.localName,
    {
      path: `/${service.typeName}/${method.name}`,
      requestStream: method.methodKind === 'client_streaming' || method.methodKind === 'bidi_streaming',
      responseStream: method.methodKind === 'server_streaming' || method.methodKind === 'bidi_streaming',
      requestSerialize: (value) => Buffer.from(toBinary(method.input, value as never)),
      requestDeserialize: (bytes) => fromBinary(method.input, bytes),
      responseSerialize: (value) => Buffer.from(toBinary(method.output, value as never)),
      responseDeserialize: (bytes) => fromBinary(method.output, bytes),
      originalName: method.name,
    },
  ]);
  return Object.fromEntries(methods);
}
