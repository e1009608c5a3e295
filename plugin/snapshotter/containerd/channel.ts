/**
 * Calls of containerd's gRPC services over its socket: generated messages in and out, failures as AppError. Every call names a namespace
 * (as containerd wants it, in a header), has a deadline and ends when its signal is aborted. Source: containerd's public package
 * `namespaces` and `leases` (headers).
 */
import { create, type DescMessage, type DescService, type MessageInitShape, type MessageShape } from '@bufbuild/protobuf';
import { Client, type ClientDuplexStream, credentials, Metadata, type MethodDefinition, type ServiceError } from '@grpc/grpc-js';
import { AppError, ERROR_STATUS, type ErrorCode } from '../../base/errors.ts';
import { MAX_GRPC_MESSAGE_BYTES } from '../../base/limits.ts';
import { serviceDefinitionOf } from '../grpc-adapter.ts';

/** containerd answers from its database, which waits for the disk at worst. */
const CALL_DEADLINE_MS = 30_000;

/** Where a call applies: containerd keeps images, content and leases of each namespace apart. */
export interface Scope {
  namespace?: string;
  /** What the call makes is kept from garbage collection as long as this lease lives. */
  lease?: string;
}

/** What a call is about, for errors. */
export interface CallAbout {
  op: string;
  subject: string;
  signal: AbortSignal;
  /** Milliseconds until the call is given up; default 30 s. Infinity: only the signal ends it. */
  deadlineMs?: number;
}

type Definition = MethodDefinition<unknown, unknown>;

const CODES = new Map<number, ErrorCode>(Object.entries(ERROR_STATUS).map(([code, { grpc }]) => [grpc, code as ErrorCode]));

function metadataOf(scope: Scope): Metadata {
  const metadata = new Metadata();
  if (scope.namespace !== undefined) metadata.set('containerd-namespace', scope.namespace);
  if (scope.lease !== undefined) metadata.set('containerd-lease', scope.lease);
  return metadata;
}

/** Translates what grpc-js rejects with. An aborted signal wins: its reason says why the call was given up. */
export function callFailure(error: unknown, { op, subject, signal }: CallAbout): unknown {
  if (signal.aborted) return signal.reason;
  const { code, details } = error as Partial<ServiceError>;
  if (typeof code !== 'number') return error;
  return new AppError(CODES.get(code) ?? 'Internal', { op, subject, what: `containerd says: ${details || 'nothing'}`, cause: error });
}

/** One connection; dispose of it when done. A containerd that restarts ends the calls under way with Unavailable. */
export class ContainerdChannel implements Disposable {
  private readonly client: Client;
  private readonly definitions = new Map<string, Readonly<Record<string, Definition>>>();

  /** Connects at the first call. */
  constructor(socketPath: string) {
    this.client = new Client(`unix:${socketPath}`, credentials.createInsecure(), {
      'grpc.max_receive_message_length': MAX_GRPC_MESSAGE_BYTES,
      // containerd sees no use for the socket's path as the host's name.
      'grpc.default_authority': 'localhost',
    });
  }

  /** Request, answer. Errors: containerd's, as AppError; Unavailable when it is not there. */
  call<In extends DescMessage, Out extends DescMessage>(
    method: { service: DescService; name: string; input: In; output: Out },
    request: MessageInitShape<In>,
    scope: Scope,
    about: CallAbout,
  ): Promise<MessageShape<Out>> {
    const { path, requestSerialize, responseDeserialize } = this.definition(method.service, method.name);
    return new Promise((resolve, reject) => {
      if (about.signal.aborted) {
        reject(about.signal.reason);
        return;
      }
      const cancel = (): void => call.cancel();
      const call = this.client.makeUnaryRequest(
        path,
        requestSerialize,
        responseDeserialize,
        create(method.input, request),
        metadataOf(scope),
        { deadline: Date.now() + (about.deadlineMs ?? CALL_DEADLINE_MS) },
        (error: ServiceError | null, answer?: unknown) => {
          about.signal.removeEventListener('abort', cancel);
          if (error === null) resolve(answer as MessageShape<Out>);
          else reject(callFailure(error, about));
        },
      );
      about.signal.addEventListener('abort', cancel, { once: true });
    });
  }

  /** Request, many answers. Errors as {@link call}. */
  async *read<In extends DescMessage, Out extends DescMessage>(
    method: { service: DescService; name: string; input: In; output: Out },
    request: MessageInitShape<In>,
    scope: Scope,
    about: CallAbout,
  ): AsyncGenerator<MessageShape<Out>> {
    about.signal.throwIfAborted();
    const { path, requestSerialize, responseDeserialize } = this.definition(method.service, method.name);
    const options = { deadline: Date.now() + (about.deadlineMs ?? CALL_DEADLINE_MS) };
    const message = create(method.input, request);
    const stream = this.client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, message, metadataOf(scope), options);
    const cancel = (): void => stream.cancel();
    about.signal.addEventListener('abort', cancel, { once: true });
    try {
      for await (const answer of stream) yield answer as MessageShape<Out>;
    } catch (error) {
      throw callFailure(error, about);
    } finally {
      about.signal.removeEventListener('abort', cancel);
      stream.cancel();
    }
  }

  /** Many requests, many answers; the caller ends or cancels it. */
  stream(service: DescService, name: string, scope: Scope): ClientDuplexStream<unknown, unknown> {
    const { path, requestSerialize, responseDeserialize } = this.definition(service, name);
    return this.client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, metadataOf(scope));
  }

  [Symbol.dispose](): void {
    this.client.close();
  }

  private definition(service: DescService, name: string): Definition {
    let methods = this.definitions.get(service.typeName);
    if (methods === undefined) {
      methods = serviceDefinitionOf(service) as Readonly<Record<string, Definition>>;
      this.definitions.set(service.typeName, methods);
    }
    const definition = methods[name];
    if (definition === undefined) throw new TypeError(`${service.typeName} has no method ${name}`);
    return definition;
  }
}
