/**
 * Random gzip streams (stored, fixed and Huffman-only blocks, flushes anywhere, sizes around multiples of the span), scanned as layers: every
 * span inflates from its own entry to the bytes that lie there, and to the digests that the scan made.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { constants, createGzip } from 'node:zlib';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { InlineHashes } from '../../../../plugin/convert/build/index/inline-hashes.ts';
import { LayerScanner, type ScanResult } from '../../../../plugin/convert/build/index/layer-scanner.ts';
import { digestsOfSpan, wrongChunkOf } from '../../../../plugin/file/target-chunks.ts';
import { parseGzipEntries, parseGzipIndexHeader } from '../../../../plugin/image/gzip/gzip-index.ts';
import { gzipSpan, inflateSpan } from '../../../../plugin/image/gzip/gzip-span.ts';
import { parseChunkDigests } from '../../../../plugin/image/turbo/chunk-digests.ts';
import { LibraryInflater } from '../../../../plugin/kernel/inflate.ts';
import { forTime } from '../../../support/for-time.ts';
import { rawTar } from '../../../unit/plugin/image/tar/raw-tar.ts';

const TIME_MS = Number(process.env.OBD_PROPERTY_MS ?? 4000);
const SPAN_BYTES = 65_536;
const HEAD_AND_END = 512 + 1024;

/** Runs of noise, of one byte, and of what came before, so that blocks of every kind and long matches come about. */
const content = fc
  .tuple(
    fc.oneof(
      fc.nat(300_000),
      fc.nat(6).map((spans) => Math.max(0, spans * SPAN_BYTES - HEAD_AND_END)),
    ),
    fc.array(fc.tuple(fc.nat(2), fc.integer({ min: 1, max: 40_000 }), fc.integer({ min: 1, max: 32_768 })), {
      minLength: 1,
      maxLength: 12,
    }),
    fc.nat(),
  )
  .map(([size, runs, seed]) => {
    const bytes = Buffer.alloc(size);
    let noise = seed | 1;
    for (let at = 0, i = 0; at < size; i += 1) {
      const [kind, length, back] = runs[i % runs.length]!;
      const end = Math.min(size, at + length);
      for (; at < end; at += 1) {
        noise = (Math.imul(noise, 1_103_515_245) + 12_345) >>> 0;
        bytes[at] = kind === 0 ? noise >>> 24 : kind === 1 ? back & 0xff : (bytes[at - back] ?? 0x61);
      }
    }
    return bytes;
  });

const settings = fc.record({
  level: fc.constantFrom(0, 1, 6, 9),
  memLevel: fc.integer({ min: 1, max: 9 }),
  strategy: fc.constantFrom(
    constants.Z_DEFAULT_STRATEGY,
    constants.Z_FILTERED,
    constants.Z_HUFFMAN_ONLY,
    constants.Z_RLE,
    constants.Z_FIXED,
  ),
});
const flushes = fc.array(
  fc.record({
    bytes: fc.constantFrom(1, 511, 32_768, SPAN_BYTES, 100_000, 1 << 30),
    kind: fc.constantFrom(undefined, constants.Z_SYNC_FLUSH, constants.Z_FULL_FLUSH, constants.Z_PARTIAL_FLUSH),
  }),
  { minLength: 1, maxLength: 5 },
);

async function pack(plain: Buffer, options: object, pieces: readonly { bytes: number; kind: number | undefined }[]): Promise<Buffer> {
  const gzip = createGzip(options);
  const chunks: Buffer[] = [];
  gzip.on('data', (chunk: Buffer) => chunks.push(chunk));
  const ended = new Promise((resolve) => gzip.once('end', resolve));
  for (let at = 0, i = 0; at < plain.length; i += 1) {
    const { bytes, kind } = pieces[i % pieces.length]!;
    // Thousands of flushes take long and show nothing more.
    const length = i > 20 ? plain.length : bytes;
    gzip.write(plain.subarray(at, at + length));
    if (kind !== undefined && i <= 20) await new Promise<void>((resolve) => gzip.flush(kind, resolve));
    at += length;
  }
  gzip.end();
  await ended;
  return Buffer.concat(chunks);
}

