/**
 * Reads one layer once and finds out all that its index needs: block boundaries with their windows, digests, and what the tar says.
 * Formats that cannot be read at random end the scan with a reason; what is damaged ends it with an error. Ours.
 *
 *   stored bytes ─ (inflate up to each block boundary) ─► slot ─┬─► tar reader ─► records
 *                                                               └─► sums ─► digests, windows
 */
import { createHash } from 'node:crypto';
import type { Digest } from '../../../base/digest.ts';
import { AppError } from '../../../base/errors.ts';
import { KIB } from '../../../base/units.ts';
import { GZIP_WINDOW_BYTES, MAX_GZIP_SPAN_BYTES } from '../../../image/gzip/gzip-index.ts';
import { type GzipEntry, GzipIndexWriter, SpanChooser } from '../../../image/gzip/gzip-index-writer.ts';
import { GZIP_TRAILER_BYTES, gzipHeaderBytes } from '../../../image/gzip/member-header.ts';
import { MAX_LAYER_RECORDS } from '../../../image/lsmt/header.ts';
import type { LayerCompression } from '../../../image/oci/media-types.ts';
import { TarReader } from '../../../image/tar/reader.ts';
import { BlockInflater } from '../../../kernel/block-inflater.ts';
import { checkGrowth, detectCompression } from '../decompress.ts';
import { inEntry } from '../layer-errors.ts';
import { type BlockHashes, SLOT_BYTES, type Slot } from './block-hashes.ts';
import { EntryRecorder } from './entry-recorder.ts';
import { IndexFileWriter } from './index-file.ts';
import type { WindowRequest } from './plain-hasher.ts';
import { RecordWriter } from './tar-records.ts';

/** Of small files that the layer stores itself; they are mostly text. */
const PACKED_SHARE = 0.5;
/** Left for the metadata's own runs. */
const MAX_MAPPED_RUNS = MAX_LAYER_RECORDS - 100_000;
const LSMT_RECORD_BYTES = 16;
const MAGIC_BYTES = 4;
/** Deflate of 32 KiB of data: hardly more than that even when it does not compress. */
const MAX_ENTRY_INPUT_BYTES = 40 * KIB;

export interface ScanRequest {
  /** Named in errors. */
  subject: string;
  recordsPath: string;
  gzipIndexPath: string;
  chunkDigestsPath: string;
  inlineLimitBytes: number;
  spanBytes: number;
  maxLayerBytes: number;
  /** What the small blob may hold, inodes and names aside; a layer that needs more is not indexed. */
  maxIndexBytes: number;
}

export interface ScannedLayer {
  compression: Exclude<LayerCompression, 'zstd'>;
  /** Of the stored bytes, and of the decompressed tar. */
  digest: Digest;
  diffId: Digest;
  readBytes: number;
  tarBytes: number;
  entries: number;
  gzipIndexBytes: number | undefined;
  chunkDigestsBytes: number;
}

/** Why a layer can only be converted in full. */
export interface Unindexable {
  reason: string;
}

class UnindexableError extends Error {}

export type ScanResult = ScannedLayer | Unindexable;

/** What a chunk of input ended with; the caller stops feeding after a reason. */
type State = 'magic' | 'tar' | 'gzipHeader' | 'deflate' | 'gzipTrailer' | 'behind';

