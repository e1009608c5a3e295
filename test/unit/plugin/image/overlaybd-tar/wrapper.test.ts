import { describe, expect, test } from 'vitest';
import {
  encodePaxHead,
  encodePlainHead,
  encodeTail,
  findPayload,
  PAX_HEAD_BYTES,
} from '../../../../../plugin/image/overlaybd-tar/wrapper.ts';

describe('tar wrapper', () => {
  test('both forms are found again, for every number of digits of the size', () => {
    for (let payloadBytes = 1; payloadBytes < 1e13; payloadBytes *= 10) {
      for (const size of [payloadBytes - 1, payloadBytes]) {
        const blobBytes = PAX_HEAD_BYTES + size + encodeTail(size).length;
        expect(findPayload(encodePaxHead(size), blobBytes, 'x')).toEqual({ offsetBytes: PAX_HEAD_BYTES, sizeBytes: size });
        expect(blobBytes % 512).toBe(0);
        if (size >= 8 ** 11) continue;
        expect(findPayload(encodePlainHead(size), 512 + size, 'x')).toEqual({ offsetBytes: 512, sizeBytes: size });
      }
    }
  });

  test('a head that ends inside the PAX data is refused, not read past its end', () => {
    expect(() => findPayload(encodePaxHead(1000).subarray(0, 700), 700, 'x')).toThrow('PAX header size');
  });

  test('anything shorter than a header, or without a checksum, is no wrapper', () => {
    expect(findPayload(new Uint8Array(511), 511, 'x')).toEqual({ offsetBytes: 0, sizeBytes: 511 });
    const head = encodePlainHead(10);
    head[0] = 0x41;
    expect(findPayload(head, 9999, 'x')).toEqual({ offsetBytes: 0, sizeBytes: 9999 });
  });
});
