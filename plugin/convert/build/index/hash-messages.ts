/** What a scanning thread and its hash thread say to each other. */
import type { PlainSums, WindowRequest } from './plain-hasher.ts';

/**
 * A block: 32 KiB that came before, then `length` bytes; `spans`: positions among them at which a span begins, ascending. `windows`: of
 * entries, in order, whenever they are known.
 */
export type HashRequest =
  | { kind: 'block'; slot: number; length: number; spans: number[]; windows: WindowRequest[] }
  | { kind: 'finish'; windows: WindowRequest[] };
/** `windows`: as stored in the index. */
export type HashAnswer =
  | { kind: 'block'; slot: number; windows: Uint8Array[] }
  | { kind: 'finish'; sums: PlainSums; windows: Uint8Array[] };

export interface HashThreadData {
  slots: SharedArrayBuffer[];
}
