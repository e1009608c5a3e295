/**
 * Zeroes the bytes of a window that nothing behind it refers to: most of them, so that windows compress to a fraction and entries can lie
 * close together. Every reader inflates the same data from it. Ours; the idea of sparse windows is rapidgzip's.
 *
 * A byte of the window can only be copied by the next 32 KiB of output. Those are inflated with two made-up windows whose bytes spell
 * out their positions and differ everywhere: where the results differ the byte came from the window, and the two tell from where.
 */
import assert from 'node:assert';
import { GZIP_WINDOW_BYTES } from './gzip-index.ts';
import type { RawInflater } from './inflater.ts';

/** The eight low bits of a position. */
const LOW = Uint8Array.from({ length: GZIP_WINDOW_BYTES }, (_, at) => at & 0xff);
/** The seven others, and in the topmost bit whatever makes it another byte than that of LOW. */
const HIGH = Uint8Array.from({ length: GZIP_WINDOW_BYTES }, (_, at) => ((at & 0xff) === (0x80 | (at >> 8)) ? at >> 8 : 0x80 | (at >> 8)));

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
  private readonly low = new Uint8Array(GZIP_WINDOW_BYTES);
  private readonly high = new Uint8Array(GZIP_WINDOW_BYTES);

  constructor(inflater: RawInflater) {
    this.inflater = inflater;
  }

  /** Zeroes what is not needed, in place. Leaves the window as it is when `input` does not reach far enough to tell. */
  thin(window: Uint8Array, { bits, lastByte, input }: EntryStart): void {
    assert(window.length === GZIP_WINDOW_BYTES, 'a window is 32768 bytes');
    if (input.length === 0) return;
    const { low, high } = this;
    const bitsValue = lastByte >>> (8 - bits);
    const first = this.inflater.inflate(input, { bits, bitsValue, dictionary: LOW }, low);
    if (first.produced < GZIP_WINDOW_BYTES && !first.ended) return;
    this.inflater.inflate(input, { bits, bitsValue, dictionary: HIGH }, high);
    const thinned = new Uint8Array(GZIP_WINDOW_BYTES);
    for (let i = 0; i < first.produced; i += 1) {
      if (low[i] === high[i]) continue;
      const at = low[i]! | ((high[i]! & 0x7f) << 8);
      thinned[at] = window[at]!;
    }
    window.set(thinned);
  }
}