async function scan(packed: Buffer, cut: number, directory: string, maxIndexBytes = 2 ** 30): Promise<ScanResult> {
  const file = (name: string): string => path.join(directory, name);
  const request = {
    ...{ subject: 'layer', recordsPath: file('records'), gzipIndexPath: file('gzip'), chunkDigestsPath: file('digests') },
    ...{ inlineLimitBytes: 512, spanBytes: SPAN_BYTES, maxLayerBytes: 2 ** 40, maxIndexBytes },
  };
  await using scanner = new LayerScanner(request, new InlineHashes());
  for (let at = 0; at < packed.length; at += cut) {
    // The library keeps its address.
    const piece = Buffer.from(new SharedArrayBuffer(Math.min(cut, packed.length - at)));
    packed.copy(piece, 0, at);
    expect(await scanner.push(piece)).toBeUndefined();
  }
  return await scanner.end();
}

async function inDirectory<T>(work: (directory: string) => Promise<T>): Promise<T> {
  const directory = mkdtempSync(path.join(tmpdir(), 'obd-scan-'));
  try {
    return await work(directory);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

test('every span of every stream is what lies there', async () => {
  const inflater = new LibraryInflater();
  let spans = 0;
  await forTime(
    TIME_MS,
    fc.asyncProperty(content, settings, flushes, fc.constantFrom(7, 4096, 100_000, 1 << 30), (bytes, options, pieces, cut) =>
      inDirectory(async (directory) => {
        const tar = rawTar([{ name: 'f', content: bytes }]);
        const packed = await pack(tar, options, pieces);
        expect(await scan(packed, cut, directory)).toMatchObject({ digest: sha256(packed), diffId: sha256(tar) });
        const index = readFileSync(path.join(directory, 'gzip'));
        const header = parseGzipIndexHeader(index, { indexFileBytes: index.length, gzipFileBytes: packed.length }, 'layer');
        const entries = parseGzipEntries(index.subarray(header.tableOffsetBytes), header, 'layer');
        const { originalSizeBytes, isCompressed } = header;
        const target = { spanStarts: entries.plainOffset, plainBytes: tar.length };
        const digests = parseChunkDigests(readFileSync(path.join(directory, 'digests')), target, 'layer');
        for (let i = 0; i < entries.count; i += 1) {
          const span = gzipSpan({ entries, originalSizeBytes, isCompressed }, packed.length, i);
          const output = new Uint8Array(Buffer.allocUnsafeSlow(span.plainBytes).buffer);
          const stored = packed.subarray(span.storedOffset, span.storedOffset + span.storedBytes);
          const window = index.subarray(span.windowOffset, span.windowOffset + span.windowBytes);
          expect(inflateSpan(inflater, { bits: span.bits, isCompressed }, { stored, window }, output)).toBeUndefined();
          expect(tar.subarray(span.plainOffset, span.plainOffset + span.plainBytes).equals(output)).toBe(true);
          expect(wrongChunkOf(digestsOfSpan(digests, i), output)).toBeUndefined();
          spans += 1;
        }
      }),
    ),
    { isEnough: () => spans > 5 },
  );
}, 60_000);

test('a layer whose index would be larger than readers take is not indexed, small files that it would hold included', async () => {
  const tar = rawTar(Array.from({ length: 100 }, (_, i) => ({ name: `f${i}`, content: 'x'.repeat(500) })));
  const packed = await pack(tar, {}, [{ bytes: tar.length, kind: undefined }]);
  const scanned = (maxIndexBytes: number) => inDirectory((directory) => scan(packed, 1 << 30, directory, maxIndexBytes));
  expect(await scanned(30_000)).toMatchObject({ entries: 100 });
  expect(await scanned(20_000)).toEqual({ reason: expect.stringMatching(/its index would have some 25\d\d\d bytes, at most 20000/) });
});
