/**
 * Makes spans of gzip layers readable: fetches what they are stored as, has a thread inflate and check them, and keeps them in the store.
 *
 *   a read misses units of the spans' blob ─► ensure(source, ranges, signal) ─► read again
 *
 * Each span is inflated once a node, not once a reader. What is on disk is found again after a restart as any blob's units are.
 */
import { randomUUID } from 'node:crypto';
import { systemClock } from '../../base/clock.ts';
import { AppError, isAppError } from '../../base/errors.ts';
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import type { Logger } from '../../base/log.ts';
import { LogRepeater } from '../../base/log-repeater.ts';
import { MIB } from '../../base/units.ts';
import { unlessAborted } from '../../base/unless-aborted.ts';
import type { GzipSource } from '../../file/device-file.ts';
import { MissingList } from '../../file/file.ts';
import { layOutSpans } from '../../file/span-file.ts';
import type { BlobHandle } from '../../file/store/blob-handle.ts';
import type { ChunkStore } from '../../file/store/chunk-store.ts';
import { digestsOfSpan } from '../../file/target-chunks.ts';
import { type GzipSpan, gzipSpan, type SpanFault } from '../../image/gzip/gzip-span.ts';
import { type BlobRange, fetchRanges } from '../fetch/fetch-ranges.ts';
import type { FetchScheduler } from '../fetch/fetch-scheduler.ts';
import { ByteGate } from './byte-gate.ts';
import type { InflateThreads } from './inflate-threads.ts';
import { type SpanSource, spanBlobOf } from './span-source.ts';

/** Stored and inflated bytes of spans under way: some thirty of 1 MiB; the largest that an index may have (64 MiB each way) run alone. */
const UNDER_WAY_BYTES = 48 * MIB;
/** Fetched units that only memory holds may be displaced before they are read. */
const MAX_ROUNDS = 16;
/** Bytes may come wrong from one mirror, and their neighbours from another. */
const MAX_REPAIRS = 8;
/** Without room on disk, spans up to this are kept in memory as a whole: a few of them must not displace everything else. */
const WHOLE_IN_MEMORY_BYTES = 2 * MIB;

/** Hints of the reader of a gzip blob go to the scheduler, as those of a device do. */
class ReadAheadList extends MissingList {
  readonly readAhead: (blobId: number, offsetBytes: number) => void;

  constructor(scheduler: FetchScheduler, handle: BlobHandle) {
    super();
    this.readAhead = (_blobId, offsetBytes) => scheduler.readAhead(handle, offsetBytes);
  }
}

export class SpanMaker {
  private readonly store: ChunkStore;
  private readonly scheduler: FetchScheduler;
  private readonly threads: InflateThreads;
  private readonly log: LogRepeater;
  private readonly gate = new ByteGate(UNDER_WAY_BYTES);
  /** By blob and span. */
  private readonly underWay = new Map<string, Promise<void>>();
  /** Of open devices. */
  private readonly sources = new Set<SpanSource>();
  /** Unchecked spans are believed in this process until some layer turns out corrupt. */
  private readonly life = randomUUID();
  private corruptions = 0;

  constructor(parts: { store: ChunkStore; scheduler: FetchScheduler; threads: InflateThreads; log: Logger }) {
    this.store = parts.store;
    this.scheduler = parts.scheduler;
    this.threads = parts.threads;
    this.log = new LogRepeater(parts.log, systemClock);
  }

  /**
   * Acquires the blob for the spans of one layer; `handles` are the device's, which are held until {@link close}. `closed` is aborted
   * when nobody reads the device any more. Rejects like {@link ChunkStore.acquire}.
   */
  async open(source: GzipSource, handles: readonly BlobHandle[], closed: AbortSignal): Promise<SpanSource> {
    const gzip = handles[source.blobIndex]!;
    const index = handles[source.indexBlobIndex]!;
    const layout = layOutSpans(source.gzip.entries, source.gzip.originalSizeBytes);
    const blobs = { gzip: gzip.source, index: index.source };
    for (;;) {
      const { corruptions } = this;
      const kept = await this.store.acquire(spanBlobOf(source, blobs, layout, `${this.life} ${corruptions}`));
      if (corruptions === this.corruptions) {
        const opened: SpanSource = { gzip, index, kept, tables: source.gzip, layout, chunks: source.chunks, closed };
        this.sources.add(opened);
        return opened;
      }
      // Meanwhile unchecked spans were forgotten, but not those in here.
      kept.release();
    }
  }

