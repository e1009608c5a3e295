/**
 * One device as the main thread holds it: its blobs, its tables, and the file that reads it. Opening fetches the headers and indexes of
 * all layers, in as few rounds as the formats allow.
 */
import type { Clock } from '../base/clock.ts';
import { AppError, isAppError } from '../base/errors.ts';
import { FETCH_UNIT_BYTES } from '../base/limits.ts';
import type { Logger } from '../base/log.ts';
import { blobsOf, createDeviceFile, DeviceOpener, type DeviceTables, type SourceTables } from '../file/device-file.ts';
import type { DeviceSpec } from '../file/device-spec.ts';
import { MissingList, type MissingRanges, type RandomAccessFile } from '../file/file.ts';
import type { SharedBlob } from '../file/store/blob-file.ts';
import type { BlobHandle } from '../file/store/blob-handle.ts';
import type { ChunkStore } from '../file/store/chunk-store.ts';
import type { Codec } from '../image/zfile/codec.ts';
import type { ChunkVerifier } from './chunk-verifier.ts';
import { type BlobRange, fetchRanges } from './fetch/fetch-ranges.ts';
import type { FetchScheduler } from './fetch/fetch-scheduler.ts';
import { runsOf } from './fetch/unit-runs.ts';
import { fetchAndVerify } from './fills.ts';
import { LogLimiter } from './log-limiter.ts';
import type { SpanMaker } from './spans/span-maker.ts';
import type { SpanSource } from './spans/span-source.ts';

/** Wrapper, header, trailer, tables, and a few rounds for each dependency between them; more means that a format loops. */
const MAX_OPEN_ROUNDS = 64;

export interface DeviceParts {
  store: ChunkStore;
  scheduler: FetchScheduler;
  codec: Codec;
  chunks: ChunkVerifier;
  spans: SpanMaker;
  clock: Clock;
  log: Logger;
  logLinesPerMinute: number;
  /** What must be proven before bytes of a blob without a chunk list are served. */
  verify: 'transport' | 'full-layer-first';
}

export class OpenDevice {
  readonly instance: string;
  readonly spec: DeviceSpec;
  readonly tables: DeviceTables;
  readonly file: RandomAccessFile;
  /** Of the blobs that its description names. */
  readonly handles: readonly BlobHandle[];
  /** Gzip layers, whose inflated spans are blobs behind those of `handles`. */
  private readonly spans: readonly SpanSource[];
  /** Reads that wait for bytes, those that waited for a second or longer, and those that ended in an error. */
  waiting = 0;
  stalls = 0;
  failures = 0;
  misses = 0;
  /** Lines about this device. */
  readonly log: LogLimiter;
  private readonly parts: DeviceParts;
  private readonly closing: AbortController;

  private constructor(instance: string, spec: DeviceSpec, opened: Opened, parts: DeviceParts) {
    this.instance = instance;
    this.spec = spec;
    this.tables = opened.tables;
    this.handles = opened.handles;
    this.spans = opened.spans;
    this.closing = opened.closing;
    this.parts = parts;
    this.log = new LogLimiter(parts.log, parts.clock, parts.logLinesPerMinute);
    this.file = createDeviceFile(
      this.tables,
      this.allHandles().map((handle) => handle.file()),
      parts.codec,
    );
  }