export class LayerScanner implements AsyncDisposable {
  private readonly request: ScanRequest;
  private readonly records: RecordWriter;
  private readonly recorder: EntryRecorder;
  private readonly tar: TarReader;
  private readonly hashes: BlockHashes;
  private readonly inflater = new BlockInflater();
  private readonly index: IndexFileWriter;
  private readonly spans: SpanChooser;
  private readonly stored = createHash('sha256');
  private state: State = 'magic';
  private head: Buffer = Buffer.alloc(0);
  private slot: Slot | undefined;
  private slotBytes = 0;
  private slotSpans: number[] = [];
  private readBytes = 0;
  /** Of the stored bytes, behind the last one that was used. */
  private position = 0;
  private tarBytes = 0;
  private last: GzipEntry | undefined;
  private lastByte = 0;
  /** The last entry's window, until enough of what follows is known to thin it. */
  private pendingWindow: { window: Uint8Array; bits: number; lastByte: number } | undefined;
  private readonly pendingInput = Buffer.allocUnsafeSlow(MAX_ENTRY_INPUT_BYTES);
  private pendingInputBytes = 0;
  /** Windows that go to the thread with the next slot. */
  private windows: WindowRequest[] = [];
  private isFinished = false;

  /** `hashes` serves one scanner at a time. */
  constructor(request: ScanRequest, hashes: BlockHashes) {
    this.request = request;
    this.records = new RecordWriter(request.recordsPath);
    this.recorder = new EntryRecorder(request.inlineLimitBytes, (record) => this.records.push(record));
    this.tar = new TarReader(this.recorder);
    this.spans = new SpanChooser(request.spanBytes);
    this.index = new IndexFileWriter(request.gzipIndexPath, new GzipIndexWriter(request.spanBytes, request.subject));
    this.hashes = hashes;
    hashes.begin((window) => this.index.addWindow(window));
  }

  get progress(): { readBytes: number; tarBytes: number; entries: number } {
    return { readBytes: this.readBytes, tarBytes: this.tarBytes, entries: this.recorder.entryCount };
  }

  /** Takes the next stored bytes. Returns a reason once the layer turns out to be unindexable; then nothing more may be called. */
  async push(chunk: Buffer): Promise<Unindexable | undefined> {
    this.readBytes += chunk.length;
    if (this.state !== 'tar') this.stored.update(chunk);
    try {
      await this.take(chunk);
      return undefined;
    } catch (error) {
      if (error instanceof UnindexableError) return { reason: error.message };
      throw error;
    }
  }

  /** The layer is over. Rejects with DataLoss when it was cut or is damaged. */
  async end(): Promise<ScanResult> {
    if (this.state === 'magic') await this.begin(this.head);
    if (this.state !== 'tar' && this.state !== 'behind') throw this.damaged('it ends in the middle of the gzip stream');
    await this.submit();
    const sums = await this.hashes.finish(this.windows);
    this.isFinished = true;
    this.tar.end();
    this.recorder.close();
    this.records.end();
    const isGzip = this.state === 'behind';
    const diffId: Digest = `sha256:${sums.sha256}`;
    if (isGzip) this.checkTrailer(sums.crc32);
    this.index.writeDigests(this.request.chunkDigestsPath, sums.digests, this.tarBytes);
    const gzipIndexBytes = isGzip ? this.index.finish({ gzipBytes: this.readBytes, plainBytes: this.tarBytes }) : undefined;
    const { runCount, keptBytes } = this.recorder;
    const total = Math.round((gzipIndexBytes ?? 0) + sums.digests.length + runCount * LSMT_RECORD_BYTES + keptBytes * PACKED_SHARE);
    if (runCount > MAX_MAPPED_RUNS) return { reason: `it has ${runCount} pieces of files, at most ${MAX_MAPPED_RUNS} can be mapped` };
    const { maxIndexBytes } = this.request;
    if (total > maxIndexBytes) return { reason: `its index would have some ${total} bytes, at most ${maxIndexBytes} are made` };
    return {
      compression: isGzip ? 'gzip' : 'none',
      digest: isGzip ? `sha256:${this.stored.digest('hex')}` : diffId,
      diffId,
      readBytes: this.readBytes,
      tarBytes: this.tarBytes,
      entries: this.recorder.entryCount,
      gzipIndexBytes,
      chunkDigestsBytes: this.index.digestsBytes,
    };
  }