  /** Gives a source back, when no thread reads its spans any more. */
  close(source: SpanSource): void {
    this.sources.delete(source);
    source.kept.release();
  }

  /** A complete layer turned out to be not what its digest names: spans made of its bytes that nothing checked are forgotten. */
  async forgetUnchecked(digest: string): Promise<void> {
    this.corruptions += 1;
    const wrong = [...this.sources].filter(({ gzip, chunks }) => gzip.source.digest === digest && chunks === undefined);
    await Promise.all(wrong.map(({ kept }) => this.store.drop(kept, 0, kept.sizeBytes)));
  }

  /**
   * Resolves when every unit of the ranges (of the spans' blob) is readable through its handle on this thread; a unit that only memory
   * holds may have been displaced when the caller comes to read: then ask again. Rejects like {@link FetchScheduler.ensure}, and with
   * DataLoss when a span does not inflate to what it must, also after its bytes were fetched again.
   */
  async ensure(source: SpanSource, ranges: readonly BlobRange[], signal: AbortSignal): Promise<void> {
    const wanted = new Map<number, Set<number>>();
    for (const { offsetBytes, lengthBytes } of ranges) {
      const end = Math.ceil((offsetBytes + lengthBytes) / FETCH_UNIT_BYTES);
      for (let unit = Math.floor(offsetBytes / FETCH_UNIT_BYTES); unit < end; unit += 1) {
        if (source.kept.isReadable(unit)) continue;
        const span = spanOfUnit(source, unit);
        const units = wanted.get(span) ?? new Set();
        wanted.set(span, units.add(unit));
      }
    }
    await Promise.all([...wanted].map(([span, units]) => this.join(source, span, units, signal)));
  }

  /** Waits for a span that somebody makes, or makes it. */
  private async join(source: SpanSource, span: number, units: ReadonlySet<number>, signal: AbortSignal): Promise<void> {
    const key = `${source.kept.blobId} ${span}`;
    for (;;) {
      signal.throwIfAborted();
      const others = this.underWay.get(key);
      const work = others ?? this.make(source, span, units).finally(() => this.underWay.delete(key));
      if (others === undefined) this.underWay.set(key, work);
      try {
        await unlessAborted(work, signal);
        if (others === undefined || [...units].every((unit) => source.kept.isReadable(unit))) return;
      } catch (error) {
        // The device through which it was being made was closed: make it through this one.
        if (others === undefined || !isAppError(error, 'Canceled') || signal.aborted) throw error;
      }
    }
  }

  private async make(source: SpanSource, span: number, units: ReadonlySet<number>): Promise<void> {
    const { tables, gzip, chunks, layout, kept } = source;
    const place = gzipSpan(tables, gzip.sizeBytes, span);
    await this.gate.run(place.storedBytes + place.plainBytes, async () => {
      const digests = chunks === undefined ? undefined : Uint8Array.from(digestsOfSpan(chunks, span));
      for (let repairs = 0; ; repairs += 1) {
        const { corruptions } = this;
        const { stored, window } = await this.readStored(source, place);
        const { bits, plainBytes } = place;
        const answer = await this.threads.inflate({ stored, window, bits, isCompressed: tables.isCompressed, plainBytes, digests });
        if (!kept.isHeld) throw canceled(source);
        // What it was made of may just have been found corrupt, and be other bytes now.
        if (digests === undefined && corruptions !== this.corruptions) continue;
        if ('bug' in answer) throw new AppError('Internal', { op: 'inflate', subject: gzip.source.digest, what: answer.bug });
        if ('bytes' in answer) {
          const firstUnit = layout.firstChunk[span]!;
          await this.keep(kept, firstUnit, answer.bytes, units);
          if (digests !== undefined || corruptions === this.corruptions) return;
          // All unchecked spans were forgotten while this one was on its way to the store, which may have it now.
          await this.forget(kept, firstUnit * FETCH_UNIT_BYTES, answer.bytes.length);
          continue;
        }
        await this.repair(source, span, place, answer.fault, repairs);
      }
    });
  }

