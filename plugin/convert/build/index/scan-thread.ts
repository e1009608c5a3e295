/** Feeds layers to a scanning thread; a fixed amount of input is on its way, so the source is read as fast as it is taken. Ours. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { AppError } from '../../../base/errors.ts';
import { KIB } from '../../../base/units.ts';
import type { SourceLayer } from '../options.ts';
import { stopWorker } from '../stop-worker.ts';
import type { ScanRequest, ScanResult } from './layer-scanner.ts';
import type { ScanAnswer, ScanMessage, ScanProgress, ScanThreadData } from './scan-worker.ts';

const WORKER = path.join(import.meta.dirname, `scan-worker${path.extname(import.meta.filename)}`);

/** Input goes to the thread in pieces of this: waking a thread costs some 50 µs, this much deflate several milliseconds. */
const PIECE_BYTES = 512 * KIB;
/** Pieces on their way to the thread, each in memory that goes back and forth. */
const PIECES = 4;

export class ScanThread implements AsyncDisposable {
  private readonly worker: Worker;
  private wake: (() => void) | undefined;
  private readonly pieces: Uint8Array[];
  /** Pieces that the thread does not have. */
  private readonly free: number[];
  private result: ScanResult | undefined;
  private failure: { error: unknown } | undefined;
  private subject = 'layer';
  private onProgress: ((progress: ScanProgress) => void) | undefined;

  constructor() {
    const shared = Array.from({ length: PIECES }, () => new SharedArrayBuffer(PIECE_BYTES));
    this.pieces = shared.map((memory) => new Uint8Array(memory));
    this.free = [...this.pieces.keys()];
    const workerData: ScanThreadData = { pieces: shared };
    this.worker = new Worker(WORKER, {
      workerData,
      execArgv: [],
      resourceLimits: { maxOldGenerationSizeMb: 256, maxYoungGenerationSizeMb: 16 },
    });
    this.worker.on('message', (answer: ScanAnswer) => this.receive(answer));
    this.worker.on('error', (error) => this.fail(error));
    this.worker.on('exit', (code) =>
      this.fail(new AppError('Internal', { op: 'scan', subject: 'thread', what: `it ended with code ${code}` })),
    );
  }

  /** Scans one layer; one at a time. `isAlone`: no other layer needs the other cores. Rejects with an AppError naming the layer, the source's error, or the signal's reason. */
  async scan(
    layer: SourceLayer,
    request: ScanRequest,
    isAlone: boolean,
    signal: AbortSignal,
    onProgress?: (progress: ScanProgress) => void,
  ): Promise<ScanResult> {
    this.result = undefined;
    this.subject = layer.name;
    this.onProgress = onProgress;
    const onAbort = (): void => this.wake?.();
    signal.addEventListener('abort', onAbort);
    try {
      this.post({ kind: 'begin', request, isAlone });
      await this.feed(layer.open(signal), signal);
      this.post({ kind: 'end' });
      while (this.result === undefined) await this.wait(signal);
      return this.result;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  /** Hands the source to the thread, piece by piece; ends early when the scan has its result. */
  private async feed(source: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void> {
    let piece: number | undefined;
    let filled = 0;
    const send = (): void => {
      this.post({ kind: 'data', piece: piece!, length: filled });
      piece = undefined;
      filled = 0;
    };
    try {
      for await (const chunk of source) {
        signal.throwIfAborted();
        for (let done = 0; done < chunk.length; ) {
          piece ??= await this.takePiece(signal);
          if (piece === undefined) return;
          const take = Math.min(PIECE_BYTES - filled, chunk.length - done);
          this.pieces[piece]!.set(chunk.subarray(done, done + take), filled);
          filled += take;
          done += take;
          if (filled === PIECE_BYTES) send();
        }
      }
      if (piece !== undefined) send();
    } finally {
      if (piece !== undefined) this.free.push(piece);
    }
  }

  /** A piece to fill; undefined when the scan has its result already. */
  private async takePiece(signal: AbortSignal): Promise<number | undefined> {
    while (this.free.length === 0 && this.result === undefined) await this.wait(signal);
    this.throwFailure();
    return this.result === undefined ? this.free.pop() : undefined;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.worker.removeAllListeners('exit');
    await stopWorker(this.worker);
  }

  private post(message: ScanMessage): void {
    this.worker.postMessage(message);
  }

  private receive(answer: ScanAnswer): void {
    if (answer.kind === 'taken') {
      this.free.push(answer.piece);
      if (answer.progress !== undefined) this.onProgress?.(answer.progress);
    } else if (answer.kind === 'result') this.result = answer.result;
    else this.fail(AppError.fromJSON(answer.error, { op: 'scan', subject: this.subject }));
    this.wake?.();
  }

  private async wait(signal: AbortSignal): Promise<void> {
    this.throwFailure();
    signal.throwIfAborted();
    await new Promise<void>((resolve) => {
      this.wake = resolve;
    });
    this.wake = undefined;
    this.throwFailure();
    signal.throwIfAborted();
  }

  private throwFailure(): void {
    if (this.failure !== undefined) throw this.failure.error;
  }

  private fail(error: unknown): void {
    this.failure ??= { error };
    this.wake?.();
  }
}
