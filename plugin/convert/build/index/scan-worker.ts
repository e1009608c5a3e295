/** The thread that runs a LayerScanner for one layer after the other; scan-thread.ts is its other side. Ours. */
import { parentPort, workerData } from 'node:worker_threads';
import { AppError, describeError } from '../../../base/errors.ts';
import { STOP } from '../stop-worker.ts';
import type { BlockHashes } from './block-hashes.ts';
import { HashThread } from './hash-thread.ts';
import { InlineHashes } from './inline-hashes.ts';
import { LayerScanner, type ScanRequest, type ScanResult } from './layer-scanner.ts';

/** Memory for input, which goes back and forth. */
export interface ScanThreadData {
  pieces: SharedArrayBuffer[];
}
/** `isAlone`: no other layer needs the other cores. `piece`: the number of its memory, which is the thread's until it is `taken`. */
export type ScanMessage =
  | { kind: 'begin'; request: ScanRequest; isAlone: boolean }
  | { kind: 'data'; piece: number; length: number }
  | { kind: 'end' };
export interface ScanProgress {
  readBytes: number;
  tarBytes: number;
  entries: number;
}
/** Errors of a thread lose their class on the way out, so they go as data (AppError.toJSON). */
export type ScanAnswer =
  /** `progress`: absent when the layer is not read any more. */
  | { kind: 'taken'; piece: number; progress: ScanProgress | undefined }
  | { kind: 'result'; result: ScanResult }
  | { kind: 'failed'; error: unknown };

const port = parentPort!;
const { pieces } = workerData as ScanThreadData;
let inline: InlineHashes | undefined;
let thread: HashThread | undefined;
let scanner: LayerScanner | undefined;
let pending: Promise<void> = Promise.resolve();
let isStopping = false;

async function finish(answer: ScanAnswer): Promise<void> {
  const done = scanner;
  scanner = undefined;
  await done?.[Symbol.asyncDispose]();
  port.postMessage(answer);
}

async function handle(message: ScanMessage): Promise<void> {
  if (isStopping) return;
  try {
    if (message.kind === 'begin') scanner = new LayerScanner(message.request, hashesFor(message.isAlone));
    else if (message.kind === 'data') await take(message.piece, message.length);
    else if (scanner !== undefined) await finish({ kind: 'result', result: await scanner.end() });
  } catch (error) {
    await finish({ kind: 'failed', error: error instanceof AppError ? error.toJSON() : { what: describeError(error) } });
  }
}

/** Made when they are first needed. */
function hashesFor(isAlone: boolean): BlockHashes {
  if (isAlone) return (thread ??= new HashThread());
  return (inline ??= new InlineHashes());
}

/** After a reason or an error the rest of the layer may still be on its way: its memory is given back. */
async function take(piece: number, length: number): Promise<void> {
  try {
    const unindexable = await scanner?.push(Buffer.from(pieces[piece]!, 0, length));
    if (unindexable !== undefined) await finish({ kind: 'result', result: unindexable });
  } finally {
    port.postMessage({ kind: 'taken', piece, progress: scanner?.progress } satisfies ScanAnswer);
  }
}

/** After what is being done now; the pieces that wait are left. */
async function stop(): Promise<void> {
  try {
    await scanner?.[Symbol.asyncDispose]();
    await thread?.[Symbol.asyncDispose]();
  } finally {
    port.close();
  }
}

port.on('message', (message: ScanMessage | typeof STOP) => {
  if (message === STOP) isStopping = true;
  pending = pending.then(() => (message === STOP ? stop() : handle(message)));
});
