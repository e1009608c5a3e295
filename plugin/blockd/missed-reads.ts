/**
 * Reads that the workers could not answer: fetch what is missing, read again, answer. Bounded by the kernel, which lets each device
 * have only so many requests in flight.
 */
import { AppError, describeError, isAppError } from '../base/errors.ts';
import { MissingList } from '../file/file.ts';
import type { MissedRead } from '../fuse/messages.ts';
import { MAX_READ_BYTES, OUT_HEADER_BYTES } from '../fuse/protocol.ts';
import { isBeingKilled } from '../kernel/killed.ts';
import { ERRNO } from '../kernel/libc.ts';
import type { OpenDevice } from './open-device.ts';

/**
 * The ranges of a read are known at once, so one round is usual; more when units are dropped meanwhile, or when several blocks of a read
 * are corrupt: a read of 1 MiB lies in some 18 units, each of which is repaired and read again.
 */
const MAX_ROUNDS = 64;

/** A container that is killed while its registry is away ends this soon. */
const KILL_WATCH_MS = 500;

/** More signals than readers are told of at once; the oldest that no read was there for came after its answer. */
const MAX_EARLY = 1024;

/** A read that waits this long is one that a person notices. */
const STALL_MS = 1000;

interface Pending {
  abort: AbortController;
  tid: number;
  isInterrupted: boolean;
}

export interface MissedReadsOptions {
  /** Sends an answer whose data begins at OUT_HEADER_BYTES of `answer`; must be done with the buffer when it returns. */
  answer(slot: number, unique: { low: number; high: number }, errno: number, answer: Buffer, lengthBytes: number): void;
  onReadFailed(device: OpenDevice, miss: MissedRead, error: unknown): void;
}

export class MissedReads {
  private readonly options: MissedReadsOptions;
  private readonly pending = new Map<string, Pending>();
  /** Reads that were interrupted before they came: another thread told, and was quicker. */
  private readonly early = new Set<string>();
  private watch: NodeJS.Timeout | undefined;
  /** Filled and sent without a pause between, so one serves all. */
  private readonly scratch = Buffer.allocUnsafeSlow(OUT_HEADER_BYTES + MAX_READ_BYTES);

  constructor(options: MissedReadsOptions) {
    this.options = options;
  }

  /** Reads that wait now. */
  get waiting(): number {
    return this.pending.size;
  }

  /** Serves one read to its answer; never rejects. */
  async serve(miss: MissedRead, device: OpenDevice): Promise<void> {
    const key = keyOf(miss.slot, miss.uniqueLow, miss.uniqueHigh);
    const abort = new AbortController();
    this.pending.set(key, { abort, tid: miss.tid, isInterrupted: false });
    if (this.early.delete(key)) this.interrupt(miss.slot, miss.uniqueLow, miss.uniqueHigh);
    device.waiting += 1;
    const beganMs = performance.now();
    const stopWaiting = (): void => abort.abort();
    device.closed.addEventListener('abort', stopWaiting, { once: true });
    try {
      await this.read(miss, device, abort.signal);
    } catch (error) {
      // EINTR: the reader gave up (a signal), or nobody is left to read; anything else is a failed read.
      if (!abort.signal.aborted) this.options.onReadFailed(device, miss, error);
      this.send(miss, abort.signal.aborted ? ERRNO.EINTR : ERRNO.EIO);
    } finally {
      device.closed.removeEventListener('abort', stopWaiting);
      device.waiting -= 1;
      if (performance.now() - beganMs >= STALL_MS) device.stalls += 1;
      this.pending.delete(key);
    }
  }

  /**
   * A signal came to the reader. The kernel tells of any signal, once; only a killed reader gives up, the others want their bytes (an
   * error would reach the program, or kill it with SIGBUS). So the reader is watched until it is killed or served.
   */
  interrupt(slot: number, uniqueLow: number, uniqueHigh: number): void {
    const key = keyOf(slot, uniqueLow, uniqueHigh);
    const pending = this.pending.get(key);
    if (pending === undefined) {
      this.early.add(key);
      const [oldest] = this.early;
      if (this.early.size > MAX_EARLY && oldest !== undefined) this.early.delete(oldest);
      return;
    }
    pending.isInterrupted = true;
    this.endKilled();
    this.watch ??= setInterval(() => this.endKilled(), KILL_WATCH_MS);
  }

  /** Answers the reads of killed readers with EINTR, so that they can die. */
  private endKilled(): void {
    let watched = 0;
    for (const pending of this.pending.values()) {
      if (!pending.isInterrupted || pending.abort.signal.aborted) continue;
      watched += 1;
      if (isBeingKilled(pending.tid)) pending.abort.abort();
    }
    if (watched > 0 || this.watch === undefined) return;
    clearInterval(this.watch);
    this.watch = undefined;
  }

  private async read(miss: MissedRead, device: OpenDevice, signal: AbortSignal): Promise<void> {
    let ranges = miss.ranges;
    for (let round = 0; round < MAX_ROUNDS; round += 1) {
      if (ranges.length > 0) await device.fetch(ranges, signal);
      const missing = new MissingList();
      try {
        if (device.file.readSync(miss.offsetBytes, miss.lengthBytes, this.scratch, OUT_HEADER_BYTES, missing)) {
          this.send(miss, 0);
          return;
        }
        ranges = missing.ranges;
      } catch (error) {
        if (!isAppError(error, 'DataLoss')) throw error;
        device.log.write('warn', { device: device.instance, reason: describeError(error) }, 'corrupt bytes; fetching them again');
        // Rejects when the same bytes were fetched again before: they are fetched once more, and the second time the read fails.
        await device.repair(error, signal);
        ranges = [];
      }
    }
    throw new AppError('Unavailable', { op: 'read', subject: device.instance, what: `bytes still missing after ${MAX_ROUNDS} rounds` });
  }

  private send(miss: MissedRead, errno: number): void {
    this.options.answer(miss.slot, { low: miss.uniqueLow, high: miss.uniqueHigh }, errno, this.scratch, miss.lengthBytes);
  }
}

/** The kernel names an interrupted request without the resend bit (63). */
function keyOf(slot: number, low: number, high: number): string {
  return `${slot}:${low}:${high & 0x7fffffff}`;
}
