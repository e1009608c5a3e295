/** Sums in a thread of their own, as its one user sees it: when a layer is alone, it is done in half the time. Ours. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { AppError } from '../../../base/errors.ts';
import { stopWorker } from '../stop-worker.ts';
import { type BlockHashes, type Slot, slotMemory, slotOf } from './block-hashes.ts';
import type { HashAnswer, HashRequest, HashThreadData } from './hash-messages.ts';
import type { PlainSums, WindowRequest } from './plain-hasher.ts';

const WORKER = path.join(import.meta.dirname, `hash-worker${path.extname(import.meta.filename)}`);

/** One being filled, one being hashed, two waiting to even out. */
const SLOTS = 4;

export class HashThread implements BlockHashes {
  private readonly worker: Worker;
  private readonly slots: Slot[];
  private readonly free: Slot[];
  private onWindow: (window: Uint8Array) => void = () => {};
  private wake: (() => void) | undefined;
  private sums: PlainSums | undefined;
  private failure: { error: unknown } | undefined;

  constructor() {
    const slots = Array.from({ length: SLOTS }, slotMemory);
    this.slots = slots.map((memory, number) => slotOf(number, memory));
    this.free = [...this.slots];
    const workerData: HashThreadData = { slots };
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
