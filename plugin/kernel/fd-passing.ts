/**
 * File descriptors that travel between processes: SCM_RIGHTS over unix sockets (unix(7), cmsg(3)) and systemd's notification socket
 * with its descriptor store (sd_notify(3), sd_pid_notify_with_fds(3)).
 * Control message layout (64-bit): length u64, level i32, type i32, then the descriptors as i32, padded to 8.
 */
import { ERRNO, lastErrno, libc, type MessageHeader, systemCallError } from './libc.ts';

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_SEQPACKET = 5;
const SOCK_CLOEXEC = 0o2000000;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const CMSG_HEADER_BYTES = 16;
const MSG_NOSIGNAL = 0x4000;
const MSG_DONTWAIT = 0x40;
const MSG_CMSG_CLOEXEC = 0x40000000;
const POLLIN = 1;
const F_SETFD = 2;
const FD_CLOEXEC = 1;

/** Names of what travels with a descriptor are short; a longer one is a bug of ours. */
const MAX_TEXT_BYTES = 1024;

function header(text: Buffer, control: Buffer | null, name: Buffer | null): MessageHeader {
  return {
    name,
    nameLength: name?.length ?? 0,
    iov: [{ base: text, length: text.length }],
    iovLength: 1,
    control,
    controlLength: control?.length ?? 0,
    flags: 0,
  };
}

function rightsMessage(fds: readonly number[]): Buffer {
  const control = Buffer.alloc(CMSG_HEADER_BYTES + Math.ceil((fds.length * 4) / 8) * 8);
  control.writeBigUInt64LE(BigInt(CMSG_HEADER_BYTES + fds.length * 4), 0);
  control.writeInt32LE(SOL_SOCKET, 8);
  control.writeInt32LE(SCM_RIGHTS, 12);
  for (const [i, fd] of fds.entries()) control.writeInt32LE(fd, CMSG_HEADER_BYTES + i * 4);
  return control;
}

/** Closes the descriptor in programs that this process starts. */
export function closeOnExec(fd: number): void {
  if (libc.fcntl(fd, F_SETFD, 'int', FD_CLOEXEC) < 0) throw systemCallError('set close-on-exec on', `descriptor ${fd}`, lastErrno());
}

/** Two connected sockets that keep message borders; both close on exec unless passed on as a child's stdio. */
export function descriptorSocketPair(): [number, number] {
  const pair = new Int32Array(2);
  if (libc.socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
    throw systemCallError('make socket pair', 'socketpair', lastErrno());
  return [pair[0]!, pair[1]!];
}

/** Sends one descriptor with a name, or throws Unavailable when the socket is full: the receiver has stopped receiving. */
export function sendDescriptor(socketFd: number, name: string, fd: number): void {
  const text = Buffer.from(name);
  if (libc.sendmsg(socketFd, header(text, rightsMessage([fd]), null), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
    throw systemCallError('send descriptor', name, lastErrno(), 'Unavailable');
}

/** Receives one descriptor with its name, waiting at most `timeoutMs` (blocks the thread); undefined when none came. */
export function receiveDescriptor(socketFd: number, timeoutMs: number): { name: string; fd: number } | undefined {
  const pollFd = Buffer.alloc(8);
  pollFd.writeInt32LE(socketFd, 0);
  pollFd.writeInt16LE(POLLIN, 4);
  const ready = libc.poll(pollFd, 1, timeoutMs);
  if (ready <= 0) return undefined;
  const text = Buffer.alloc(MAX_TEXT_BYTES);
  const control = Buffer.alloc(CMSG_HEADER_BYTES + 8);
  const length = libc.recvmsg(socketFd, header(text, control, null), MSG_CMSG_CLOEXEC);
  if (length < 0) throw systemCallError('receive descriptor', `socket ${socketFd}`, lastErrno(), 'Unavailable');
  if (length === 0 || control.readBigUInt64LE(0) !== BigInt(CMSG_HEADER_BYTES + 4) || control.readInt32LE(12) !== SCM_RIGHTS)
    return undefined;
  return { name: text.toString('utf8', 0, length), fd: control.readInt32LE(CMSG_HEADER_BYTES) };
}

/**
 * Sends a notification to the service manager, with descriptors for its store if given. Never waits for it. Answers false when there is no
 * manager (`path` unset), or it does not listen or take more now: a service works without one.
 */
export function notifyServiceManager(path: string | undefined, text: string, fds: readonly number[] = []): boolean {
  if (path === undefined || path === '' || path.length > 100) return false;
  const address = Buffer.alloc(2 + Buffer.byteLength(path) + (path.startsWith('@') ? 0 : 1));
  address.writeUInt16LE(AF_UNIX, 0);
  address.write(path, 2);
  if (path.startsWith('@')) address[2] = 0;
  const socket = libc.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (socket < 0) return false;
  try {
    const control = fds.length > 0 ? rightsMessage(fds) : null;
    let sent = -1;
    for (let attempt = 0; attempt < 3 && sent < 0; attempt += 1) {
      sent = libc.sendmsg(socket, header(Buffer.from(text), control, address), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && lastErrno() !== ERRNO.EINTR) break;
    }
    return sent >= 0;
  } finally {
    libc.close(socket);
  }
}