  /** Leaves `hashes` free for the next layer. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.hashes.begin(() => {});
    if (this.slot !== undefined) this.hashes.release(this.slot);
    if (!this.isFinished) await this.hashes.finish();
    this.inflater[Symbol.dispose]();
    this.records[Symbol.dispose]();
    this.index[Symbol.dispose]();
  }

  private async take(chunk: Buffer): Promise<void> {
    let rest = chunk;
    while (rest.length > 0) {
      if (this.state === 'magic') {
        this.head = Buffer.concat([this.head, rest]);
        if (this.head.length < MAGIC_BYTES) return;
        rest = await this.begin(this.head);
      } else if (this.state === 'gzipHeader') rest = await this.takeHeader(rest);
      else if (this.state === 'deflate') rest = await this.inflate(rest);
      else if (this.state === 'gzipTrailer') rest = this.takeTrailer(rest);
      else if (this.state === 'behind') throw new UnindexableError(behindReason(rest));
      else rest = await this.copy(rest);
    }
  }

  /** Looks at the first bytes; returns what is to be read on. */
  private async begin(head: Buffer): Promise<Buffer> {
    const compression = detectCompression(head);
    if (compression === 'zstd') throw new UnindexableError('it is compressed with zstd, which cannot be read at random');
    this.head = Buffer.alloc(0);
    this.state = compression === 'gzip' ? 'gzipHeader' : 'tar';
    this.slot = await this.hashes.take();
    this.slot.memory.fill(0, 0, GZIP_WINDOW_BYTES);
    return this.state === 'tar' ? await this.copy(head) : head;
  }

  private async takeHeader(chunk: Buffer): Promise<Buffer> {
    const head = Buffer.concat([this.head, chunk]);
    const length = gzipHeaderBytes(head, this.request.subject);
    this.head = length === undefined ? head : Buffer.alloc(0);
    if (length === undefined) return Buffer.alloc(0);
    this.position = length;
    this.inflater.start();
    this.noteBoundary(0);
    this.state = 'deflate';
    return head.subarray(length);
  }

  private async inflate(chunk: Buffer): Promise<Buffer> {
    const { inflater } = this;
    inflater.setInput(chunk);
    for (let at = 0; at < chunk.length; ) {
      if (this.slotBytes === SLOT_BYTES) await this.submit();
      // Where no entry can be, boundaries are passed over; one byte before it may be, so that none at that very place is.
      const untilEntry = this.spans.nextOffset - 1 - this.tarBytes;
      const room = SLOT_BYTES - this.slotBytes;
      const length = untilEntry > 0 ? Math.min(room, untilEntry) : room;
      const address = this.slot!.address + GZIP_WINDOW_BYTES + this.slotBytes;
      const step = inflater.step(address, length, { stopsAtBlock: untilEntry <= 0 });
      const { consumed, produced } = step;
      if (consumed > 0) this.lastByte = chunk[at + consumed - 1]!;
      this.position += consumed;
      this.slotBytes += produced;
      this.tarBytes += produced;
      if (this.pendingWindow !== undefined) this.collectInput(chunk, at, consumed);
      at += consumed;
      if (step.at === 'bad') throw this.damaged(`no valid deflate data at byte ${this.position}`);
      if (step.at === 'boundary') this.noteBoundary(step.bits);
      if (step.at === 'end') {
        this.checkSpan();
        this.completeWindow();
        this.state = 'gzipTrailer';
        return chunk.subarray(at);
      }
    }
    return Buffer.alloc(0);
  }

  /** A block begins here. */
  private noteBoundary(bits: number): void {
    if (!this.spans.takes(this.tarBytes)) return;
    this.checkSpan();
    this.last = { plainOffset: this.tarBytes, gzipOffset: this.position, bits };
    this.index.addEntry(this.last);
    this.slotSpans.push(this.slotBytes);
    this.completeWindow();
    const window = this.slot!.memory.slice(this.slotBytes, this.slotBytes + GZIP_WINDOW_BYTES);
    this.pendingWindow = { window, bits, lastByte: this.lastByte };
    this.pendingInputBytes = 0;
  }

