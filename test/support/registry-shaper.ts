/**
 * A TCP proxy that adds a round trip and limits the rate, for measurements on a kernel without netem. Bytes pass unchanged (TLS too).
 * All connections share one rate in each direction, as they share one link; half of the round trip is spent each way, and a connection's
 * first bytes wait one more, as for the handshake.
 */
import { createConnection, createServer, type Server, type Socket } from 'node:net';

export interface ShaperOptions {
  /** `host:port` to forward to. */
  readonly target: string;
  /** Bytes per second in each direction; default unlimited. */
  readonly rateBytesPerS?: number;
  /** Milliseconds; default 0. */
  readonly roundTripMs?: number;
  /** Port to listen on at 127.0.0.1; default any. */
  readonly port?: number;
}

export interface Shaper {
  /** `127.0.0.1:port`. */
  readonly host: string;
  /** Bytes that passed to and from the client, and connections made, since the start. */
  readonly counters: { downBytes: number; upBytes: number; connectionCount: number };
  /** Changes the link from now on. */
  setLink(link: { rateBytesPerS?: number; roundTripMs?: number }): void;
  close(): Promise<void>;
}

/** Pieces are cut to this, so that connections take turns on the link. */
const PIECE_BYTES = 16 * 1024;
/** Least room of one direction of one connection. */
const MIN_QUEUE_BYTES = 256 * 1024;

class Link {
  rateBytesPerS: number;
  roundTripMs: number;
  private freeAtMs = 0;

  constructor(rateBytesPerS: number, roundTripMs: number) {
    this.rateBytesPerS = rateBytesPerS;
    this.roundTripMs = roundTripMs;
  }

  /** Books the link for a piece; returns when its last byte arrives. */
  book(sizeBytes: number, nowMs: number): number {
    const startMs = Math.max(nowMs, this.freeAtMs);
    this.freeAtMs = startMs + (sizeBytes / this.rateBytesPerS) * 1000;
    return this.freeAtMs + this.roundTripMs / 2;
  }

  /** What is booked already no longer keeps the link: for a change of its rate. */
  free(): void {
    this.freeAtMs = 0;
  }

  /** A queue this long lets one connection fill the link. */
  get queueBytes(): number {
    const inFlight = Number.isFinite(this.rateBytesPerS) ? (this.rateBytesPerS * this.roundTripMs) / 1000 : 16 * 1024 * 1024;
    return Math.max(MIN_QUEUE_BYTES, 2 * inFlight);
  }
}

/** Moves bytes one way through the link. */
function pump(from: Socket, to: Socket, link: Link, handshakeMs: number, count: (bytes: number) => void): void {
  const queue: { bytes: Buffer; dueMs: number }[] = [];
  let queuedBytes = 0;
  let timer: NodeJS.Timeout | undefined;
  let isEnded = false;
  let extraMs = handshakeMs;

  const deliver = (): void => {
    timer = undefined;
    const nowMs = performance.now();
    while (queue[0] !== undefined && queue[0].dueMs <= nowMs + 0.5) {
      const { bytes } = queue.shift()!;
      queuedBytes -= bytes.length;
      count(bytes.length);
      if (!to.destroyed && !to.write(bytes)) {
        to.once('drain', deliver);
        break;
      }
    }
    if (from.isPaused() && queuedBytes < link.queueBytes / 2) from.resume();
    if (queue[0] !== undefined) {
      if (!to.writableNeedDrain) timer = setTimeout(deliver, Math.max(queue[0].dueMs - nowMs, 0));
    } else if (isEnded) to.end();
  };
  from.on('data', (data: Buffer) => {
    const nowMs = performance.now();
    for (let at = 0; at < data.length; at += PIECE_BYTES) {
      const bytes = data.subarray(at, at + PIECE_BYTES);
      queue.push({ bytes, dueMs: link.book(bytes.length, nowMs) + extraMs });
      queuedBytes += bytes.length;
    }
    if (queuedBytes > link.queueBytes) from.pause();
    if (timer === undefined && !to.writableNeedDrain) timer = setTimeout(deliver, Math.max((queue[0]?.dueMs ?? nowMs) - nowMs, 0));
    extraMs = 0;
  });
  from.on('end', () => {
    isEnded = true;
    if (queue.length === 0) to.end();
  });
  from.on('close', () => {
    if (!isEnded) to.destroy();
  });
  to.on('close', () => clearTimeout(timer));
}

/** Starts a shaper on loopback. Close it, or the process stays. */
export async function startShaper(options: ShaperOptions): Promise<Shaper> {
  const colon = options.target.lastIndexOf(':');
  const target = { host: options.target.slice(0, colon), port: Number(options.target.slice(colon + 1)) };
  const down = new Link(options.rateBytesPerS ?? Number.POSITIVE_INFINITY, options.roundTripMs ?? 0);
  const up = new Link(down.rateBytesPerS, down.roundTripMs);
  const counters = { downBytes: 0, upBytes: 0, connectionCount: 0 };
  const sockets = new Set<Socket>();
  const server: Server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    counters.connectionCount += 1;
    const upstream = createConnection({ ...target, allowHalfOpen: true, noDelay: true });
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ] as const) {
      sockets.add(socket);
      socket.on('error', () => other.destroy());
      socket.on('close', () => sockets.delete(socket));
    }
    pump(client, upstream, up, up.roundTripMs, (bytes) => (counters.upBytes += bytes));
    pump(upstream, client, down, 0, (bytes) => (counters.downBytes += bytes));
  });
  await new Promise<void>((resolve, reject) => server.once('error', reject).listen(options.port ?? 0, '127.0.0.1', resolve));
  const address = server.address();
  if (address === null || typeof address === 'string') throw new Error('a TCP server has a port');
  return {
    host: `127.0.0.1:${address.port}`,
    counters,
    setLink(link) {
      for (const direction of [down, up]) {
        direction.rateBytesPerS = link.rateBytesPerS ?? direction.rateBytesPerS;
        direction.roundTripMs = link.roundTripMs ?? direction.roundTripMs;
        direction.free();
      }
    },
    async close() {
      for (const socket of sockets) socket.destroy();
      await new Promise<void>((resolve) => server.close(() => resolve()));
    },
  };
}
