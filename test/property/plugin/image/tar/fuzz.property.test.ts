/**
 * Damaged tars: whatever bytes are changed, cut or repeated, the reader ends with a result or an AppError, the same however the input
 * is cut, and never hands out content beyond what the entry said.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isAppError } from '../../../../../plugin/base/errors.ts';
import { TarReader } from '../../../../../plugin/image/tar/reader.ts';
import { fixtureNames, readFixture } from '../../../../support/fixtures.ts';
import { rawTar } from '../../../../unit/plugin/image/tar/raw-tar.ts';

const TIME_MS = Number(process.env.OBD_PROPERTY_MS ?? 4000);

function outcome(tar: Buffer, chunkBytes: number): string[] {
  const seen: string[] = [];
  let size = 0;
  let at = 0;
  const reader = new TarReader({
    entry: (entry) => {
      size = entry.sizeBytes;
      at = 0;
      seen.push(`${entry.type} ${entry.name} ${entry.linkName} ${size} ${entry.contentOffset}`);
    },
    content: (bytes, offset) => {
      expect(offset).toBeGreaterThanOrEqual(at);
      at = offset + bytes.length;
      expect(at).toBeLessThanOrEqual(size);
    },
    entryEnd: () => seen.push(`end ${at}`),
  });
  try {
    for (let i = 0; i < tar.length; i += chunkBytes) reader.push(tar.subarray(i, i + chunkBytes));
    reader.end();
  } catch (error) {
    if (!isAppError(error)) throw error;
    seen.push(`${error.code} ${error.message}`);
  }
  return seen;
}

const seeds = (): Buffer[] => [
  ...fixtureNames('oci/odd/').map(readFixture),
  readFixture('oci/small/e1.tar'),
  readFixture('oci/l1.tar').subarray(0, 60_000),
  rawTar([
    {
      name: 'sparse',
      content: 'abcdef',
      pax: [
        ['GNU.sparse.size', '90'],
        ['GNU.sparse.map', '5,2,40,4'],
        ['path', 'long'],
        ['mtime', '1.5'],
      ],
    },
    { name: 's', type: 'S', magic: 'ustar  \0', size: 0, patch: { 483: '00000001000\0' } },
    {
      name: 'inline',
      content: `1\n0\n3\n${'\0'.repeat(506)}abc`,
      pax: [
        ['GNU.sparse.major', '1'],
        ['GNU.sparse.minor', '0'],
        ['GNU.sparse.realsize', '3'],
      ],
    },
  ]),
];

describe('damaged tars', () => {
  it('end in a result or a clear error, the same for every way of cutting', () => {
    const tars = seeds();
    const mutation = fc.record({
      seed: fc.nat(),
      edits: fc.array(
        fc.record({
          at: fc.nat(),
          byte: fc.oneof(fc.nat(255), fc.constantFrom(0x30, 0x37, 0x80, 0xff, 0, 0x20, 0x53, 0x78)),
          fixes: fc.boolean(),
        }),
        { maxLength: 6 },
      ),
      cut: fc.oneof({ weight: 3, arbitrary: fc.constant(-1) }, { weight: 1, arbitrary: fc.nat() }),
      repeat: fc.nat(3),
      chunk: fc.constantFrom(1, 100, 512, 777, 4096),
    });
    fc.assert(
      fc.property(mutation, ({ seed, edits, cut, repeat, chunk }) => {
        const original = tars[seed % tars.length]!;
        const tar = Buffer.concat([original, ...Array.from({ length: repeat }, () => original.subarray(0, 2048))]);
        // Most edits in headers would only break the checksum, so half of them mend it.
        for (const { at, byte, fixes } of edits) {
          const position = at % tar.length;
          tar[position] = byte;
          if (fixes) mendChecksum(tar, position - (position % 512));
        }
        const bytes = cut < 0 ? tar : tar.subarray(0, cut % tar.length);
        expect(outcome(bytes, chunk)).toEqual(outcome(bytes, bytes.length || 1));
      }),
      { numRuns: 1_000_000, interruptAfterTimeLimit: TIME_MS, markInterruptAsFailure: false },
    );
  }, 60_000);
});

function mendChecksum(tar: Buffer, start: number): void {
  if (start + 512 > tar.length) return;
  let sum = 8 * 0x20;
  for (let i = 0; i < 512; i += 1) if (i < 148 || i >= 156) sum += tar[start + i]!;
  tar.write(`${sum.toString(8).padStart(6, '0')}\0 `, start + 148, 'latin1');
}
