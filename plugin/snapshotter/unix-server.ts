/** A gRPC server on a unix socket that only root can reach. */
import fs from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { Server, ServerCredentials, type ServiceDefinition, type UntypedServiceImplementation } from '@grpc/grpc-js';
import { AppError, errnoOf } from '../base/errors.ts';
import { MAX_GRPC_MESSAGE_BYTES } from '../base/limits.ts';

/** Calls under way get this long to end at a stop; an image that does not come may not hold up an upgrade. */
const DRAIN_MS = 5_000;

/** A living server accepts at once. */
const PROBE_MS = 2_000;

/** True if somebody serves on the socket. */
function isServed(socketPath: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect(socketPath);
    const answer = (isAlive: boolean) => (): void => {
      socket.destroy();
      resolve(isAlive);
    };
    socket.setTimeout(PROBE_MS, answer(false));
    socket.once('connect', answer(true));
    socket.once('error', answer(false));
  });
}

/** Removes a socket that a dead server left. Throws FailedPrecondition if it is alive. */
export async function removeStaleSocket(socketPath: string): Promise<void> {
  if (await isServed(socketPath)) {
    throw new AppError('FailedPrecondition', { op: 'listen', subject: socketPath, what: 'another process serves on this socket' });
  }
  try {
    await fs.unlink(socketPath);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
}

/**
 * Serves until disposed of. Errors: FailedPrecondition (socket in use), Internal (cannot be bound). Disposing lets running calls end
 * for a few seconds, then cuts them off.
 */
export async function serveOnSocket(
  socketPath: string,
  services: readonly { definition: ServiceDefinition<UntypedServiceImplementation>; implementation: UntypedServiceImplementation }[],
): Promise<AsyncDisposable> {
  // The directory's mode protects the socket before its own does.
  await fs.mkdir(path.dirname(socketPath), { recursive: true, mode: 0o700 });
  await fs.chmod(path.dirname(socketPath), 0o700);
  await removeStaleSocket(socketPath);
  const server = new Server({
    'grpc.max_receive_message_length': MAX_GRPC_MESSAGE_BYTES,
    'grpc.max_send_message_length': MAX_GRPC_MESSAGE_BYTES,
  });
  for (const { definition, implementation } of services) server.addService(definition, implementation);
  await new Promise<void>((resolve, reject) => {
    server.bindAsync(`unix:${socketPath}`, ServerCredentials.createInsecure(), (cause) => {
      if (cause === null) resolve();
      else reject(new AppError('Internal', { op: 'listen', subject: socketPath, what: cause.message, cause }));
    });
  });
  await fs.chmod(socketPath, 0o600);
  return {
    [Symbol.asyncDispose]: () =>
      new Promise((resolve) => {
        const cutOff = setTimeout(() => {
          server.forceShutdown();
          resolve();
        }, DRAIN_MS);
        server.tryShutdown(() => {
          clearTimeout(cutOff);
          resolve();
        });
      }),
  };
}
