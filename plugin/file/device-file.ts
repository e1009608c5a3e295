/**
 * The one place where a device is put together from its description: which blobs it needs, opening them all, and the file that reads
 * the device. Opening yields plain tables over shared memory, so that one thread opens and every worker thread reads.
 *
 *   DeviceSpec ─ blobsOf ─► blobs ─ tryOpenDevice (repeat until nothing is missing) ─► DeviceTables ─ createDeviceFile ─► device
 */
import assert from 'node:assert';
import { AppError, isAppError } from '../base/errors.ts';
import { formatBytes, MIB, SECTOR_BYTES } from '../base/units.ts';
import type { GzipTables } from '../image/gzip/gzip-span.ts';
import { mergeLayers, stackSizeBytes, withSourceBase } from '../image/lsmt/overlay.ts';
import { isZeroed, lengthOf, type SegmentTable, shareSegments } from '../image/lsmt/segments.ts';
import { type ChunkDigests, parseChunkDigests } from '../image/turbo/chunk-digests.ts';
import type { BlockCodec, Codec } from '../image/zfile/codec.ts';
import type { BlobSource, DeviceSpec, LayerSpec } from './device-spec.ts';
import type { MissingRanges, RandomAccessFile } from './file.ts';
import { GzipFile } from './gzip-file.ts';
import {
  type ContentTables,
  createContentFile,
  type LayerIndex,
  openContent,
  openGzipIndex,
  openLayerIndex,
  readGzipEnd,
} from './open-layer.ts';
import { layOutTar, SpanFile, type SpanLayout } from './span-file.ts';
import { StackFile } from './stack-file.ts';
import { chunkDigestsBytes, shareChunkDigests } from './target-chunks.ts';

/**
 * Memory that the tables of one device may take: 200 GiB of image in 4 KiB blocks. Real images take a few MiB; a hostile stack of
 * full tables stops here.
 */
const MAX_DEVICE_TABLE_BYTES = 512 * MIB;

/** 128 GiB of tar in chunks of 64 KiB, and the header. */
const MAX_CHUNK_DIGESTS_BYTES = 64 * MIB + SECTOR_BYTES;

/** A file that segments map into. */
export type SourceTables =
  /** A layer file: LSMT inside its wrappers. */
  | { kind: 'layer'; content: ContentTables }
  /** The original tar of an index layer, as it is. */
  | ({ kind: 'tar'; blobIndex: number; digest: string } & Checked)
  /** The same inside gzip, with its index. */
  | GzipSource;

export interface GzipSource extends Checked {
  kind: 'gzip';
  blobIndex: number;
  digest: string;
  indexBlobIndex: number;
  gzip: GzipTables;
  /** Where inflated spans are kept: a further file behind the device's blobs, which who serves the device adds. Absent: in memory. */
  spans?: { blobIndex: number; layout: SpanLayout };
}

/** What our own indexes know of the original's data; `chunksDigest` is that of the list. */
interface Checked {
  chunks?: ChunkDigests;
  chunksDigest?: string;
}

/** All that reading a device needs beside its blobs. Structured-cloneable; the big tables are shared, not copied. */
export interface DeviceTables {
  deviceSizeBytes: number;
  /** `source` is an index into `sources`. */
  segments: SegmentTable;
  sources: SourceTables[];
}

/** What a range that an index layer maps past the end of its original means: bad input, or zeros as the reference has it. */
export type PastTarget = 'error' | 'zeros';

function blobsOfLayer(layer: LayerSpec): BlobSource[] {
  if (layer.kind === 'full') return [layer.blob];
  return [layer.meta, layer.gzipIndex, layer.chunkDigests, layer.target].filter((blob) => blob !== undefined);
}

/** The blobs of a device, each digest once, in order of first use. Their positions are the blob indexes of tables and errors. */
export function blobsOf(spec: DeviceSpec): BlobSource[] {
  const byDigest = new Map<string, BlobSource>();
  for (const layer of spec.layers) {
    for (const blob of blobsOfLayer(layer)) if (!byDigest.has(blob.digest)) byDigest.set(blob.digest, blob);
  }
  return [...byDigest.values()];
}

