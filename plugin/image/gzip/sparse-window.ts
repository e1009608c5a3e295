/**
 * Zeroes the bytes of a window that nothing behind it refers to: most of them, so that windows compress to a fraction and entries can lie
 * close together. Every reader inflates the same data from it. Ours; the idea of sparse windows is rapidgzip's.
 *
 * A byte of the window can only be copied by the next 32 KiB of output. Those are inflated with three made-up windows whose bytes spell
 * out their positions: where the first two results differ the byte came from the window, and the three tell from where.
 */
import assert from 'node:assert';
import { GZIP_WINDOW_BYTES } from './gzip-index.ts';
import type { RawInflater } from './inflater.ts';

/** Seven bits below 128, seven bits from 128 on, and the last bit of a position. */
const SPELLING = [
  Uint8Array.from({ length: GZIP_WINDOW_BYTES }, (_, at) => at & 0x7f),
  Uint8Array.from({ length: GZIP_WINDOW_BYTES }, (_, at) => 0x80 | ((at >> 7) & 0x7f)),
  Uint8Array.from({ length: GZIP_WINDOW_BYTES }, (_, at) => at >> 14),
] as const;

/** What follows an entry. */
export interface EntryStart {
  /** 0..7, as in the index. */
  bits: number;
  /** The byte before the entry's position. */
  lastByte: number;
  /** Stored bytes from the entry's position on. */
  input: Uint8Array;
}

export class WindowThinner {
  private readonly inflater: RawInflater;
  private readonly outputs = SPELLING.map(() => new Uint8Array(GZIP_WINDOW_BYTES));

  constructor(inflater: RawInflater) {
    this.inflater = inflater;
  }

  /** Zeroes what is not needed, in place. Leaves the window as it is when `input` does not reach far enough to tell. */
  thin(window: Uint8Array, { bits, lastByte, input }: EntryStart): void {
    assert(window.length === GZIP_WINDOW_BYTES, 'a window is 32768 bytes');
    if (input.length === 0) return;
    let produced = 0;
    for (const [i, dictionary] of SPELLING.entries()) {
      const step = this.inflater.inflate(input, { bits, bitsValue: lastByte >>> (8 - bits), dictionary }, this.outputs[i]!);
      if (step.produced < GZIP_WINDOW_BYTES && !step.ended) return;
      produced = step.produced;
    }
    const [low, high, top] = this.outputs as [Uint8Array, Uint8Array, Uint8Array];
    const thinned = new Uint8Array(GZIP_WINDOW_BYTES);
    for (let i = 0; i < produced; i += 1) {
      if (low[i] === high[i]) continue;
      const at = low[i]! | ((high[i]! & 0x7f) << 7) | (top[i]! << 14);
      thinned[at] = window[at]!;
    }
    window.set(thinned);
  }
}
