import { randomBytes } from 'node:crypto';
import { deflateRawSync } from 'node:zlib';
import { describe, expect, test } from 'vitest';
import { ALGORITHM, compressBound } from '../../../../plugin/image/zfile/codec.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';

const codec = loadCodec();
const ALGORITHMS = [ALGORITHM.lz4, ALGORITHM.zstd];

describe('block codec', () => {
  test.each(ALGORITHMS)('algorithm %i: random and compressible blocks of all sizes come back, within the bound', (algorithm) => {
    for (const size of [1, 511, 4096, 65536]) {
      for (const plain of [randomBytes(size), Buffer.alloc(size, 'abc')]) {
        const packed = Buffer.alloc(compressBound(size) + 9);
        const length = codec.compress(algorithm, plain, 0, size, packed, 9, compressBound(size));
        expect(length).toBeLessThanOrEqual(compressBound(size));
        const out = Buffer.alloc(size + 5, 0xee);
        expect(codec.decompress(algorithm, packed, 9, length, out, 5, size)).toBe(size);
        expect(out.subarray(5).equals(plain)).toBe(true);
        expect(out.subarray(0, 5).equals(Buffer.alloc(5, 0xee))).toBe(true);
      }
    }
  });

  test.each(ALGORITHMS)(
    'algorithm %i: garbage and cut blocks give -1 or a length, never a crash, and stay inside the target',
    (algorithm) => {
      const plain = Buffer.from('some text, some text, some other text. '.repeat(100));
      const packed = Buffer.alloc(compressBound(plain.length));
      const length = codec.compress(algorithm, plain, 0, plain.length, packed, 0, packed.length);
      const guard = Buffer.alloc(64, 0xaa);
      for (let round = 0; round < 2000; round++) {
        const bad = round % 2 === 0 ? randomBytes(1 + (round % 300)) : Buffer.from(packed.subarray(0, 1 + (round % length)));
        const out = Buffer.alloc(1000 + 64, 0xaa);
        const got = codec.decompress(algorithm, bad, 0, bad.length, out, 0, 1000);
        expect(got === -1 || (got >= 0 && got <= 1000)).toBe(true);
        expect(out.subarray(1000).equals(guard)).toBe(true);
      }
    },
  );

  test('a target that is too small gives -1', () => {
    for (const algorithm of ALGORITHMS) {
      const plain = randomBytes(4096);
      const packed = Buffer.alloc(compressBound(4096));
      const length = codec.compress(algorithm, plain, 0, 4096, packed, 0, packed.length);
      expect(codec.decompress(algorithm, packed, 0, length, Buffer.alloc(4096), 0, 4095)).toBe(-1);
    }
  });

  test('ranges outside their buffers are a broken invariant, not a memory fault', () => {
    const small = Buffer.alloc(10);
    expect(() => codec.decompress(ALGORITHM.lz4, small, 5, 6, small, 0, 10)).toThrow('range lies within its buffer');
    expect(() => codec.compress(ALGORITHM.lz4, small, 0, 10, small, 0, 10)).toThrow('the target holds the worst case');
  });
});

describe('raw inflate', () => {
  const plain = Buffer.from('the quick brown fox jumps over the lazy dog. '.repeat(50));
  const none = { bits: 0, bitsValue: 0, dictionary: new Uint8Array(0) };

  test('inflates, stops at the end of the stream, and again after a reset', () => {
    const packed = deflateRawSync(plain);
    for (let round = 0; round < 3; round++) {
      const out = Buffer.alloc(plain.length);
      expect(codec.inflate(packed, none, out).produced).toBe(plain.length);
      expect(out.equals(plain)).toBe(true);
    }
  });

  test('uses the dictionary', () => {
    const dictionary = plain.subarray(0, 500);
    const packed = deflateRawSync(plain, { dictionary });
    const out = Buffer.alloc(plain.length);
    codec.inflate(packed, { ...none, dictionary }, out);
    expect(out.equals(plain)).toBe(true);
  });

  test('garbage gives -1, cut input gives less', () => {
    const packed = deflateRawSync(plain);
    expect(codec.inflate(Buffer.from([0xff, 0xff, 0xff, 0xff]), none, Buffer.alloc(100)).produced).toBe(-1);
    expect(codec.inflate(packed.subarray(0, 20), none, Buffer.alloc(plain.length)).produced).toBeLessThan(plain.length);
  });
});
