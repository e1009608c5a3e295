/**
 * Proves that our writers produce the reference's bytes where the format is deterministic: writable pairs, sealing, commits, warp
 * commits, flattening, ZFiles with LZ4 and zstd, tar wrappers, traces. Where bytes may differ, the difference is stated in the test.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { commitSegments } from '../../../../plugin/file/commit-segments.ts';
import { MemoryFile } from '../../../../plugin/file/file.ts';
import { LayerBlobWriter } from '../../../../plugin/file/layer-blob-writer.ts';
import { CommittedLayerWriter } from '../../../../plugin/image/lsmt/committed-writer.ts';
import { LSMT_BLOCK_BYTES, parseLsmtHeader, parseLsmtTrailer } from '../../../../plugin/image/lsmt/header.ts';
import { parseLayerIndex } from '../../../../plugin/image/lsmt/layer-index.ts';
import { AppendLayerWriter, parseRwDataHeader, parseRwIndex, sealTail } from '../../../../plugin/image/lsmt/rw-layer.ts';
import { segmentsOf } from '../../../../plugin/image/lsmt/segments.ts';
import { encodePlainHead, encodeTail } from '../../../../plugin/image/overlaybd-tar/wrapper.ts';
import { encodePriorityList, encodeTrace, parsePrefetch, parseTrace } from '../../../../plugin/image/turbo/trace.ts';
import { ALGORITHM, type Algorithm } from '../../../../plugin/image/zfile/codec.ts';
import { ZFileWriter } from '../../../../plugin/image/zfile/writer.ts';
import { loadCodec } from '../../../../plugin/kernel/codecs.ts';
import { contentFile, memoryDevice, openMemoryDevice, readWhole } from '../../../support/devices.ts';
import { filler } from '../../../support/filler.ts';
import { fixtureFile, fixtureManifest, fixtureNames, readFixture } from '../../../support/fixtures.ts';

const scratch = mkdtempSync(join(tmpdir(), 'obd-writers-'));
afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** Runs the operations that made a fixture through our writable-layer writer. */
function runOperations(operations: readonly string[], userTag?: Uint8Array): { data: Buffer; index: Buffer } {
  let writer: AppendLayerWriter | undefined;
  const data: Uint8Array[] = [];
  const index: Uint8Array[] = [];
  for (const operation of operations) {
    const [verb, ...args] = operation.split(' ');
    if (verb === 'create') {
      const parentUuid = args[3] === '-' ? undefined : args[3];
      writer = new AppendLayerWriter({ virtualSizeBytes: Number(args[1]), uuid: args[2], parentUuid, userTag });
      data.push(writer.dataHeader());
      index.push(writer.indexHeader());
    } else if (verb === 'write') {
      const [offset, length, seed] = args.map(Number) as [number, number, number];
      index.push(writer!.write(offset, length));
      data.push(filler(offset, length, seed));
    } else if (verb === 'discard') {
      index.push(writer!.discard(Number(args[0]), Number(args[1])));
    }
  }
  return { data: Buffer.concat(data), index: Buffer.concat(index) };
}

/** Commits a writable pair as the reference does: identity from the data file's header. */
function commit(data: Buffer, index: Buffer, tag?: string): Buffer {
  const header = parseRwDataHeader(data.subarray(0, LSMT_BLOCK_BYTES), 'data');
  const live = parseRwIndex(index, data.length, 'index');
  const userTag = tag === undefined ? undefined : Buffer.from(tag);
  const writer = new CommittedLayerWriter({ ...header, userTag });
  return Buffer.concat([...commitSegments(live, [new MemoryFile(data)], writer, () => 0)]);
}

