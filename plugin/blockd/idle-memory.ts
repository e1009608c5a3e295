/**
 * Gives memory back when fetching has ended. V8 collects when something is allocated; a data plane that rests after a burst of misses would
 * keep the garbage of the burst for hours. Ours. Needs `--expose-gc`; without it nothing happens.
 */
import { libc } from '../kernel/libc.ts';

/** Between two looks; fetching counts as over when nothing was fetched between them. */
const LOOK_MS = 5_000;
/** Less garbage than this is not worth the pause of a collection, some 20 ms of the main thread. */
const WORTH_BYTES = 16 * 1024 * 1024;

/** Looks after memory until the process ends. `fetchedBytes` only grows. */
export function watchIdleMemory(fetchedBytes: () => number): void {
  const collect = globalThis.gc;
  if (collect === undefined) return;
  let lastBytes = fetchedBytes();
  // The start leaves garbage too: the first rest is worth a collection in any case.
  let collectedAtBytes = lastBytes - WORTH_BYTES;
  const look = (): void => {
    const bytes = fetchedBytes();
    const isResting = bytes === lastBytes;
    lastBytes = bytes;
    if (!isResting || bytes - collectedAtBytes < WORTH_BYTES) return;
    collectedAtBytes = bytes;
    collect();
    // The socket buffers lay between others in the arenas of the C library, which keeps them.
    libc.mallocTrim(0);
  };
  setInterval(look, LOOK_MS).unref();
}
