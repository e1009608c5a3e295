/** The thread of plain-hasher.ts as its one user sees it: a fixed number of slots that go back and forth, so memory is bounded. Ours. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { AppError } from '../../../base/errors.ts';
import { MIB } from '../../../base/units.ts';
import { GZIP_WINDOW_BYTES } from '../../../image/gzip/gzip-index.ts';
import { BlockInflater } from '../../../kernel/block-inflater.ts';
import { stopWorker } from '../stop-worker.ts';
import type { HashAnswer, HashRequest, HashThreadData, PlainSums, WindowRequest } from './plain-hasher.ts';

const WORKER = path.join(import.meta.dirname, `plain-hasher${path.extname(import.meta.filename)}`);

/** Decompressed bytes of a slot: about 2 ms of either thread. */
export const SLOT_BYTES = 1 * MIB;
/** One being filled, one being hashed, two waiting to even out. */
const SLOTS = 4;

export interface Slot {
  number: number;
  /** 32 KiB of what came before, then room for {@link SLOT_BYTES}. */
  memory: Uint8Array;
  /** Where the memory lies. */
  address: number;
}

export class HashThread implements AsyncDisposable {
  private readonly worker: Worker;
  private readonly slots: Slot[];
  private readonly free: Slot[];
  private onWindow: (window: Uint8Array) => void = () => {};
  private wake: (() => void) | undefined;
  private sums: PlainSums | undefined;
  private failure: { error: unknown } | undefined;

  constructor() {
    const hashSlots = Array.from({ length: SLOTS }, () => new SharedArrayBuffer(GZIP_WINDOW_BYTES + SLOT_BYTES));
    this.slots = hashSlots.map((shared, number) => {
      const memory = new Uint8Array(shared);
      return { number, memory, address: BlockInflater.addressOf(memory) };
    });
    this.free = [...this.slots];
    const workerData: HashThreadData = { hashSlots };
    this.worker = new Worker(WORKER, {
      workerData,
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 8 },
    });
    this.worker.on('message', (answer: HashAnswer) => this.receive(answer));
    this.worker.on('error', (error) => this.fail(error));
    this.worker.on('exit', (code) =>
      this.fail(new AppError('Internal', { op: 'hash', subject: 'thread', what: `it ended with code ${code}` })),
    );
  }

  /** Begins a layer. `onWindow` gets the windows of the entries, as stored, in order; what it throws is the thread's failure. */
  begin(onWindow: (window: Uint8Array) => void): void {
    this.onWindow = onWindow;
  }

  /** Waits for a slot; its first 32 KiB are left to the caller. Rejects when the thread has failed. */
  async take(): Promise<Slot> {
    while (this.free.length === 0) await this.wait();
    this.throwFailure();
    return this.free.pop()!;
  }

  /** Gives a slot to the thread. `spans`: where among its bytes spans begin. `windows` are to be packed. */
  submit(slot: Slot, length: number, spans: number[], windows: WindowRequest[]): void {
    this.post({ kind: 'block', slot: slot.number, length, spans, windows });
  }

  /** The sums of the layer, when all of it is done. Every slot that was submitted is free then. */
  async finish(windows: WindowRequest[] = []): Promise<PlainSums> {
    this.sums = undefined;
    this.post({ kind: 'finish', windows });
    while (this.sums === undefined) await this.wait();
    return this.sums;
  }

  /** Gives back a slot that was taken and not submitted. */
  release(slot: Slot): void {
    this.free.push(slot);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.worker.removeAllListeners('exit');
    await stopWorker(this.worker);
  }

  private post(request: HashRequest): void {
    this.worker.postMessage(request);
  }

  private receive(answer: HashAnswer): void {
    try {
      for (const window of answer.windows) this.onWindow(window);
    } catch (error) {
      this.fail(error);
    }
    if (answer.kind === 'finish') this.sums = answer.sums;
    else this.free.push(this.slots[answer.slot]!);
    this.wake?.();
  }

  private async wait(): Promise<void> {
    this.throwFailure();
    await new Promise<void>((resolve) => {
      this.wake = resolve;
    });
    this.wake = undefined;
    this.throwFailure();
  }

  private throwFailure(): void {
    if (this.failure !== undefined) throw this.failure.error;
  }

  private fail(error: unknown): void {
    this.failure ??= { error };
    this.wake?.();
  }
}
