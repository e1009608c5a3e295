import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { writeLayerBlob } from '../../../../plugin/file/layer-blob-writer.ts';
import { ALGORITHM } from '../../../../plugin/image/zfile/codec.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { memoryDevice, openMemoryDevice, readWhole } from '../../../support/devices.ts';
import { filler } from '../../../support/filler.ts';

const directory = mkdtempSync(join(tmpdir(), 'obd-blob-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const codec = loadCodec();

describe('writeLayerBlob', () => {
  test('sparse segments come back as the device, from both algorithms and with and without wrapper', async () => {
    const virtualSizeBytes = 1024 * 1024;
    const segments = [
      { offsetBytes: 512, bytes: filler(512, 1024, 1) },
      { offsetBytes: 1536, bytes: filler(1536, 100_352, 2) },
      { offsetBytes: 524_288, bytes: filler(524_288, 4096, 3) },
      { offsetBytes: virtualSizeBytes - 512, bytes: filler(virtualSizeBytes - 512, 512, 4) },
    ];
    const wanted = Buffer.alloc(virtualSizeBytes);
    for (const { offsetBytes, bytes } of segments) wanted.set(bytes, offsetBytes);
    for (const algorithm of [ALGORITHM.lz4, ALGORITHM.zstd]) {
      for (const wrapper of ['pax', 'none'] as const) {
        const path = join(directory, 'blob');
        const form = { compression: { algorithm, blockSizeBytes: 16384 }, wrapper };
        const written = await writeLayerBlob(path, segments, { identity: { virtualSizeBytes }, form, codec });
        const bytes = readFileSync(path);
        expect(written).toEqual({ digest: sha256(bytes), sizeBytes: bytes.length });
        const { tables, file } = openMemoryDevice(memoryDevice([bytes]));
        expect(tables.deviceSizeBytes).toBe(virtualSizeBytes);
        expect(Buffer.from(readWhole(file)).equals(wanted)).toBe(true);
      }
    }
  });

  test('segments out of order, overlapping or not in sectors are refused', async () => {
    const form = { compression: { algorithm: ALGORITHM.lz4, blockSizeBytes: 4096 }, wrapper: 'pax' as const };
    const write = (segments: { offsetBytes: number; bytes: Uint8Array }[]) =>
      writeLayerBlob(join(directory, 'bad'), segments, { identity: { virtualSizeBytes: 1 << 20 }, form, codec });
    const sector = new Uint8Array(512);
    await expect(write([{ offsetBytes: 100, bytes: sector }])).rejects.toMatchObject({ code: 'InvalidArgument' });
    await expect(write([{ offsetBytes: 0, bytes: new Uint8Array(100) }])).rejects.toMatchObject({ code: 'InvalidArgument' });
    const twice = [
      { offsetBytes: 512, bytes: sector },
      { offsetBytes: 512, bytes: sector },
    ];
    await expect(write(twice)).rejects.toMatchObject({ code: 'InvalidArgument' });
  });
});
