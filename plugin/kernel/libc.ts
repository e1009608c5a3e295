/**
 * The C library calls that Node has no door to, through koffi. Every signature of the product's system calls stands here, because a
 * wrong one crashes the process; the wrappers beside this file give them names, checks and errors.
 * Source: the man-pages of each call; constants from the Linux UAPI headers for x86_64 and arm64.
 */
import koffi from 'koffi';
import { AppError, type ErrorCode } from '../base/errors.ts';

const lib = koffi.load('libc.so.6');

const IOVEC = koffi.struct('obd_iovec', { base: 'void *', length: 'size_t' });
koffi.struct('obd_msghdr', {
  name: 'void *',
  nameLength: 'uint32_t',
  iov: koffi.pointer(IOVEC),
  iovLength: 'size_t',
  control: 'void *',
  controlLength: 'size_t',
  flags: 'int',
});

export interface MessageHeader {
  name: Buffer | null;
  nameLength: number;
  iov: { base: Buffer; length: number }[];
  iovLength: number;
  control: Buffer | null;
  controlLength: number;
  flags: number;
}

/** Raw calls; a negative answer means errno is in {@link lastErrno}, to be read before anything else runs. */
export const libc = {
  mount: lib.func('int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)') as (
    source: string,
    target: string,
    type: string | null,
    flags: number,
    data: string | null,
  ) => number,
  umount2: lib.func('int umount2(const char *target, int flags)') as (target: string, flags: number) => number,
  ioctlValue: lib.func('int ioctl(int fd, unsigned long request, ...)') as (
    fd: number,
    request: number,
    type: string,
    value: number,
  ) => number,
  ioctlBuffer: lib.func('int ioctl(int fd, unsigned long request, ...)') as (
    fd: number,
    request: number,
    type: string,
    value: Uint8Array,
  ) => number,
  /** open_tree(2), number 428 on every architecture; libraries older than 2.36 have no name for it. */
  openTree: lib.func('long syscall(long number, int directory, const char *path, unsigned int flags)') as (
    number: 428,
    directory: number,
    path: string,
    flags: number,
  ) => number,
  /** move_mount(2), number 429. */
  moveMount: lib.func('long syscall(long number, int from, const char *fromPath, int to, const char *toPath, unsigned int flags)') as (
    number: 429,
    from: number,
    fromPath: string,
    to: number,
    toPath: string,
    flags: number,
  ) => number,
  /** mount_setattr(2), number 442. */
  mountSetattr: lib.func(
    'long syscall(long number, int directory, const char *path, unsigned int flags, const void *attributes, size_t size)',
  ) as (number: 442, directory: number, path: string, flags: number, attributes: Uint8Array, size: number) => number,
  read: lib.func('intptr_t read(int fd, void *buffer, size_t count)') as (fd: number, buffer: Uint8Array, count: number) => number,
  write: lib.func('intptr_t write(int fd, const void *buffer, size_t count)') as (fd: number, buffer: Uint8Array, count: number) => number,
  gettid: lib.func('int gettid()') as () => number,
  close: lib.func('int close(int fd)') as (fd: number) => number,
  epollCreate: lib.func('int epoll_create1(int flags)') as (flags: number) => number,
  epollControl: lib.func('int epoll_ctl(int epfd, int op, int fd, void *event)') as (
    epfd: number,
    op: number,
    fd: number,
    event: Uint8Array,
  ) => number,
  epollWait: lib.func('int epoll_wait(int epfd, void *events, int maxevents, int timeout)') as (
    epfd: number,
    events: Uint8Array,
    maxEvents: number,
    timeoutMs: number,
  ) => number,
  eventfd: lib.func('int eventfd(unsigned int initial, int flags)') as (initial: number, flags: number) => number,
  socket: lib.func('int socket(int domain, int type, int protocol)') as (domain: number, type: number, protocol: number) => number,
  socketpair: lib.func('int socketpair(int domain, int type, int protocol, int *pair)') as (
    domain: number,
    type: number,
    protocol: number,
    pair: Int32Array,
  ) => number,
  sendmsg: lib.func('intptr_t sendmsg(int fd, obd_msghdr *message, int flags)') as (
    fd: number,
    message: MessageHeader,
    flags: number,
  ) => number,
  recvmsg: lib.func('intptr_t recvmsg(int fd, _Inout_ obd_msghdr *message, int flags)') as (
    fd: number,
    message: MessageHeader,
    flags: number,
  ) => number,
  poll: lib.func('int poll(void *fds, unsigned long count, int timeout)') as (fds: Uint8Array, count: number, timeoutMs: number) => number,
  flock: lib.func('int flock(int fd, int operation)') as (fd: number, operation: number) => number,
  fcntl: lib.func('int fcntl(int fd, int command, ...)') as (fd: number, command: number, type: string, value: number) => number,
  /** Gives free memory at the end of all arenas, and whole free pages within them, back to the kernel. */
  mallocTrim: lib.func('int malloc_trim(size_t pad)') as (pad: number) => number,
  prctl: lib.func('int prctl(int option, unsigned long a, unsigned long b, unsigned long c, unsigned long d)') as (
    option: number,
    a: number,
    b: number,
    c: number,
    d: number,
  ) => number,
};

/** errno of the last call made by this thread. */
export function lastErrno(): number {
  return koffi.errno();
}

/** Linux errno numbers that the product acts on. */
export const ERRNO = {
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  EAGAIN: 11,
  EBUSY: 16,
  ENODEV: 19,
  EINVAL: 22,
  ECONNABORTED: 103,
  ENOTBLK: 15,
  ENOSYS: 38,
  ENXIO: 6,
  ENOTCONN: 107,
  ESTALE: 116,
} as const;

const ERRNO_NAMES: ReadonlyMap<number, string> = new Map(Object.entries(koffi.os.errno).map(([name, number]) => [number as number, name]));

/** The symbolic name of an errno (`ENOENT`), or its number as text. */
export function errnoName(errno: number): string {
  return ERRNO_NAMES.get(errno) ?? `errno ${errno}`;
}

/** An AppError for a failed system call. `details.errno` holds the number. */
export function systemCallError(op: string, subject: string, errno: number, code: ErrorCode = 'Internal'): AppError {
  return new AppError(code, { op, subject, what: `${errnoName(errno)} (errno ${errno})`, details: { errno } });
}
