/** The blobs that the killed process and its judge both know. */
import { createHash } from 'node:crypto';
import type { BlobSource } from '../../../../../plugin/file/device-spec.ts';

export const KILL_BLOBS = 6;
export const KILL_BUDGET_BYTES = 40 * 65_536;
const SIZE_BYTES = 12 * 65_536 + 99;

const made = new Map<number, Uint8Array>();

export function killBytes(index: number): Uint8Array {
  let bytes = made.get(index);
  if (bytes === undefined) {
    bytes = new Uint8Array(SIZE_BYTES);
    for (let at = 0; at < SIZE_BYTES; at += 1) bytes[at] = 1 + ((at * 7 + (at >> 8) * 13 + index * 31) % 255);
    made.set(index, bytes);
  }
  return bytes;
}

export function killSource(index: number): BlobSource {
  const hex = createHash('sha256').update(killBytes(index)).digest('hex');
  return { digest: `sha256:${hex}`, sizeBytes: SIZE_BYTES, repositories: [] };
}
