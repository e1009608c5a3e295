/** What the main thread and the threads that inflate spans say to each other. Apart from the thread's own file, which only it may load. */
import type { SpanFault } from '../../image/gzip/gzip-span.ts';

export interface InflateRequest {
  id: number;
  /** Its memory is handed over. */
  stored: Uint8Array<ArrayBuffer>;
  window: Uint8Array;
  bits: number;
  isCompressed: boolean;
  plainBytes: number;
  /** SHA-256 of each chunk of the span; absent: nobody knows them. */
  digests: Uint8Array | undefined;
}

/** `bytes`: the span, and zeros up to the next unit. `bug`: what went wrong here, with some image's span and no other's. */
export type InflateAnswer = { id: number; bytes: Uint8Array<ArrayBuffer> } | { id: number; fault: SpanFault } | { id: number; bug: string };

/** The message after which a thread ends; one that is terminated inside a native library takes the process along. */
export const STOP = 'stop';