interface OpenedLayer {
  virtualSizeBytes: number;
  segments: SegmentTable;
  sources: SourceTables[];
}

/** Opens a device in rounds and remembers the layers that are done, so that a round costs only what is new. */
export class DeviceOpener {
  private readonly spec: DeviceSpec;
  private readonly blobFiles: readonly RandomAccessFile[];
  private readonly codec: BlockCodec;
  private readonly blobIndexes: ReadonlyMap<string, number>;
  private readonly opened: (OpenedLayer | undefined)[];
  private readonly pastTarget: PastTarget;

  /** `blobFiles` in the order of {@link blobsOf}. Throws FailedPrecondition when a file's size is not what the description says. */
  constructor(spec: DeviceSpec, blobFiles: readonly RandomAccessFile[], codec: BlockCodec, options: { pastTarget?: PastTarget } = {}) {
    const blobs = blobsOf(spec);
    assert(blobs.length === blobFiles.length, 'one file for each blob');
    blobs.forEach((blob, i) => {
      const found = blobFiles[i]!.sizeBytes;
      if (found === blob.sizeBytes) return;
      const what = `the file has ${found} bytes, the description says ${blob.sizeBytes}`;
      throw new AppError('FailedPrecondition', { op: 'open blob', subject: blob.digest, what, details: { blobIndex: i } });
    });
    this.spec = spec;
    this.blobFiles = blobFiles;
    this.codec = codec;
    this.pastTarget = options.pastTarget ?? 'error';
    this.blobIndexes = new Map(blobs.map((blob, i) => [blob.digest, i]));
    this.opened = spec.layers.map(() => undefined);
  }

  /**
   * Goes as far as local bytes allow, in all layers. Returns undefined when something was added to `missing`. Throws AppError with the
   * layer's digest as subject and `details` { layerIndex, blobIndex, field, offset … } on bad input.
   */
  tryOpen(missing: MissingRanges): DeviceTables | undefined {
    for (let i = 0; i < this.opened.length; i++) this.opened[i] ??= this.tryOpenLayer(i, missing);
    const layers = this.opened.filter((layer) => layer !== undefined);
    return layers.length === this.opened.length ? this.combine(layers) : undefined;
  }

  private tryOpenLayer(layerIndex: number, missing: MissingRanges): OpenedLayer | undefined {
    const layer = this.spec.layers[layerIndex]!;
    try {
      return layer.kind === 'full' ? this.openFull(layer.blob, missing) : this.openIndex(layer, missing);
    } catch (cause) {
      if (!isAppError(cause)) throw cause;
      const blobIndex = this.indexOf(layer.kind === 'full' ? layer.blob : layer.meta);
      throw new AppError(cause.code, {
        op: cause.op,
        subject: cause.subject,
        what: cause.message.slice(`${cause.op} ${cause.subject}: `.length),
        details: { blobIndex, ...cause.details, layerIndex },
        cause: cause.cause,
      });
    }
  }

  private indexOf(blob: BlobSource): number {
    return this.blobIndexes.get(blob.digest)!;
  }

  private openBlob(
    blob: BlobSource,
    kind: 'plain' | 'warp',
    missing: MissingRanges,
  ): { content: ContentTables; index: LayerIndex } | undefined {
    const blobIndex = this.indexOf(blob);
    const file = this.blobFiles[blobIndex]!;
    const content = openContent(file, blobIndex, blob.digest, missing);
    if (content === undefined) return undefined;
    const index = openLayerIndex(createContentFile(content, file, this.codec), kind, blob.digest, missing);
    return index === undefined ? undefined : { content, index };
  }

  private openFull(blob: BlobSource, missing: MissingRanges): OpenedLayer | undefined {
    const found = this.openBlob(blob, 'plain', missing);
    return found === undefined ? undefined : { ...found.index, sources: [{ kind: 'layer', content: found.content }] };
  }

