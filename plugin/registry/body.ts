/**
 * Where the body of an answer goes: thrown away, collected up to a limit, copied into a caller's buffer, or streamed. Ours.
 * Each sink is fed by the HTTP parser, chunk by chunk; chunks are borrowed and valid during the call only.
 */
import { MAX_DISCARD_BYTES, STREAM_BUFFER_BYTES } from './limits.ts';

export interface BodySink {
  /** `stop`: nothing more is needed, cut the answer off. `pause`: wait for {@link BodySink.onDrain}. Throws to fail the request. */
  write(borrowed: Uint8Array): 'more' | 'stop' | 'pause';
  /** The body is complete. Throws when it ended too early. */
  end(): void;
  /** The request failed after the head; only streams need to know. */
  fail?(error: unknown): void;
  /** Set by the transport: a paused stream calls it when there is room, or with an error when its reader went away. */
  onDrain?: (abandoned?: Error) => void;
}

/** Reads away what nobody wants, so that the connection can be used again; cuts off what is long. */
export class DiscardSink implements BodySink {
  private seenBytes = 0;

  write(borrowed: Uint8Array): 'more' | 'stop' {
    this.seenBytes += borrowed.length;
    return this.seenBytes > MAX_DISCARD_BYTES ? 'stop' : 'more';
  }

  end(): void {}
}

/** Collects a small body; `tooLarge` makes the error. */
export class CollectSink implements BodySink {
  private readonly chunks: Uint8Array[] = [];
  private readonly maxBytes: number;
  private readonly tooLarge: () => Error;
  private sizeBytes = 0;

  constructor(maxBytes: number, tooLarge: () => Error) {
    this.maxBytes = maxBytes;
    this.tooLarge = tooLarge;
  }

  write(borrowed: Uint8Array): 'more' {
    this.sizeBytes += borrowed.length;
    if (this.sizeBytes > this.maxBytes) throw this.tooLarge();
    this.chunks.push(Uint8Array.prototype.slice.call(borrowed));
    return 'more';
  }

  end(): void {}

  /** The owned body. */
  bytes(): Uint8Array {
    if (this.chunks.length === 1) return this.chunks[0]!;
    const all = new Uint8Array(this.sizeBytes);
    let offset = 0;
    for (const chunk of this.chunks) {
      all.set(chunk, offset);
      offset += chunk.length;
    }
    return all;
  }
}

/** Keeps the beginning of an error document. */
export class HeadSink implements BodySink {
  private readonly inner = new CollectSink(MAX_DISCARD_BYTES, () => new Error('unreachable'));
  private room = MAX_DISCARD_BYTES;

  write(borrowed: Uint8Array): 'more' | 'stop' {
    const part = borrowed.subarray(0, this.room);
    this.inner.write(part);
    this.room -= part.length;
    return this.room === 0 ? 'stop' : 'more';
  }

  end(): void {}

  bytes(): Uint8Array {
    return this.inner.bytes();
  }
}

/** Copies exactly `target.length` bytes after skipping `skipBytes`; what follows is cut off, or an error when `isExact`. */
export class FillSink implements BodySink {
  private readonly target: Uint8Array;
  private readonly isExact: boolean;
  private readonly fault: (what: string) => Error;
  private readonly onProgress: (() => void) | undefined;
  private skipBytes: number;
  private filledBytes = 0;

  constructor(
    target: Uint8Array,
    skipBytes: number,
    options: { isExact: boolean; fault: (what: string) => Error; onProgress: (() => void) | undefined },
  ) {
    this.target = target;
    this.skipBytes = skipBytes;
    this.isExact = options.isExact;
    this.fault = options.fault;
    this.onProgress = options.onProgress;
  }

  write(borrowed: Uint8Array): 'more' | 'stop' {
    this.onProgress?.();
    const skipped = Math.min(this.skipBytes, borrowed.length);
    this.skipBytes -= skipped;
    const room = this.target.length - this.filledBytes;
    const part =
      borrowed.length - skipped <= room
        ? skipped === 0
          ? borrowed
          : borrowed.subarray(skipped)
        : borrowed.subarray(skipped, skipped + room);
    this.target.set(part, this.filledBytes);
    this.filledBytes += part.length;
    if (this.isExact && borrowed.length - skipped > room) throw this.fault(`sent more than the ${this.target.length} bytes it announced`);
    return !this.isExact && this.filledBytes === this.target.length ? 'stop' : 'more';
  }

  end(): void {
    if (this.filledBytes !== this.target.length) throw this.fault(`sent ${this.filledBytes} of ${this.target.length} bytes`);
  }
}

/** A body as an async iteration of owned chunks, holding at most about {@link STREAM_BUFFER_BYTES}. May be iterated once. */
export class StreamSink implements BodySink, AsyncIterable<Uint8Array> {
  onDrain?: (abandoned?: Error) => void;
  private readonly chunks: Uint8Array[] = [];
  private heldBytes = 0;
  private isPaused = false;
  private isOver = false;
  private error: unknown;
  private wake: (() => void) | undefined;

  write(borrowed: Uint8Array): 'more' | 'pause' {
    this.chunks.push(Uint8Array.prototype.slice.call(borrowed));
    this.heldBytes += borrowed.length;
    this.wake?.();
    if (this.heldBytes < STREAM_BUFFER_BYTES) return 'more';
    this.isPaused = true;
    return 'pause';
  }

  end(): void {
    this.isOver = true;
    this.wake?.();
  }

  fail(error: unknown): void {
    this.error = error;
    this.end();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Uint8Array, void, void> {
    try {
      for (;;) {
        const chunk = this.chunks.shift();
        if (chunk !== undefined) {
          this.heldBytes -= chunk.length;
          if (this.isPaused && this.heldBytes < STREAM_BUFFER_BYTES / 2) {
            this.isPaused = false;
            this.onDrain?.();
          }
          yield chunk;
        } else if (this.error !== undefined) throw this.error;
        else if (this.isOver) return;
        else await new Promise<void>((resolve) => (this.wake = resolve));
      }
    } finally {
      this.chunks.length = 0;
      if (!this.isOver) this.onDrain?.(new Error('the reader went away'));
    }
  }
}
