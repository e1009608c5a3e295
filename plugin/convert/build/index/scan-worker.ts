/** The thread that runs a LayerScanner for one layer after the other; scan-thread.ts is its other side. Ours. */
import { parentPort } from 'node:worker_threads';
import { AppError, describeError } from '../../../base/errors.ts';
import { STOP } from '../stop-worker.ts';
import { HashThread } from './hash-thread.ts';
import { LayerScanner, type ScanRequest, type ScanResult } from './layer-scanner.ts';

export type ScanMessage = { kind: 'begin'; request: ScanRequest } | { kind: 'data'; bytes: Uint8Array } | { kind: 'end' };
export interface ScanProgress {
  readBytes: number;
  tarBytes: number;
  entries: number;
}
/** Errors of a thread lose their class on the way out, so they go as data (AppError.toJSON). */
export type ScanAnswer =
  | { kind: 'taken'; progress: ScanProgress }
  | { kind: 'result'; result: ScanResult }
  | { kind: 'failed'; error: unknown };

const port = parentPort!;
const hashes = new HashThread();
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
    if (message.kind === 'begin') scanner = new LayerScanner(message.request, hashes);
    // After a reason or an error the rest of the layer may still be on its way.
    else if (scanner === undefined) return;
    else if (message.kind === 'data') {
      const { buffer, byteOffset, byteLength } = message.bytes;
      const unindexable = await scanner.push(Buffer.from(buffer, byteOffset, byteLength));
      if (unindexable === undefined) port.postMessage({ kind: 'taken', progress: scanner.progress } satisfies ScanAnswer);
      else await finish({ kind: 'result', result: unindexable });
    } else await finish({ kind: 'result', result: await scanner.end() });
  } catch (error) {
    await finish({ kind: 'failed', error: error instanceof AppError ? error.toJSON() : { what: describeError(error) } });
  }
}

/** After what is being done now; the pieces that wait are left. */
async function stop(): Promise<void> {
  try {
    await scanner?.[Symbol.asyncDispose]();
    await hashes[Symbol.asyncDispose]();
  } finally {
    port.close();
  }
}

port.on('message', (message: ScanMessage | typeof STOP) => {
  if (message === STOP) isStopping = true;
  pending = pending.then(() => (message === STOP ? stop() : handle(message)));
});
