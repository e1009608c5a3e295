/**
 * epoll(7): one set that several threads wait on. Edge-triggered: each arrival wakes one thread (level-triggered sets wake a second one
 * in vain, which doubles the CPU of a lone reader), so a thread that was woken reads until EAGAIN or says {@link rearm}.
 * Layout of struct epoll_event: events u32, data u64; packed to 12 bytes on x86_64, 16 bytes with data at 8 elsewhere.
 */
import { ERRNO, lastErrno, libc, systemCallError } from './libc.ts';

const EPOLL_CLOEXEC = 0o2000000;
const EPOLLIN = 1;
const EPOLLET = 2 ** 31;
const CTL_ADD = 1;
const CTL_DEL = 2;
const CTL_MOD = 3;
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
  if (libc.epollControl(epollFd, CTL_ADD, fd, readEvent(tag)) < 0) throw systemCallError('watch descriptor', String(fd), lastErrno());
}

/** Reports the descriptor again if it is still readable: for a thread that stops reading before EAGAIN. */
export function rearm(epollFd: number, fd: number, tag: number): void {
  // ENOENT: another thread has taken it out meanwhile, and nobody wants its events any more.
  libc.epollControl(epollFd, CTL_MOD, fd, readEvent(tag));
}

function readEvent(tag: number): Buffer {
  const event = Buffer.alloc(EVENT_BYTES);
  event.writeUInt32LE(EPOLLIN + EPOLLET, 0);
  event.writeUInt32LE(tag, DATA_OFFSET);
  return event;
}

/**
 * Wakes every thread that waits on the set, now and at each later wait, with `tag`: for the end of the set. Level-triggered and never
 * read, so that one thread's waking does not use it up. Returns the descriptor that does it.
 */
export function wakeAll(epollFd: number, tag: number): number {
  const fd = libc.eventfd(1, EPOLL_CLOEXEC);
  if (fd < 0) throw systemCallError('wake threads of', `epoll ${epollFd}`, lastErrno());
  const event = readEvent(tag);
  event.writeUInt32LE(EPOLLIN, 0);
  if (libc.epollControl(epollFd, CTL_ADD, fd, event) < 0) throw systemCallError('wake threads of', `epoll ${epollFd}`, lastErrno());
  return fd;
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
