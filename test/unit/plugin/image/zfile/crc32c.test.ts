import { describe, expect, test } from 'vitest';
import { crc32c } from '../../../../../plugin/image/zfile/crc32c.ts';

/** Bit by bit, straight from the definition. */
function slow(seed: number, bytes: Uint8Array): number {
  let crc = seed;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  }
  return crc >>> 0;
}

describe('crc32c', () => {
  test('the published check value, once inverted in and out, is reached', () => {
    expect(~crc32c(0xffff_ffff, Buffer.from('123456789')) >>> 0).toBe(0xe306_9283);
  });

  test('equals the bitwise definition for all lengths around the slice size, offsets and seeds', () => {
    const bytes = Uint8Array.from({ length: 80 }, (_, i) => (i * 151 + 7) & 255);
    for (const seed of [0, 100_007, 0xffff_ffff]) {
      for (let length = 0; length <= 50; length++) {
        for (const offset of [0, 1, 3, 15]) {
          expect(crc32c(seed, bytes, offset, length)).toBe(slow(seed, bytes.subarray(offset, offset + length)));
        }
      }
    }
  });

  test('may be continued: the result of one part seeds the next', () => {
    const bytes = Uint8Array.from({ length: 100 }, (_, i) => i);
    expect(crc32c(crc32c(5, bytes, 0, 37), bytes, 37)).toBe(crc32c(5, bytes));
  });
});
