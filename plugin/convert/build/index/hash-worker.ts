/** The thread that sums what another one inflates; hash-thread.ts is its other side. Ours. */
import { parentPort, workerData } from 'node:worker_threads';
import { STOP } from '../stop-worker.ts';
import type { HashAnswer, HashRequest, HashThreadData } from './hash-messages.ts';
import { PlainHasher, WindowPacker } from './plain-hasher.ts';

const port = parentPort!;
const slots = (workerData as HashThreadData).slots.map((memory) => new Uint8Array(memory));
const hasher = new PlainHasher();
const packer = new WindowPacker();

function answerTo(request: HashRequest): HashAnswer {
  const windows = request.windows.map((window) => packer.pack(window));
  if (request.kind === 'finish') return { kind: 'finish', sums: hasher.finish(), windows };
  hasher.update(slots[request.slot]!, request.length, request.spans);
  return { kind: 'block', slot: request.slot, windows };
}

port.on('message', (request: HashRequest | typeof STOP) => {
  if (request === STOP) port.close();
  else port.postMessage(answerTo(request));
});