  /**
   * Opens every layer; with `verify` "full-layer-first" each blob is fetched as a whole and checked before. Rejects with the layer's digest in the error: InvalidArgument or DataLoss for bad layers, Unavailable and the like
   * when the registry does not answer within `signal`. Nothing stays referenced then.
   */
  static async open(instance: string, spec: DeviceSpec, parts: DeviceParts, signal: AbortSignal): Promise<OpenDevice> {
    const handles: BlobHandle[] = [];
    const closing = new AbortController();
    try {
      for (const source of blobsOf(spec)) handles.push(await parts.store.acquire(source));
      if (parts.verify === 'full-layer-first') {
        const unchecked = uncheckedBlobs(spec);
        for (const handle of handles) if (unchecked.has(handle.source.digest)) await fetchAndVerify(parts, handle, signal);
      }
      for (const handle of handles) await parts.chunks.load(handle, parts, signal);
      const files = handles.map((handle) => new TouchedFile(handle.file()));
      let opener = new DeviceOpener(spec, files, parts.codec);
      const repaired = new Set<unknown>();
      for (let round = 0; round < MAX_OPEN_ROUNDS + repaired.size; round += 1) {
        signal.throwIfAborted();
        const missing = new MissingList();
        try {
          const tables = opener.tryOpen(missing);
          if (tables !== undefined) {
            const opened = { handles, closing, ...(await addSpans(tables, handles, closing.signal, parts.spans)) };
            return new OpenDevice(instance, spec, opened, parts);
          }
        } catch (error) {
          if (!isAppError(error, 'DataLoss') || repaired.has(error.details.layerIndex)) throw error;
          repaired.add(error.details.layerIndex);
          await repairLayer(error, { scheduler: parts.scheduler, spec, handles, files, signal });
          opener = new DeviceOpener(spec, files, parts.codec);
          continue;
        }
        await fetchRanges(parts.scheduler, handles, missing.ranges, signal);
      }
      throw new AppError('DataLoss', {
        op: 'open device',
        subject: spec.image,
        what: `still missing bytes after ${MAX_OPEN_ROUNDS} rounds`,
      });
    } catch (error) {
      for (const handle of handles) handle.release();
      throw error;
    }
  }

  /** Aborted when nobody reads any more. */
  get closed(): AbortSignal {
    return this.closing.signal;
  }

  get sizeBytes(): number {
    return this.tables.deviceSizeBytes;
  }

  sharedBlobs(): SharedBlob[] {
    return this.allHandles().map((handle) => handle.shared());
  }

  /** As tables number them. */
  private allHandles(): BlobHandle[] {
    return [...this.handles, ...this.spans.map((source) => source.kept)];
  }

  /** Makes ranges of this device's blobs local, before everything that is not a read. */
  async fetch(ranges: readonly BlobRange[], signal: AbortSignal): Promise<void> {
    const spansOf = new Map(this.spans.map((source) => [source.kept.blobId, source]));
    const { spans, scheduler } = this.parts;
    const stored = ranges.filter((range) => !spansOf.has(range.blobId));
    const inflated = Map.groupBy(
      ranges.filter((range) => spansOf.has(range.blobId)),
      (range) => range.blobId,
    );
    await Promise.all([
      fetchRanges(scheduler, this.handles, stored, signal),
      ...[...inflated].map(([blobId, wanted]) => spans.ensure(spansOf.get(blobId)!, wanted, signal)),
    ]);
  }

  /** A reader came to the marked unit of a read-ahead window. */
  readAhead(blobId: number, offsetBytes: number): void {
    const handle = this.handles.find((candidate) => candidate.blobId === blobId);
    if (handle !== undefined) this.parts.scheduler.readAhead(handle, offsetBytes);
  }

  /**
   * Fetches again the stored bytes that an error of a read names, from another mirror if there is one. Rejects with the error itself when
   * it names no range, and with DataLoss when the bytes were wrong before.
   */
  async repair(error: AppError, signal: AbortSignal): Promise<void> {
    const { blobIndex, blobId, offset, length } = error.details;
    // Formats name the blob by its place in the device; the store, whose disk failed, by its own number.
    const handles = this.allHandles();
    const handle = typeof blobIndex === 'number' ? handles[blobIndex] : handles.find((each) => each.blobId === blobId);
    if (handle === undefined || typeof offset !== 'number') throw error;
    const lengthBytes = Math.min(typeof length === 'number' ? length : 1, handle.sizeBytes - offset);
    if (this.spans.some((source) => source.kept === handle)) {
      // Made again from the stored bytes, which are checked then.
      await this.parts.store.drop(handle, offset, lengthBytes);
      return;
    }
    // A blob that was whole needed no list until now.
    await this.parts.chunks.load(handle, this.parts, signal, { isDamaged: true });
    await this.parts.scheduler.repair(handle, offset, lengthBytes, signal);
  }

