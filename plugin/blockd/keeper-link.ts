/** blockd's side of the conversation with the keeper: asks for connections, answers its probes. */
import fs from 'node:fs';
import { AppError } from '../base/errors.ts';
import { DESCRIPTOR_SOCKET_FD, type FromKeeper, type ToKeeper } from '../base/keeper-protocol.ts';
import type { Logger } from '../base/log.ts';
import { receiveDescriptor } from '../kernel/fd-passing.ts';

/** The keeper answers at once; this much silence means that it is gone. */
const REPLY_LIMIT_MS = 5000;

/** The descriptor is on its way before the reply is. */
const DESCRIPTOR_LIMIT_MS = 1000;

type Request = { op: 'open' | 'take'; device: string; mountPath: string } | { op: 'list' } | { op: 'close'; device: string };

export class KeeperLink {
  private readonly waiting = new Map<number, { resolve: (message: FromKeeper & { op: 'reply' }) => void; timer: NodeJS.Timeout }>();
  private readonly onStop: (options: { unmount: boolean }) => void;
  private readonly log: Logger;
  private nextId = 1;

  constructor(options: { onStop: (options: { unmount: boolean }) => void; log: Logger }) {
    this.onStop = options.onStop;
    this.log = options.log;
    // What the keeper sent to a predecessor that died before it looked.
    for (let stale = receiveDescriptor(DESCRIPTOR_SOCKET_FD, 0); stale; stale = receiveDescriptor(DESCRIPTOR_SOCKET_FD, 0))
      fs.closeSync(stale.fd);
    process.on('message', (message) => this.receive(message as FromKeeper));
  }

  /** Says that every device that can be served is served. */
  ready(): void {
    this.send({ op: 'ready' });
  }

  /** Makes and mounts a connection (or answers the one that exists); returns its descriptor, owned by the caller. */
  async open(device: string, mountPath: string): Promise<number> {
    await this.ask({ op: 'open', device, mountPath });
    return this.receive1(device);
  }

  /** The descriptor of a connection that exists; owned by the caller. */
  async take(device: string, mountPath: string): Promise<number> {
    await this.ask({ op: 'take', device, mountPath });
    return this.receive1(device);
  }

  async list(): Promise<string[]> {
    return (await this.ask({ op: 'list' })).devices ?? [];
  }

  /** Lets the keeper forget a connection whose last user is gone. */
  async close(device: string): Promise<void> {
    await this.ask({ op: 'close', device });
  }

  private receive1(device: string): number {
    for (;;) {
      const received = receiveDescriptor(DESCRIPTOR_SOCKET_FD, DESCRIPTOR_LIMIT_MS);
      if (received === undefined)
        throw new AppError('Internal', { op: 'receive descriptor of', subject: device, what: 'the keeper sent none' });
      if (received.name === device) return received.fd;
      // Of a request whose answer came too late: left there, it would be taken for the next one's, and so on for ever.
      fs.closeSync(received.fd);
    }
  }

  private ask(request: Request): Promise<FromKeeper & { op: 'reply' }> {
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.waiting.delete(id);
        reject(
          new AppError('Unavailable', { op: `ask keeper to ${request.op}`, subject: 'blockd', what: `no reply in ${REPLY_LIMIT_MS} ms` }),
        );
      }, REPLY_LIMIT_MS);
      this.waiting.set(id, {
        timer,
        resolve: (message) => {
          if (message.error === undefined) resolve(message);
          else reject(new AppError('Internal', { op: `ask keeper to ${request.op}`, subject: 'device', what: message.error }));
        },
      });
      this.send({ ...request, id });
    });
  }

  private receive(message: FromKeeper): void {
    if (message.op === 'ping') this.send({ op: 'pong', id: message.id });
    else if (message.op === 'stop') this.onStop({ unmount: message.unmount });
    else {
      const waiting = this.waiting.get(message.id);
      if (waiting === undefined) return;
      this.waiting.delete(message.id);
      clearTimeout(waiting.timer);
      waiting.resolve(message);
    }
  }

  private send(message: ToKeeper): void {
    process.send?.(message, undefined, undefined, (error) => {
      if (error) this.log.warn({ err: error, op: message.op }, 'the keeper does not hear');
    });
  }
}