  private openIndex(layer: LayerSpec & { kind: 'index' }, missing: MissingRanges): OpenedLayer | undefined {
    const meta = this.openBlob(layer.meta, 'warp', missing);
    const target = this.openTarget(layer, missing);
    if (meta === undefined || target === undefined) return undefined;
    if (this.pastTarget === 'error') {
      const sizeBytes = target.kind === 'gzip' ? target.gzip.originalSizeBytes : layer.target.sizeBytes;
      checkTargetRanges(meta.index.segments, sizeBytes, layer.meta.digest);
    }
    return { ...meta.index, sources: [{ kind: 'layer', content: meta.content }, target] };
  }

  private openTarget(layer: LayerSpec & { kind: 'index' }, missing: MissingRanges): SourceTables | undefined {
    const blobIndex = this.indexOf(layer.target);
    const { digest: targetDigest, sizeBytes } = layer.target;
    if (layer.gzipIndex === undefined) {
      const found = this.openChunks(layer, { spanStarts: [0], plainBytes: sizeBytes }, missing);
      return found === undefined ? undefined : { kind: 'tar', blobIndex, digest: targetDigest, ...found };
    }
    const indexBlobIndex = this.indexOf(layer.gzipIndex);
    const { digest } = layer.gzipIndex;
    const gzip = openGzipIndex(this.blobFiles[indexBlobIndex]!, layer.target.sizeBytes, digest, missing);
    const end = readGzipEnd(this.blobFiles[blobIndex]!, missing);
    if (gzip !== undefined && end !== undefined) checkGzipEnd(end, gzip.originalSizeBytes, layer.target.digest);
    if (gzip === undefined || end === undefined) return undefined;
    const { plainOffset, count } = gzip.entries;
    const found = this.openChunks(layer, { spanStarts: plainOffset.subarray(0, count), plainBytes: gzip.originalSizeBytes }, missing);
    return found === undefined ? undefined : { kind: 'gzip', blobIndex, digest: targetDigest, indexBlobIndex, gzip, ...found };
  }

  /** The digests of the target's chunks, if the layer has any. */
  private openChunks(
    layer: LayerSpec & { kind: 'index' },
    target: { spanStarts: ArrayLike<number>; plainBytes: number },
    missing: MissingRanges,
  ): Checked | undefined {
    if (layer.chunkDigests === undefined) return {};
    const { digest, sizeBytes } = layer.chunkDigests;
    if (sizeBytes > MAX_CHUNK_DIGESTS_BYTES) {
      const what = `${formatBytes(sizeBytes)}, at most ${formatBytes(MAX_CHUNK_DIGESTS_BYTES)}`;
      throw new AppError('ResourceExhausted', {
        op: 'open chunk digests',
        subject: digest,
        what,
        details: { limit: MAX_CHUNK_DIGESTS_BYTES },
      });
    }
    const bytes = Buffer.allocUnsafeSlow(sizeBytes);
    if (!this.blobFiles[this.indexOf(layer.chunkDigests)]!.readSync(0, sizeBytes, bytes, 0, missing)) return undefined;
    return { chunks: shareChunkDigests(parseChunkDigests(bytes, target, digest)), chunksDigest: digest };
  }

  private combine(layers: readonly OpenedLayer[]): DeviceTables {
    const sources = layers.flatMap((layer) => layer.sources);
    checkTableBytes(sources, this.spec.id);
    let base = 0;
    const tables = layers.map((layer) => {
      const table = withSourceBase(layer.segments, base);
      base += layer.sources.length;
      return table;
    });
    return {
      deviceSizeBytes: stackSizeBytes(layers.map((layer) => layer.virtualSizeBytes)),
      segments: shareSegments(mergeLayers(tables, this.spec.id)),
      sources,
    };
  }
}

/** Segments of an index layer whose `source` is this map into the original tar. */
const FROM_TARGET = 1;

