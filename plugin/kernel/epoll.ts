/**
 * epoll(7): one set that several threads wait on. Level-triggered, so a descriptor that is still readable wakes the next waiter.
 * Layout of struct epoll_event: events u32, data u64; packed to 12 bytes on x86_64, 16 bytes with data at 8 elsewhere.
 */
import { ERRNO, lastErrno, libc, systemCallError } from './libc.ts';

const EPOLL_CLOEXEC = 0o2000000;
const EPOLLIN = 1;
const CTL_ADD = 1;
const CTL_DEL = 2;
const EVENT_BYTES = process.arch === 'x64' ? 12 : 16;
const DATA_OFFSET = process.arch === 'x64' ? 4 : 8;

/** Makes an epoll set and answers its descriptor, which every thread of the process may use. */
export function createEpoll(): number {
  const fd = libc.epollCreate(EPOLL_CLOEXEC);
  if (fd < 0) throw systemCallError('create epoll set', 'epoll_create1', lastErrno());
  return fd;
}

/** Adds a descriptor for reading; `tag` (0 … 2^32-1) comes back with its events. */
export function addToEpoll(epollFd: number, fd: number, tag: number): void {
  const event = Buffer.alloc(EVENT_BYTES);
  event.writeUInt32LE(EPOLLIN, 0);
  event.writeUInt32LE(tag, DATA_OFFSET);
  if (libc.epollControl(epollFd, CTL_ADD, fd, event) < 0) throw systemCallError('watch descriptor', String(fd), lastErrno());
}

/** Takes a descriptor out; one that is not in the set is not an error. */
export function removeFromEpoll(epollFd: number, fd: number): void {
  libc.epollControl(epollFd, CTL_DEL, fd, Buffer.alloc(EVENT_BYTES));
}

/** One thread's waiter: keeps its event buffer, and asks for one event at a time so that the others get theirs. */
export class EpollWaiter {
  private readonly epollFd: number;
  private readonly event = Buffer.alloc(EVENT_BYTES);

  constructor(epollFd: number) {
    this.epollFd = epollFd;
  }

  /** The tag of a readable (or failed) descriptor, or undefined after `timeoutMs`. Blocks the thread. */
  wait(timeoutMs: number): number | undefined {
    const count = libc.epollWait(this.epollFd, this.event, 1, timeoutMs);
    if (count > 0) return this.event.readUInt32LE(DATA_OFFSET);
    if (count === 0 || lastErrno() === ERRNO.EINTR) return undefined;
    throw systemCallError('wait for requests', `epoll ${this.epollFd}`, lastErrno());
  }
}
