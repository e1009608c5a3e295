/**
 * Ends a thread by asking it: a thread that is terminated while it loads or calls a native library takes the whole process along (the
 * library cannot report what V8 no longer lets it report). Ours.
 */
import type { Worker } from 'node:worker_threads';

/** The message; the thread closes its port when it gets it, and ends when it has nothing left to do. */
export const STOP = 'stop';

/** A thread answers between two pieces of work of some milliseconds; one that does not in this time hangs. */
const LIMIT_MS = 10_000;

/** Resolves when the thread has ended. Its listeners for `exit` should be gone before. */
export async function stopWorker(worker: Worker): Promise<void> {
  // Ended already, by an error of its own.
  if (worker.threadId === -1) return;
  const ended = new Promise<void>((resolve) => worker.once('exit', () => resolve()));
  worker.postMessage(STOP);
  const timer = setTimeout(() => void worker.terminate(), LIMIT_MS);
  await ended;
  clearTimeout(timer);
}