describe('lsmt writers', () => {
  test.each(['a', 'b'])('writable pair %s: equal to the reference, data and index', (name) => {
    const { data, index } = runOperations(fixtureManifest().synth_operations[name]!);
    expect(data.equals(readFixture(`synth/${name}.rw.data`))).toBe(true);
    expect(index.equals(readFixture(`synth/${name}.rw.index`))).toBe(true);
  });

  test.each([
    ['a', 'a commit message'],
    ['b', undefined],
  ])('committed %s from its writable pair: equal', (name, tag) => {
    const bytes = commit(readFixture(`synth/${name}.rw.data`), readFixture(`synth/${name}.rw.index`), tag);
    expect(bytes.equals(readFixture(`synth/${name}.lsmt`))).toBe(true);
  });

  test.each(['c', 'd', 'e'])('committed %s from its operations: equal', (name) => {
    const { data, index } = runOperations(fixtureManifest().synth_operations[name]!);
    expect(commit(data, index).equals(readFixture(`synth/${name}.lsmt`))).toBe(true);
  });

  test('an index whose last group is filled with padding gives the same mappings', () => {
    const data = readFixture('synth/a.rw.data');
    const plain = parseRwIndex(readFixture('synth/a.rw.index'), data.length, 'index');
    const grouped = parseRwIndex(readFixture('synth/a.rw-groupcommit.index'), data.length, 'index');
    expect([...segmentsOf(grouped)]).toEqual([...segmentsOf(plain)]);
  });

  test('a partial record at the end of the index is ignored', () => {
    const data = readFixture('synth/a.rw.data');
    const index = readFixture('synth/a.rw.index');
    const whole = parseRwIndex(index, data.length, 'index');
    expect([...segmentsOf(parseRwIndex(Buffer.concat([index, Buffer.alloc(9, 7)]), data.length, 'index'))]).toEqual([...segmentsOf(whole)]);
  });

  test('sealing: equal but for the bytes between index and trailer, which the format leaves open', () => {
    const data = readFixture('synth/a.rw.data');
    const header = parseRwDataHeader(data.subarray(0, LSMT_BLOCK_BYTES), 'data');
    const live = parseRwIndex(readFixture('synth/a.rw.index'), data.length, 'index');
    const sealed = Buffer.concat([data, sealTail(header, live, data.length)]);
    const wanted = readFixture('synth/a.sealed');
    expect(sealed.length).toBe(wanted.length);
    const indexEnd = data.length + live.count * 16;
    const trailerAt = wanted.length - LSMT_BLOCK_BYTES;
    expect(sealed.subarray(0, indexEnd).equals(wanted.subarray(0, indexEnd))).toBe(true);
    expect(sealed.subarray(trailerAt).equals(wanted.subarray(trailerAt))).toBe(true);
  });

  test('commit of a sealed layer: equal', () => {
    const { tables, files } = openMemoryDevice(memoryDevice([readFixture('synth/a.sealed')]));
    const header = parseLsmtHeader(readFixture('synth/a.sealed'), 'sealed');
    const identity = { virtualSizeBytes: header.virtualSizeBytes, parentUuid: header.parentUuid };
    const bytes = Buffer.concat([...commitSegments(tables.segments, files, new CommittedLayerWriter(identity), () => 0)]);
    expect(bytes.equals(readFixture('synth/a.sealed.committed'))).toBe(true);
  });

  test.each(['synth/warp.lsmt', 'turbo/tar/l2.ext4.fs.meta.lsmt', 'turbo/tar/l3.ext4.fs.meta.lsmt'])('warp commit %s: equal', (name) => {
    const wanted = readFixture(name);
    const trailer = parseLsmtTrailer(wanted.subarray(wanted.length - LSMT_BLOCK_BYTES), wanted.length, name);
    const index = wanted.subarray(trailer.indexOffsetBytes, trailer.indexOffsetBytes + trailer.indexCount * 16);
    const table = parseLayerIndex(index, { trailer, kind: 'warp', subject: name });
    const writer = new CommittedLayerWriter(trailer, 'warp');
    const chunks = [writer.header()];
    for (const segment of segmentsOf(table)) {
      if (segment.source === 1) {
        writer.addRemote(segment.lbaSectors, segment.lengthSectors, segment.moffsetSectors);
        continue;
      }
      writer.addData(segment.lbaSectors, segment.lengthSectors);
      chunks.push(wanted.subarray(segment.moffsetSectors * 512, (segment.moffsetSectors + segment.lengthSectors) * 512));
    }
    chunks.push(writer.finish());
    expect(Buffer.concat(chunks).equals(wanted)).toBe(true);
  });

  test('flattening three layers: equal, tags included', () => {
    const layers = [1, 2, 3].map((n) => readFixture(`lsmt/l${n}.lsmt`));
    const { tables, files } = openMemoryDevice(memoryDevice(layers));
    const identity = {
      virtualSizeBytes: parseLsmtHeader(layers[2]!, 'top').virtualSizeBytes,
      parentUuid: parseLsmtHeader(layers[0]!, 'bottom').parentUuid,
    };
    const bytes = Buffer.concat([...commitSegments(tables.segments, files, new CommittedLayerWriter(identity), (source) => 2 - source)]);
    expect(bytes.equals(readWhole(contentFile(readFixture('merge/l1+l2+l3.merged.zfile'))))).toBe(true);
  });
});

