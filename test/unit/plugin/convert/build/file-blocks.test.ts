import { describe, expect, it } from 'vitest';
import { FileBlocks } from '../../../../../plugin/convert/build/file-blocks.ts';

const BLOCK = 4096;

function store(content: Buffer, cuts: readonly number[], sizeBytes = content.length): Map<number, Buffer> {
  const blocks = new Map<number, Buffer>();
  const files = new FileBlocks({
    append: (offset, bytes) => {
      for (let at = 0; at < bytes.length; at += BLOCK) {
        expect(blocks.has((offset + at) / BLOCK)).toBe(false);
        blocks.set((offset + at) / BLOCK, Buffer.from(bytes.subarray(at, at + BLOCK)));
      }
    },
  });
  files.begin(10 * BLOCK);
  let at = 0;
  for (const cut of [...cuts, content.length]) {
    if (cut > at) files.write(content.subarray(at, cut), at);
    at = Math.max(at, cut);
  }
  files.end(sizeBytes);
  return blocks;
}

describe('file blocks', () => {
  it('pads the last block with zeros', () => {
    const blocks = store(Buffer.alloc(5000, 7), []);
    expect([...blocks.keys()]).toEqual([10, 11]);
    expect(
      blocks
        .get(11)!
        .subarray(904)
        .every((byte) => byte === 0),
    ).toBe(true);
  });

  it('leaves out runs of 64 KiB of zeros and more, stores shorter ones, whatever the cuts', () => {
    const content = Buffer.alloc(60 * BLOCK, 1);
    content.fill(0, 3 * BLOCK, 18 * BLOCK);
    content.fill(0, 20 * BLOCK, 36 * BLOCK);
    content.fill(0, 44 * BLOCK);
    const wanted = Array.from({ length: 44 }, (_, i) => i + 10).filter((block) => block < 30 || block >= 46);
    for (const cuts of [[], [1], [4095, 4096, 8193], Array.from({ length: 600 }, (_, i) => i * 409), [20 * BLOCK, 36 * BLOCK]]) {
      const blocks = store(content, cuts);
      expect([...blocks.keys()].sort((a, b) => a - b)).toEqual(wanted);
      expect(blocks.get(10)!.every((byte) => byte === 1)).toBe(true);
    }
  });

  it('takes gaps between writes for zeros without touching each block', () => {
    const files = { appended: 0 };
    const blocks = new FileBlocks({
      append: (_, bytes) => {
        files.appended += bytes.length;
      },
    });
    blocks.begin(0);
    blocks.write(Buffer.from('a'), 0);
    blocks.write(Buffer.from('b'), 2 ** 43 + 5);
    blocks.end(2 ** 44);
    expect(files.appended).toBe(2 * BLOCK);
  });
});
