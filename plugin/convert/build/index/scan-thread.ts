/** Feeds layers to a scanning thread; a fixed amount of input is on its way, so the source is read as fast as it is taken. Ours. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { AppError } from '../../../base/errors.ts';
import { KIB } from '../../../base/units.ts';
import type { SourceLayer } from '../options.ts';
import { stopWorker } from '../stop-worker.ts';
import type { ScanRequest, ScanResult } from './layer-scanner.ts';
import type { ScanAnswer, ScanMessage, ScanProgress } from './scan-worker.ts';

const WORKER = path.join(import.meta.dirname, `scan-worker${path.extname(import.meta.filename)}`);

/** Input is posted in pieces of about this: a message costs some 20 µs, this much deflate a millisecond. */
const PIECE_BYTES = 256 * KIB;
/** Pieces on their way to the thread. */
const MAX_PIECES = 8;

export class ScanThread implements AsyncDisposable {
  private readonly worker: Worker;
  private wake: (() => void) | undefined;
  private onTheWay = 0;
  private result: ScanResult | undefined;
  private failure: { error: unknown } | undefined;
  private subject = 'layer';
  private onProgress: ((progress: ScanProgress) => void) | undefined;

  constructor() {
    this.worker = new Worker(WORKER, { execArgv: [], resourceLimits: { maxOldGenerationSizeMb: 256, maxYoungGenerationSizeMb: 16 } });
    this.worker.on('message', (answer: ScanAnswer) => this.receive(answer));
    this.worker.on('error', (error) => this.fail(error));
    this.worker.on('exit', (code) =>
      this.fail(new AppError('Internal', { op: 'scan', subject: 'thread', what: `it ended with code ${code}` })),
    );
  }

  /** Scans one layer; one at a time. Rejects with an AppError naming the layer, the source's error, or the signal's reason. */
  async scan(
    layer: SourceLayer,
    request: ScanRequest,
    signal: AbortSignal,
    onProgress?: (progress: ScanProgress) => void,
  ): Promise<ScanResult> {
    this.onTheWay = 0;
    this.result = undefined;
    this.subject = layer.name;
    this.onProgress = onProgress;
    const onAbort = (): void => this.wake?.();
    signal.addEventListener('abort', onAbort);
    try {
      this.post({ kind: 'begin', request });
      for await (const piece of pieces(layer.open(signal), signal)) {
        while (this.onTheWay >= MAX_PIECES && this.result === undefined) await this.wait(signal);
        if (this.result !== undefined) return this.result;
        this.throwFailure();
        this.onTheWay += 1;
        this.post({ kind: 'data', bytes: piece }, [piece.buffer]);
      }
      this.post({ kind: 'end' });
      while (this.result === undefined) await this.wait(signal);
      return this.result;
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.worker.removeAllListeners('exit');
    await stopWorker(this.worker);
  }

  private post(message: ScanMessage, transfer: ArrayBuffer[] = []): void {
    this.worker.postMessage(message, transfer);
  }

  private receive(answer: ScanAnswer): void {
    if (answer.kind === 'taken') {
      this.onTheWay -= 1;
      this.onProgress?.(answer.progress);
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

/** The source in pieces with memory of their own, so that they can be handed to another thread. */
async function* pieces(source: AsyncIterable<Uint8Array>, signal: AbortSignal): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  let piece = new Uint8Array(PIECE_BYTES);
  let filled = 0;
  for await (const chunk of source) {
    signal.throwIfAborted();
    for (let done = 0; done < chunk.length; ) {
      const take = Math.min(PIECE_BYTES - filled, chunk.length - done);
      piece.set(chunk.subarray(done, done + take), filled);
      filled += take;
      done += take;
      if (filled < PIECE_BYTES) continue;
      yield piece;
      piece = new Uint8Array(PIECE_BYTES);
      filled = 0;
    }
  }
  if (filled > 0) yield piece.subarray(0, filled);
}