  /** Fetches again what a span was inflated from. Rejects when that was done before, and was no better. */
  private async repair(source: SpanSource, span: number, place: GzipSpan, fault: SpanFault, repairs: number): Promise<void> {
    const { gzip, index, closed } = source;
    const isGzip = fault.part === 'gzip';
    const [handle, offset, length] = isGzip
      ? [gzip, place.storedOffset, place.storedBytes]
      : [index, place.windowOffset, place.windowBytes];
    const what = `span ${span}, ${length} bytes at ${offset} of the ${isGzip ? 'layer' : 'index'}: ${fault.what}`;
    if (repairs === MAX_REPAIRS || length === 0)
      throw new AppError('DataLoss', { op: 'read gzip layer', subject: gzip.source.digest, what });
    this.log.write('warn', { digest: gzip.source.digest, reason: what }, 'corrupt bytes; fetching them again');
    // Rejects with DataLoss when all of them were fetched again within a minute.
    await this.scheduler.repair(handle, offset, length, closed);
  }

  /** The span's stored bytes and its window; both are the caller's. */
  private async readStored(source: SpanSource, place: GzipSpan): Promise<{ stored: Uint8Array<ArrayBuffer>; window: Uint8Array }> {
    const { gzip, index, closed } = source;
    const stored = new Uint8Array(Buffer.allocUnsafeSlow(place.storedBytes).buffer);
    const window = new Uint8Array(place.windowBytes);
    for (let round = 0; round < MAX_ROUNDS; round += 1) {
      if (!gzip.isHeld) throw canceled(source);
      const missing = new ReadAheadList(this.scheduler, gzip);
      const hasStored = gzip.file().readSync(place.storedOffset, stored.length, stored, 0, missing);
      const hasWindow = index.file().readSync(place.windowOffset, window.length, window, 0, missing);
      if (hasStored && hasWindow) return { stored, window };
      await fetchRanges(this.scheduler, [gzip, index], missing.ranges, closed);
    }
    const what = `bytes still missing after ${MAX_ROUNDS} rounds`;
    throw new AppError('Unavailable', { op: 'inflate', subject: gzip.source.digest, what });
  }

  private async keep(kept: BlobHandle, firstUnit: number, bytes: Uint8Array, units: ReadonlySet<number>): Promise<void> {
    if (bytes.length === 0) return;
    const reservation = await this.store.reserve(bytes.length);
    if (reservation !== undefined || bytes.length <= WHOLE_IN_MEMORY_BYTES) {
      await this.store.write(kept, firstUnit * FETCH_UNIT_BYTES, bytes, reservation);
      return;
    }
    for (const unit of units) {
      const at = (unit - firstUnit) * FETCH_UNIT_BYTES;
      await this.store.write(kept, unit * FETCH_UNIT_BYTES, bytes.subarray(at, at + FETCH_UNIT_BYTES), undefined);
    }
  }

  /** Takes bytes back, for every device that shares the blob. Without any it is never opened again: its key has gone with its last reader. */
  private async forget(kept: BlobHandle, offsetBytes: number, lengthBytes: number): Promise<void> {
    const holder = [...this.sources].find((source) => source.kept.blobId === kept.blobId);
    if (holder !== undefined && lengthBytes > 0) await this.store.drop(holder.kept, offsetBytes, lengthBytes);
  }
}

/** The span whose chunk lies at a unit of the spans' blob. */
function spanOfUnit({ layout }: SpanSource, unit: number): number {
  let low = 0;
  let high = layout.spanCount;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (layout.firstChunk[middle + 1]! <= unit) low = middle + 1;
    else high = middle;
  }
  return low;
}

function canceled(source: SpanSource): AppError {
  return new AppError('Canceled', { op: 'inflate', subject: source.gzip.source.digest, what: 'its device was closed' });
}