describe('merged segments', () => {
  test.each(['synth:a+b', 'synth:a+b+c'])('%s: one for one what the reference merges', (key) => {
    const names = key.slice('synth:'.length).split('+');
    const { tables } = openMemoryDevice(memoryDevice(names.map((name) => readFixture(`synth/${name}.lsmt`))));
    const lines = [...segmentsOf(tables.segments)].map(
      (s) => `${s.lbaSectors} ${s.lengthSectors} ${s.moffsetSectors} ${s.isZeroed ? 1 : 0} ${names.length - 1 - s.source}`,
    );
    expect(lines).toEqual(fixtureManifest().devices[key]!.merged_segments_as_upstream!.slice(1));
  });

  test.each(['a', 'b', 'c', 'd', 'e', 'f'])('synth/%s.lsmt loads as in the reference', (name) => {
    const { tables } = openMemoryDevice(memoryDevice([readFixture(`synth/${name}.lsmt`)]));
    const lines = [...segmentsOf(tables.segments)].map(
      (s) => `${s.lbaSectors} ${s.lengthSectors} ${s.moffsetSectors} ${s.isZeroed ? 1 : 0} 0`,
    );
    expect(lines).toEqual(fixtureFile(`synth/${name}.lsmt`).segments_as_upstream_loads_them!.slice(1));
  });
});

/** `lz4-16k` → parameters. */
function parametersOf(form: string): { algorithm: Algorithm; blockSizeBytes: number } {
  const [algorithm, size] = form.split('-') as ['lz4' | 'zstd', string];
  return { algorithm: ALGORITHM[algorithm], blockSizeBytes: Number.parseInt(size, 10) * 1024 };
}

function compress(input: Uint8Array, form: string, chunkBytes: number): { bytes: Buffer; finalHeader: Uint8Array } {
  const writer = new ZFileWriter(parametersOf(form), loadCodec());
  const chunks: Uint8Array[] = [writer.header()];
  for (let at = 0; at < input.length; at += chunkBytes) chunks.push(writer.write(input.subarray(at, at + chunkBytes)));
  const end = writer.finish();
  chunks.push(end.bytes);
  return { bytes: Buffer.concat(chunks), finalHeader: end.finalHeader };
}

const SYNTH_INPUTS: Record<string, () => Uint8Array> = {
  mixed: () => readFixture('zfile-synth/mixed.in'),
  random64k: () => readFixture('zfile-synth/random64k.in'),
  zeros: () => Buffer.alloc(65536),
  empty: () => Buffer.alloc(0),
};