/** An index that points outside its tar is not the index of this tar, and zeros would be silent data. Tars are whole sectors. */
function checkTargetRanges(segments: SegmentTable, targetBytes: number, subject: string): void {
  const endSector = Math.ceil(targetBytes / SECTOR_BYTES);
  for (let i = 0; i < segments.count; i++) {
    if (segments.source[i] !== FROM_TARGET || isZeroed(segments, i)) continue;
    const segmentEnd = segments.moffset[i]! + lengthOf(segments, i);
    if (segmentEnd <= endSector) continue;
    const what = `it maps into sectors up to ${segmentEnd} of an original layer of ${endSector} sectors`;
    throw new AppError('DataLoss', { op: 'open index layer', subject, what, details: { limit: endSector } });
  }
}

/**
 * The last member of a gzip file ends with the size of what it holds. It is another one when the file has more than one member, or
 * garbage at its end: an index covers the first member alone.
 */
function checkGzipEnd(size: number, originalSizeBytes: number, subject: string): void {
  if (size === originalSizeBytes % 2 ** 32) return;
  const what = `it ends as a gzip member of ${size} bytes (modulo 2^32), its index says ${originalSizeBytes}: several members, or trailing garbage`;
  throw new AppError('DataLoss', { op: 'open gzip layer', subject, what });
}

function checkTableBytes(sources: readonly SourceTables[], subject: string): void {
  let total = 0;
  for (const source of sources) {
    const jumpTable = source.kind === 'layer' ? source.content.zfile?.jumpTable : undefined;
    if (jumpTable !== undefined) total += jumpTable.bases.byteLength + jumpTable.sizes.byteLength;
    if (source.kind !== 'layer') total += chunkDigestsBytes(source.chunks);
    if (source.kind === 'gzip') total += source.gzip.entries.plainOffset.buffer.byteLength;
  }
  if (total <= MAX_DEVICE_TABLE_BYTES) return;
  const what = `tables of ${formatBytes(total)}, at most ${formatBytes(MAX_DEVICE_TABLE_BYTES)}`;
  throw new AppError('ResourceExhausted', { op: 'open device', subject, what, details: { limit: MAX_DEVICE_TABLE_BYTES } });
}

/** One round of opening without memory of earlier rounds; see {@link DeviceOpener}, which callers that repeat should keep. */
export function tryOpenDevice(
  spec: DeviceSpec,
  blobFiles: readonly RandomAccessFile[],
  codec: BlockCodec,
  missing: MissingRanges,
  options: { pastTarget?: PastTarget } = {},
): DeviceTables | undefined {
  return new DeviceOpener(spec, blobFiles, codec, options).tryOpen(missing);
}

/**
 * The device as a file, for one thread. Reads throw DataLoss with `details` { blobIndex, blobId (the same), offset, length } of the
 * stored range when a block is corrupt.
 */
export function createDeviceFile(tables: DeviceTables, blobFiles: readonly RandomAccessFile[], codec: Codec): RandomAccessFile {
  const files = tables.sources.map((source): RandomAccessFile => {
    if (source.kind === 'layer') return createContentFile(source.content, blobFiles[source.content.blobIndex]!, codec);
    const target = blobFiles[source.blobIndex]!;
    if (source.kind === 'tar') {
      const { chunks, digest, blobIndex } = source;
      return chunks === undefined
        ? target
        : new SpanFile(target, layOutTar(target.sizeBytes), chunks, { subject: digest, blobId: blobIndex });
    }
    if (source.spans !== undefined) {
      const { blobIndex, layout } = source.spans;
      return new SpanFile(blobFiles[blobIndex]!, layout, source.chunks, { subject: source.digest, blobId: blobIndex });
    }
    const origin = { subject: source.digest, blobId: source.blobIndex, indexBlobId: source.indexBlobIndex };
    return new GzipFile(target, blobFiles[source.indexBlobIndex]!, source.gzip, codec, origin, source.chunks);
  });
  return new StackFile(tables.segments, files, tables.deviceSizeBytes);
}
