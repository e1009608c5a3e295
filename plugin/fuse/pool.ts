/**
 * The worker threads and the devices they serve, as seen from the main thread.
 *
 *   kernel ──► /dev/fuse descriptors ──► one epoll set ──► any free worker ──► answer
 *                                                               └─ miss ──► main thread ──► fetch ──► answer from here
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import type { DeviceTables } from '../file/device-file.ts';
import type { SharedBlob } from '../file/store/blob-file.ts';
import { addToEpoll, createEpoll, removeFromEpoll, wakeAll } from '../kernel/epoll.ts';
import { isInDiskSleep } from '../kernel/killed.ts';
import { lastErrno, libc, systemCallError } from '../kernel/libc.ts';
import { CONTROL, DEVICE_COUNT, type FromWorker, STAT, type ToWorker, type WorkerStart } from './messages.ts';
import { OUT_HEADER_BYTES, resendNotification } from './protocol.ts';

const WORKER = path.join(import.meta.dirname, `worker${path.extname(import.meta.filename)}`);

/** Whoever looks for signs of life looks more often; a longer gap means that the whole process was stopped. */
const MAX_LOOK_GAP_MS = 2000;

/**
 * A device takes 1.4 KiB a layer in each thread, so 4096 devices of 13 layers take 75 MiB. A thread at its limit dies, and so does each
 * successor: far above what it needs.
 */
const MAX_WORKER_HEAP_MB = 512;

/** A worker silent for this long may be waiting for the disk. */
const DISK_LOOK_MS = 1000;

/** Slots begin at 1. */
const NO_SLOT = 0;

export interface PoolStats {
  requests: number;
  reads: number;
  misses: number;
  bytes: number;
}

export interface FusePoolOptions {
  /** Threads; 1 … 64. */
  workers: number;
  /** Background requests in flight per device before the kernel queues. */
  maxBackground: number;
  onMessage(message: FromWorker): void;
  /** A worker died of a broken invariant: the process should end and be replaced. */
  onFailure(error: Error): void;
}

export class FusePool {
  private readonly epollFd = createEpoll();
  private readonly control = new Int32Array(new SharedArrayBuffer(8));
  private readonly stats: Float64Array[] = [];
  /** Signs of life as they were seen last. */
  private readonly beats: { count: number; atMs: number }[] = [];
  private lookedAtMs = 0;
  private readonly workers: Worker[] = [];
  private readonly descriptors = new Map<number, number>();
  /** By slot; a row of {@link DEVICE_COUNT} for each worker. */
  private readonly deviceCounts = new Map<number, Float64Array>();
  private readonly exits: Promise<void>[] = [];
  private readonly removals = new Map<number, { left: number; resolve: () => void }>();
  private readonly options: FusePoolOptions;
  private nextSlot = 1;

  constructor(options: FusePoolOptions) {
    this.options = options;
    for (let i = 0; i < options.workers; i += 1) {
      const stats = new SharedArrayBuffer(STAT.COUNT * 8);
      const start: WorkerStart = {
        epollFd: this.epollFd,
        index: i,
        control: this.control.buffer as SharedArrayBuffer,
        stats,
        maxBackground: options.maxBackground,
      };
      const worker = new Worker(WORKER, {
        workerData: start,
        resourceLimits: { maxOldGenerationSizeMb: MAX_WORKER_HEAP_MB, maxYoungGenerationSizeMb: 4 },
      });
      worker.on('message', (message: FromWorker) => this.receive(message));
      worker.on('error', (error) => options.onFailure(error instanceof Error ? error : new Error(String(error))));
      this.exits.push(new Promise((resolve) => worker.once('exit', () => resolve())));
      this.workers.push(worker);
      this.stats.push(new Float64Array(stats));
    }
  }

  /**
   * Serves a connection. With `isTakenOver`, the kernel is first told to repeat what a dead predecessor had taken; it must not have
   * been served by this process before. Returns the slot.
   */
  add(fd: number, tables: DeviceTables, blobs: SharedBlob[], options: { isTakenOver: boolean }): number {
    const slot = this.nextSlot++;
    this.descriptors.set(slot, fd);
    const counts = new SharedArrayBuffer(this.workers.length * DEVICE_COUNT.COUNT * 8);
    this.deviceCounts.set(slot, new Float64Array(counts));
    this.tell({ type: 'add', slot, fd, tables, blobs, counts });
    if (options.isTakenOver) {
      // A kernel before 6.9 answers EINVAL, and then the reads that the predecessor took are lost; the README names the version.
      const message = resendNotification();
      libc.write(fd, message, message.length);
    }
    addToEpoll(this.epollFd, fd, slot);
    return slot;
  }