describe('zfile writer', () => {
  const synth = fixtureNames('zfile-synth/').filter((name) => name.endsWith('.zfile'));

  test.each(synth)('%s reads to its input', (name) => {
    const content = readWhole(contentFile(readFixture(name)));
    expect(sha256(content)).toBe(`sha256:${fixtureFile(name).original_sha256}`);
  });

  test.each(synth)('%s written by us: equal', (name) => {
    const [input, form] = name.slice('zfile-synth/'.length).split('.') as [string, string];
    const plain = SYNTH_INPUTS[input]?.() ?? readWhole(contentFile(readFixture(name)));
    for (const chunkBytes of [1000, 4096, 1 << 20]) {
      expect(compress(plain, form, chunkBytes).bytes.equals(readFixture(name))).toBe(true);
    }
  });

  test.each(fixtureNames('zfile/'))('%s: content equals the uncompressed layer', (name) => {
    const plain = readFixture(fixtureFile(name).decompresses_to!);
    expect(Buffer.from(readWhole(contentFile(readFixture(name)))).equals(plain)).toBe(true);
  });

  test.each(fixtureNames('zfile/').filter((name) => name.includes('lz4')))('%s written by us: equal, header overwritten', (name) => {
    const { bytes, finalHeader } = compress(readFixture(fixtureFile(name).decompresses_to!), name.split('.')[1]!, 1 << 16);
    bytes.set(finalHeader, 0);
    expect(bytes.equals(readFixture(name))).toBe(true);
  });

  test.each(fixtureNames('zfile/').filter((name) => name.includes('zstd')))(
    '%s written by us: reads back, in both header forms; zstd bytes depend on the library build and are not compared',
    (name) => {
      const plain = readFixture(fixtureFile(name).decompresses_to!);
      const { bytes, finalHeader } = compress(plain, name.split('.')[1]!, 1 << 16);
      expect(Buffer.from(readWhole(contentFile(bytes))).equals(plain)).toBe(true);
      bytes.set(finalHeader, 0);
      expect(Buffer.from(readWhole(contentFile(bytes))).equals(plain)).toBe(true);
    },
  );
});

describe('tar wrapper', () => {
  test.each(fixtureNames('blob/'))('%s written by us from the uncompressed layer: equal (lz4), reads back (zstd)', async (name) => {
    const form = { compression: parametersOf(name.split('.')[1]!), wrapper: 'pax' as const };
    const path = join(scratch, 'blob');
    await using writer = await LayerBlobWriter.create(path, form, loadCodec());
    const plain = readFixture(fixtureFile(name).decompresses_to!);
    for (let at = 0; at < plain.length; at += 100_000) await writer.write(plain.subarray(at, at + 100_000));
    const written = await writer.finish();
    const bytes = readFileSync(path);
    expect(written).toEqual({ digest: sha256(bytes), sizeBytes: bytes.length });
    expect(Buffer.from(readWhole(contentFile(bytes))).equals(plain)).toBe(true);
    if (form.compression.algorithm === ALGORITHM.lz4) expect(bytes.equals(readFixture(name))).toBe(true);
  });

  test('plain form reads back', () => {
    const payload = readFixture('hostile/zfile/good.zfile');
    const bytes = Buffer.concat([encodePlainHead(payload.length), payload, encodeTail(payload.length)]);
    expect(bytes.length % 512).toBe(0);
    expect(readWhole(contentFile(bytes))).toEqual(readWhole(contentFile(payload)));
  });

  test('acceleration layer: equal', () => {
    const trace = readFixture('trace/trace');
    const bytes = Buffer.concat([encodePlainHead(trace.length, 'trace'), trace, encodeTail(trace.length)]);
    expect(bytes.equals(readFixture('trace/acceleration-layer.tar'))).toBe(true);
  });
});

describe('traces', () => {
  test('the recorded trace reads to its records, and ours reads back', () => {
    const entry = fixtureFile('trace/trace') as unknown as { records: { layer: number; count: number; offset: number }[] };
    const ranges = parseTrace(readFixture('trace/trace'), 'trace');
    expect(ranges).toEqual(entry.records.map((r) => ({ layerIndex: r.layer, offsetBytes: r.offset, lengthBytes: r.count })));
    expect(parseTrace(encodeTrace(ranges), 'ours')).toEqual(ranges);
  });

  test('the priority list reads to its paths, and ours is equal', () => {
    const list = parsePrefetch(readFixture('trace/priority-list.txt'), 'list');
    expect(list).toEqual({ kind: 'list', paths: ['/etc/app/conf', '/data/', '/bin/ping'] });
    expect(
      Buffer.from(encodePriorityList(['/etc/app/conf', '/data/', 'no good', '/bin/ping'])).equals(readFixture('trace/priority-list.txt')),
    ).toBe(true);
  });
});
