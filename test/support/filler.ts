/** The content rule of the synthetic fixtures (`notes.filler` of their manifest): the byte at a device offset for a seed. */

const MASK = (1n << 64n) - 1n;

/** Bytes [offset, offset + length) for `seed`; offset and length are multiples of 8. */
export function filler(offset: number, length: number, seed: number): Buffer {
  const bytes = Buffer.alloc(length);
  const addend = BigInt(seed) * 1442695040888963407n;
  for (let at = 0; at < length; at += 8) {
    let x = ((BigInt((offset + at) / 8) + 1n) * 6364136223846793005n + addend) & MASK;
    x ^= x >> 29n;
    x = (x * 0xbf58476d1ce4e5b9n) & MASK;
    x ^= x >> 32n;
    bytes.writeBigUInt64LE(x, at);
  }
  return bytes;
}