  /** Keeps what follows the last entry, as far as it can refer to its window. */
  private collectInput(chunk: Buffer, at: number, length: number): void {
    this.pendingInputBytes += chunk.copy(this.pendingInput, this.pendingInputBytes, at, at + length);
    const isEnough = this.tarBytes >= this.last!.plainOffset + GZIP_WINDOW_BYTES;
    if (isEnough || this.pendingInputBytes === MAX_ENTRY_INPUT_BYTES) this.completeWindow();
  }

  private completeWindow(): void {
    if (this.pendingWindow === undefined) return;
    const { window, bits, lastByte } = this.pendingWindow;
    this.pendingWindow = undefined;
    const input = Uint8Array.from(this.pendingInput.subarray(0, this.pendingInputBytes));
    this.windows.push({ window, start: { bits, lastByte, input } });
  }

  private checkSpan(): void {
    const { last } = this;
    if (last === undefined) return;
    const longest = Math.max(this.tarBytes - last.plainOffset, this.position - last.gzipOffset);
    if (longest > MAX_GZIP_SPAN_BYTES - SLOT_BYTES) throw new UnindexableError(`one of its deflate blocks spans ${longest} bytes`);
  }

  private takeTrailer(chunk: Buffer): Buffer {
    const take = Math.min(GZIP_TRAILER_BYTES - this.head.length, chunk.length);
    this.head = Buffer.concat([this.head, chunk.subarray(0, take)]);
    if (this.head.length === GZIP_TRAILER_BYTES) this.state = 'behind';
    return chunk.subarray(take);
  }

  private checkTrailer(crc: number): void {
    if (this.head.readUInt32LE(0) !== crc) throw this.damaged('the CRC-32 of its data is not the one it names');
    if (this.head.readUInt32LE(4) !== this.tarBytes % 2 ** 32) throw this.damaged('the size of its data is not the one it names');
  }

  private async copy(chunk: Buffer): Promise<Buffer> {
    if (this.slotBytes === SLOT_BYTES) await this.submit();
    const take = Math.min(SLOT_BYTES - this.slotBytes, chunk.length);
    this.slot!.memory.set(chunk.subarray(0, take), GZIP_WINDOW_BYTES + this.slotBytes);
    this.slotBytes += take;
    this.tarBytes += take;
    return chunk.subarray(take);
  }

  /** Hands the slot on and goes on with the next, in front of which lies the end of this one. */
  private async submit(): Promise<void> {
    const { slot, slotBytes } = this;
    checkGrowth({ produced: this.tarBytes, consumed: this.readBytes }, { maxBytes: this.request.maxLayerBytes }, this.request.subject);
    const next = await this.hashes.take();
    next.memory.set(slot!.memory.subarray(slotBytes, slotBytes + GZIP_WINDOW_BYTES));
    this.hashes.submit(slot!, slotBytes, this.slotSpans, this.windows);
    this.windows = [];
    // Who sums only reads the slot too, and it is taken again only behind the next await.
    const { memory } = slot!;
    this.tar.push(Buffer.from(memory.buffer, GZIP_WINDOW_BYTES, slotBytes));
    this.slot = next;
    this.slotBytes = 0;
    this.slotSpans = [];
  }

  private damaged(what: string): unknown {
    const offset = this.tarBytes;
    const text = `the gzip stream is damaged after byte ${offset} of the tar: ${what}`;
    const error = new AppError('DataLoss', { op: 'decompress', subject: this.request.subject, what: text, details: { offset } });
    return inEntry(error, this.tar.entryName);
  }
}

function behindReason(bytes: Buffer): string {
  if (bytes[0] === 0x1f) return 'it is gzip of several members (as eStargz is), of which readers of an index see only the first';
  return 'bytes follow the end of its gzip stream';
}