  /**
   * Stops serving and closes this process's descriptor. Resolves when no worker will touch the slot again: only then may the
   * descriptors of its blobs be closed, because a number that is used again would be read as if it were the old file.
   */
  async remove(slot: number): Promise<void> {
    const fd = this.descriptors.get(slot);
    if (fd === undefined) return;
    this.descriptors.delete(slot);
    this.deviceCounts.delete(slot);
    removeFromEpoll(this.epollFd, fd);
    await new Promise<void>((resolve) => {
      this.removals.set(slot, { left: this.workers.length, resolve });
      this.tell({ type: 'remove', slot });
    });
    libc.close(fd);
  }

  private receive(message: FromWorker): void {
    if (message.type !== 'removed') {
      this.options.onMessage(message);
      return;
    }
    const removal = this.removals.get(message.slot);
    if (removal === undefined) return;
    removal.left -= 1;
    if (removal.left > 0) return;
    this.removals.delete(message.slot);
    removal.resolve();
  }

  /**
   * Answers a read that a worker handed over. `answer` has room for the header in front: data begins at {@link OUT_HEADER_BYTES}.
   * Returns false when the reader is gone.
   */
  answer(slot: number, unique: { low: number; high: number }, errno: number, answer: Buffer, lengthBytes: number): boolean {
    const fd = this.descriptors.get(slot);
    if (fd === undefined) return false;
    const total = OUT_HEADER_BYTES + (errno === 0 ? lengthBytes : 0);
    answer.writeUInt32LE(total, 0);
    answer.writeInt32LE(-errno, 4);
    answer.writeUInt32LE(unique.low, 8);
    answer.writeUInt32LE(unique.high, 12);
    return libc.write(fd, answer.subarray(0, total), total) === total;
  }

  /** Reads that the kernel asked of one device, and their bytes, since it was added; zeros for a slot that is gone. */
  countsOf(slot: number): { reads: number; bytes: number } {
    const counts = this.deviceCounts.get(slot) ?? [];
    const sums = { reads: 0, bytes: 0 };
    for (let row = 0; row < counts.length; row += DEVICE_COUNT.COUNT) {
      sums.reads += counts[row + DEVICE_COUNT.READS]!;
      sums.bytes += counts[row + DEVICE_COUNT.BYTES]!;
    }
    return sums;
  }

  totals(): PoolStats {
    const sum = (at: number): number => this.stats.reduce((total, stats) => total + stats[at]!, 0);
    return { requests: sum(STAT.REQUESTS), reads: sum(STAT.READS), misses: sum(STAT.MISSES), bytes: sum(STAT.BYTES) };
  }

  /**
   * How long some worker has given no sign of life, in milliseconds as seen by calls of this method: to be called a few times a second.
   * A worker that has not begun yet counts as alive; so does every one after a pause in which this thread did not look either.
   */
  longestSilenceMs(): number {
    const nowMs = performance.now();
    const wasAway = nowMs - this.lookedAtMs > MAX_LOOK_GAP_MS;
    this.lookedAtMs = nowMs;
    let longestMs = 0;
    for (const [i, stats] of this.stats.entries()) {
      const count = stats[STAT.BEATS]!;
      const last = this.beats[i];
      const isAlive = wasAway || last === undefined || last.count !== count || count === 0;
      // A slow disk is not a fault of the process, and killing it would help no read.
      if (isAlive || (nowMs - last.atMs > DISK_LOOK_MS && isInDiskSleep(stats[STAT.TID]!))) this.beats[i] = { count, atMs: nowMs };
      else longestMs = Math.max(longestMs, nowMs - last.atMs);
    }
    return longestMs;
  }

  /** Ends the workers; the descriptors stay open until the process ends. */
  async close(): Promise<void> {
    Atomics.store(this.control, CONTROL.STOP, 1);
    const wakeFd = wakeAll(this.epollFd, NO_SLOT);
    await Promise.all(this.exits);
    libc.close(wakeFd);
    if (libc.close(this.epollFd) < 0) throw systemCallError('close', 'epoll set', lastErrno());
  }

  private tell(message: ToWorker): void {
    for (const worker of this.workers) worker.postMessage(message);
    Atomics.add(this.control, CONTROL.MAIL, 1);
  }
}
