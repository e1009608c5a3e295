/** Ports and plain HTTP questions on loopback. Ours. */
import { randomInt } from 'node:crypto';
import { createServer, type Server } from 'node:net';
import { errnoOf } from '../../plugin/base/errors.ts';

/** Below the ports that the kernel gives to connections and to listeners who name none (ip_local_port_range): nobody else takes these. */
const PORTS = [12_000, 32_000] as const;

/** Listens on 127.0.0.1 where one may listen again after a stop; returns the port. */
export async function listenOnOwnPort(server: Server): Promise<number> {
  for (;;) {
    const port = randomInt(...PORTS);
    try {
      await listenOn(server, port);
      return port;
    } catch (error) {
      if (errnoOf(error) !== 'EADDRINUSE') throw error;
    }
  }
}

/** Listens on a port of 127.0.0.1. */
export function listenOn(server: Server, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(port, '127.0.0.1', () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** A TCP port on 127.0.0.1 that was free a moment ago, and that no connection takes meanwhile. */
export async function freePort(): Promise<number> {
  const server = createServer();
  const port = await listenOnOwnPort(server);
  await new Promise((resolve) => server.close(resolve));
  return port;
}

/** True when a GET is answered at all within the deadline, whatever the status. */
export async function answersHttp(url: string, timeoutMs = 2_000): Promise<boolean> {
  const response = await fetch(url, { signal: AbortSignal.timeout(timeoutMs) });
  await response.arrayBuffer();
  return true;
}
