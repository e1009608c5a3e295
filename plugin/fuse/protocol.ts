/**
 * The part of the FUSE kernel protocol that one read-only file needs: the root of each connection is that file.
 * Source: include/uapi/linux/fuse.h, protocol 7.31 and later. All integers are in host order (little-endian on all targets).
 *
 *   request:  len u32 | opcode u32 | unique u64 | nodeid u64 | uid u32 | gid u32 | pid u32 | extlen u16, padding | body
 *   answer:   len u32 | error i32  | unique u64 | body
 *
 * `unique` is echoed byte for byte: bit 63 marks a request that the kernel repeats.
 */

export const IN_HEADER_BYTES = 40;
export const OUT_HEADER_BYTES = 16;

/** The kernel refuses smaller read buffers (FUSE_MIN_READ_BUFFER); without writes no request is larger. */
export const REQUEST_BUFFER_BYTES = 8192;

/** 256 pages a request: one read of a stream is one answer. */
export const MAX_READ_BYTES = 1024 * 1024;
const MAX_PAGES = 256;

export const OPCODE = {
  FORGET: 2,
  GETATTR: 3,
  OPEN: 14,
  READ: 15,
  STATFS: 17,
  RELEASE: 18,
  FLUSH: 25,
  INIT: 26,
  INTERRUPT: 36,
  DESTROY: 38,
  BATCH_FORGET: 42,
} as const;

export const ROOT_NODE_ID = 1;

const NOTIFY_RESEND = 7;

const FUSE_ASYNC_READ = 1 << 0;
/** Without it direct reads of the loop device go one at a time. */
const FUSE_ASYNC_DIO = 1 << 15;
const FUSE_MAX_PAGES = 1 << 22;
const FUSE_INIT_EXT = 1 << 30;
/** flags2 bit 7 = bit 39: the kernel can repeat requests that a dead server had taken. */
const FUSE_HAS_RESEND_FLAG2 = 1 << 7;

const FOPEN_KEEP_CACHE = 1 << 1;

/** Attributes never change while the device lives: a year. */
const ATTRIBUTES_VALID_S = 365 * 24 * 3600;

export interface InitRequest {
  major: number;
  minor: number;
  maxReadAheadBytes: number;
  flags: number;
  flags2: number;
}

/** Starts an answer in `answer`: header with the request's `unique`, `error` as a positive errno or 0. */
export function writeOutHeader(answer: Buffer, request: Buffer, totalBytes: number, errno: number): void {
  answer.writeUInt32LE(totalBytes, 0);
  answer.writeInt32LE(-errno, 4);
  request.copy(answer, 8, 8, 16);
}

/** Decodes the body of INIT; fields that an old kernel does not send are 0. */
export function readInit(request: Buffer, length: number): InitRequest {
  const at = (offset: number): number => (IN_HEADER_BYTES + offset + 4 <= length ? request.readUInt32LE(IN_HEADER_BYTES + offset) : 0);
  return { major: at(0), minor: at(4), maxReadAheadBytes: at(8), flags: at(12), flags2: at(16) };
}

/** Writes the answer to INIT and tells what the kernel can do. Returns the number of bytes. */
export function writeInit(
  answer: Buffer,
  request: Buffer,
  init: InitRequest,
  maxBackground: number,
): { bytes: number; canResend: boolean } {
  const bytes = OUT_HEADER_BYTES + 64;
  answer.fill(0, 0, bytes);
  writeOutHeader(answer, request, bytes, 0);
  const extended = (init.flags & FUSE_INIT_EXT) !== 0;
  const canResend = extended && (init.flags2 & FUSE_HAS_RESEND_FLAG2) !== 0;
  const wanted = FUSE_ASYNC_READ | FUSE_ASYNC_DIO | FUSE_MAX_PAGES | FUSE_INIT_EXT;
  const body = OUT_HEADER_BYTES;
  answer.writeUInt32LE(7, body);
  answer.writeUInt32LE(Math.min(init.minor, 41), body + 4);
  answer.writeUInt32LE(init.maxReadAheadBytes, body + 8);
  answer.writeUInt32LE((init.flags & wanted) >>> 0, body + 12);
  answer.writeUInt16LE(maxBackground, body + 16);
  answer.writeUInt16LE(Math.max(1, Math.floor((maxBackground * 3) / 4)), body + 18);
  answer.writeUInt32LE(4096, body + 20);
  answer.writeUInt32LE(1, body + 24);
  answer.writeUInt16LE(MAX_PAGES, body + 28);
  answer.writeUInt32LE(canResend ? FUSE_HAS_RESEND_FLAG2 : 0, body + 32);
  return { bytes, canResend };
}

/** Writes attributes of the device file (mode 0400, root). Returns the number of bytes. */
export function writeAttributes(answer: Buffer, request: Buffer, sizeBytes: number): number {
  const bytes = OUT_HEADER_BYTES + 16 + 88;
  answer.fill(0, 0, bytes);
  writeOutHeader(answer, request, bytes, 0);
  answer.writeBigUInt64LE(BigInt(ATTRIBUTES_VALID_S), OUT_HEADER_BYTES);
  const attr = OUT_HEADER_BYTES + 16;
  answer.writeBigUInt64LE(BigInt(ROOT_NODE_ID), attr);
  answer.writeBigUInt64LE(BigInt(sizeBytes), attr + 8);
  answer.writeBigUInt64LE(BigInt(Math.ceil(sizeBytes / 512)), attr + 16);
  answer.writeUInt32LE(0o100400, attr + 60);
  answer.writeUInt32LE(1, attr + 64);
  answer.writeUInt32LE(4096, attr + 80);
  return bytes;
}

/** Writes the answer to OPEN: the page cache outlives the open, since the bytes never change. Returns the number of bytes. */
export function writeOpen(answer: Buffer, request: Buffer): number {
  const bytes = OUT_HEADER_BYTES + 16;
  answer.fill(0, 0, bytes);
  writeOutHeader(answer, request, bytes, 0);
  answer.writeUInt32LE(FOPEN_KEEP_CACHE, OUT_HEADER_BYTES + 8);
  return bytes;
}

/** Writes statfs numbers: a full, read-only file system of the device's size. Returns the number of bytes. */
export function writeStatfs(answer: Buffer, request: Buffer, sizeBytes: number): number {
  const bytes = OUT_HEADER_BYTES + 80;
  answer.fill(0, 0, bytes);
  writeOutHeader(answer, request, bytes, 0);
  answer.writeBigUInt64LE(BigInt(Math.ceil(sizeBytes / 4096)), OUT_HEADER_BYTES);
  answer.writeUInt32LE(4096, OUT_HEADER_BYTES + 40);
  answer.writeUInt32LE(255, OUT_HEADER_BYTES + 44);
  answer.writeUInt32LE(4096, OUT_HEADER_BYTES + 48);
  return bytes;
}

/** The notification that makes the kernel queue again every request that was read but not answered (kernel 6.9). */
export function resendNotification(): Buffer {
  const message = Buffer.alloc(OUT_HEADER_BYTES);
  message.writeUInt32LE(OUT_HEADER_BYTES, 0);
  message.writeInt32LE(NOTIFY_RESEND, 4);
  return message;
}
