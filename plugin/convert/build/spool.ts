/**
 * A staging file of pieces that are written once in order and read back later at random: content of small files until the layer's
 * metadata is laid out. Memory: one write buffer and a few windows, whatever the size. Synchronous: it runs in the conversion's own
 * process, and pieces are small. Ours.
 */
import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs';
import { AppError } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';

const WINDOW_BYTES = 1 * MIB;
/** Pieces are read back nearly in the order of writing, so a handful of windows hits almost always. */
const MAX_WINDOWS = 8;

export class Spool {
  private readonly path: string;
  private readonly fd: number;
  private buffer = Buffer.allocUnsafe(WINDOW_BYTES);
  private buffered = 0;
  private flushed = 0;
  /** By window number, least recently used first. */
  private readonly windows = new Map<number, Buffer>();

  constructor(path: string) {
    this.path = path;
    this.fd = openSync(path, 'wx+', 0o600);
  }

  /** Keeps the bytes; returns the position they are read back from. Throws ResourceExhausted when the disk is full. */
  append(bytes: Uint8Array): number {
    const position = this.flushed + this.buffered;
    for (let done = 0; done < bytes.length; ) {
      const take = Math.min(bytes.length - done, WINDOW_BYTES - this.buffered);
      this.buffer.set(bytes.subarray(done, done + take), this.buffered);
      this.buffered += take;
      done += take;
      if (this.buffered === WINDOW_BYTES) this.flush();
    }
    return position;
  }

  /** A copy of bytes that were appended before. */
  read(position: number, length: number): Buffer {
    const target = Buffer.allocUnsafe(length);
    for (let done = 0; done < length; ) {
      const at = position + done;
      const window = Math.floor(at / WINDOW_BYTES);
      const within = at - window * WINDOW_BYTES;
      const take = Math.min(length - done, WINDOW_BYTES - within);
      this.windowOf(window).copy(target, done, within, within + take);
      done += take;
    }
    return target;
  }

  /** Forgets everything; the file's space is used again from the start. */
  reset(): void {
    this.windows.clear();
    this.buffered = 0;
    this.flushed = 0;
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
    unlinkSync(this.path);
  }

  private windowOf(number: number): Buffer {
    // Windows are as large as the write buffer, so the last one is always the buffer itself.
    if (number * WINDOW_BYTES === this.flushed) return this.buffer;
    let window = this.windows.get(number);
    if (window === undefined) {
      window = Buffer.allocUnsafe(WINDOW_BYTES);
      readFully(this.fd, window, number * WINDOW_BYTES);
      if (this.windows.size === MAX_WINDOWS) this.windows.delete(this.windows.keys().next().value!);
    } else this.windows.delete(number);
    this.windows.set(number, window);
    return window;
  }

  private flush(): void {
    writeFully(this.fd, this.buffer, this.flushed, this.path);
    this.flushed += WINDOW_BYTES;
    this.buffered = 0;
  }
}

/** Writes all of `bytes` at `position`. A full disk or quota becomes ResourceExhausted. */
export function writeFully(fd: number, bytes: Uint8Array, position: number, subject: string): void {
  try {
    for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, position + done);
  } catch (cause) {
    throw stagingError(cause, subject);
  }
}

/** What a failed write to staging means. */
export function stagingError(cause: unknown, subject: string): unknown {
  const code = cause instanceof Error && 'code' in cause ? cause.code : undefined;
  if (code !== 'ENOSPC' && code !== 'EDQUOT' && code !== 'EFBIG') return cause;
  return new AppError('ResourceExhausted', { op: 'write staging file', subject, what: `no space is left (${code})`, cause });
}

/** Fills `target` from `position`; bytes behind the end of the file are zeros. */
export function readFully(fd: number, target: Uint8Array, position: number): void {
  let done = 0;
  while (done < target.length) {
    const count = readSync(fd, target, done, target.length - done, position + done);
    if (count === 0) {
      target.fill(0, done);
      return;
    }
    done += count;
  }
}