  /** Lets the fetches of this device end and gives its blobs back; only when no thread reads it any more. */
  close(): void {
    this.closing.abort(new AppError('Canceled', { op: 'read', subject: this.instance, what: 'the device was released' }));
    for (const source of this.spans) this.parts.spans.close(source);
    for (const handle of this.handles) handle.release();
  }
}

interface Opened {
  tables: DeviceTables;
  handles: readonly BlobHandle[];
  spans: readonly SpanSource[];
  closing: AbortController;
}

/** Gives every gzip layer of the tables a blob for its spans. Nothing stays referenced after a failure. */
async function addSpans(
  tables: DeviceTables,
  handles: readonly BlobHandle[],
  closed: AbortSignal,
  maker: SpanMaker,
): Promise<{ tables: DeviceTables; spans: SpanSource[] }> {
  const spans: SpanSource[] = [];
  const sources: SourceTables[] = [];
  try {
    for (const source of tables.sources) {
      if (source.kind !== 'gzip') {
        sources.push(source);
        continue;
      }
      const opened = await maker.open(source, handles, closed);
      sources.push({ ...source, spans: { blobIndex: handles.length + spans.length, layout: opened.layout } });
      spans.push(opened);
    }
    return { tables: { ...tables, sources }, spans };
  } catch (error) {
    for (const opened of spans) maker.close(opened);
    throw error;
  }
}

/** Blobs whose bytes nothing but their own digest proves: no list of chunk digests in the blob, nor in the index of an original layer. */
function uncheckedBlobs(spec: DeviceSpec): Set<string> {
  const unchecked = new Set<string>();
  for (const layer of spec.layers) {
    const blobs = layer.kind === 'full' ? [layer.blob] : [layer.meta, layer.gzipIndex, layer.chunkDigests];
    if (layer.kind === 'index' && layer.chunkDigests === undefined) blobs.push(layer.target);
    for (const blob of blobs) if (blob !== undefined && blob.chunkList === undefined) unchecked.add(blob.digest);
  }
  return unchecked;
}

/** A blob's file that remembers which units were looked at. */
class TouchedFile implements RandomAccessFile {
  readonly sizeBytes: number;
  readonly units = new Set<number>();
  private readonly file: RandomAccessFile;

  constructor(file: RandomAccessFile) {
    this.file = file;
    this.sizeBytes = file.sizeBytes;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    const end = Math.ceil((offsetBytes + lengthBytes) / FETCH_UNIT_BYTES);
    for (let unit = Math.floor(offsetBytes / FETCH_UNIT_BYTES); unit < end; unit += 1) this.units.add(unit);
    return this.file.readSync(offsetBytes, lengthBytes, target, targetOffset, missing);
  }
}

/** Fetches again what was read of a layer that makes no sense: it may have come wrong, or have gone bad on the disk. */
async function repairLayer(
  error: AppError,
  parts: {
    scheduler: FetchScheduler;
    spec: DeviceSpec;
    handles: readonly BlobHandle[];
    files: readonly TouchedFile[];
    signal: AbortSignal;
  },
): Promise<void> {
  const { scheduler, spec, handles, files, signal } = parts;
  const { layerIndex } = error.details;
  const layer = typeof layerIndex === 'number' ? spec.layers[layerIndex] : undefined;
  if (layer === undefined) throw error;
  const blobs = layer.kind === 'full' ? [layer.blob] : [layer.meta, layer.target, layer.gzipIndex];
  for (const [i, handle] of handles.entries()) {
    if (!blobs.some((blob) => blob?.digest === handle.source.digest)) continue;
    for (const [firstUnit, endUnit] of runsOf(files[i]!.units)) {
      const offsetBytes = firstUnit * FETCH_UNIT_BYTES;
      const lengthBytes = Math.min(endUnit * FETCH_UNIT_BYTES, handle.sizeBytes) - offsetBytes;
      await scheduler.repair(handle, offsetBytes, lengthBytes, signal);
    }
  }
}
