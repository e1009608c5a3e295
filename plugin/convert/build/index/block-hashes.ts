/** Where a layer's decompressed bytes go to be summed: blocks in a fixed number of slots, so memory is bounded. Ours. */
import { MIB } from '../../../base/units.ts';
import { GZIP_WINDOW_BYTES } from '../../../image/gzip/gzip-index.ts';
import { BlockInflater } from '../../../kernel/block-inflater.ts';
import type { PlainSums, WindowRequest } from './plain-hasher.ts';

/** Decompressed bytes of a slot: about 2 ms of inflating or of summing. */
export const SLOT_BYTES = 1 * MIB;

export interface Slot {
  number: number;
  /** 32 KiB of what came before, then room for {@link SLOT_BYTES}. */
  memory: Uint8Array;
  /** Where the memory lies. */
  address: number;
}

/** Of memory that does not move. */
export function slotOf(number: number, shared: SharedArrayBuffer): Slot {
  const memory = new Uint8Array(shared);
  return { number, memory, address: BlockInflater.addressOf(memory) };
}

export function slotMemory(): SharedArrayBuffer {
  return new SharedArrayBuffer(GZIP_WINDOW_BYTES + SLOT_BYTES);
}

/** One layer at a time: begin, then take and submit, then finish. */
export interface BlockHashes extends AsyncDisposable {
  /** Begins a layer. `onWindow` gets the windows of the entries, as stored, in order. */
  begin(onWindow: (window: Uint8Array) => void): void;
  /** Waits for a slot; its first 32 KiB are left to the caller. */
  take(): Promise<Slot>;
  /** Sums a slot, which is not the caller's from now on but for reading. `spans`: where among its bytes spans begin. `windows` are to be packed. */
  submit(slot: Slot, length: number, spans: number[], windows: WindowRequest[]): void;
  /** The sums of the layer, when all of it is done. Every slot that was submitted is free then. */
  finish(windows?: WindowRequest[]): Promise<PlainSums>;
  /** Gives back a slot that was taken and not submitted. */
  release(slot: Slot): void;
}
