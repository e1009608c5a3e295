/** Asks whether a silent registry is back: one unit of a fetch that hangs, for nobody, over other connections and other mirrors. */
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import type { Fetch } from './fetch.ts';
import type { FetchRange } from './fetch-types.ts';

/**
 * The mirror that answers first, if it is known. Both are asked: the silent mirror itself, whose old connections may be dead, and what
 * else there is. Rejects when none answers, and with the signal's reason as soon as it comes.
 */
export async function firstToAnswer(fetchRange: FetchRange, fetch: Fetch, signal: AbortSignal): Promise<string | undefined> {
  const rest = new AbortController();
  const each = AbortSignal.any([signal, rest.signal]);
  const asks = [ask(fetchRange, fetch, [], each)];
  if (fetch.asked !== undefined) asks.push(ask(fetchRange, fetch, [fetch.asked], each));
  try {
    return await until(Promise.any(asks), signal);
  } finally {
    rest.abort();
  }
}

async function ask(
  fetchRange: FetchRange,
  { blob, offsetBytes, attempt, lengthBytes }: Fetch,
  avoidMirrors: readonly string[],
  signal: AbortSignal,
): Promise<string | undefined> {
  let mirror: string | undefined;
  const ignore = (): void => {};
  const servedBy = (name: string): void => {
    mirror = name;
  };
  const length = Math.min(FETCH_UNIT_BYTES, lengthBytes);
  const target = new Uint8Array(length);
  const options = { signal, attempt: attempt + 1, avoidMirrors, onAsked: ignore, servedBy, onProgress: ignore, target };
  await fetchRange(blob.source, offsetBytes, length, options);
  return mirror;
}

/** The promise's result, or a rejection as soon as the signal comes. */
function until<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => reject(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    if (signal.aborted) onAbort();
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
