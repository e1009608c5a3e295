/**
 * Content of files as device blocks: padded with zeros to whole blocks (what follows the end of a file is visible through mmap), long
 * runs of zero blocks left out, so that sparse files and zero-filled ones cost nothing. What is left out depends on the content alone,
 * not on how it was cut when it was fed. Ours.
 */
import assert from 'node:assert';
import { KIB, roundUp } from '../../base/units.ts';
import { BLOCK_BYTES } from '../../image/erofs/format.ts';

/** Shorter runs are stored: they compress to nearly nothing, while each gap costs a record of the index and cuts reads. */
const MIN_GAP_BLOCKS = (64 * KIB) / BLOCK_BYTES;
const ZEROS = Buffer.alloc(MIN_GAP_BLOCKS * BLOCK_BYTES);

/** Takes device bytes. */
export interface ExtentSink {
  append(deviceOffset: number, bytes: Uint8Array): void;
}

export class FileBlocks {
  private readonly sink: ExtentSink;
  private base = 0;
  /** Next byte of the file. */
  private position = 0;
  private readonly partial = Buffer.alloc(BLOCK_BYTES);
  private zeroBlocks = 0;

  constructor(sink: ExtentSink) {
    this.sink = sink;
  }

  /** Begins a file whose blocks start at `deviceOffset`. */
  begin(deviceOffset: number): void {
    this.base = deviceOffset;
    this.position = 0;
    this.zeroBlocks = 0;
  }

  /** Bytes at `fileOffset`, at or behind what came before; a gap is zeros. */
  write(bytes: Buffer, fileOffset: number): void {
    assert(fileOffset >= this.position);
    this.fill(fileOffset - this.position);
    let at = 0;
    const inBlock = this.position % BLOCK_BYTES;
    if (inBlock > 0) {
      at = Math.min(BLOCK_BYTES - inBlock, bytes.length);
      bytes.copy(this.partial, inBlock, 0, at);
      this.position += at;
      if (this.position % BLOCK_BYTES === 0) this.emit(this.partial, this.position - BLOCK_BYTES);
    }
    const whole = at + Math.floor((bytes.length - at) / BLOCK_BYTES) * BLOCK_BYTES;
    if (whole > at) {
      this.emit(bytes.subarray(at, whole), this.position);
      this.position += whole - at;
    }
    if (whole < bytes.length && at < bytes.length) {
      bytes.copy(this.partial, 0, whole);
      this.position += bytes.length - whole;
    }
  }

  /** Ends the file at its size. */
  end(sizeBytes: number): void {
    this.fill(sizeBytes - this.position);
    this.fill(roundUp(sizeBytes, BLOCK_BYTES) - sizeBytes);
    this.storeShortRun();
    this.zeroBlocks = 0;
  }

  private fill(count: number): void {
    const inBlock = this.position % BLOCK_BYTES;
    let rest = count;
    if (inBlock > 0 && rest > 0) {
      const take = Math.min(BLOCK_BYTES - inBlock, rest);
      this.partial.fill(0, inBlock, inBlock + take);
      this.position += take;
      rest -= take;
      if (this.position % BLOCK_BYTES === 0) this.emit(this.partial, this.position - BLOCK_BYTES);
    }
    const blocks = Math.floor(rest / BLOCK_BYTES);
    this.zeroBlocks += blocks;
    this.position += blocks * BLOCK_BYTES;
    rest -= blocks * BLOCK_BYTES;
    if (rest > 0) {
      this.partial.fill(0, 0, rest);
      this.position += rest;
    }
  }

  /** Whole blocks of the file from `fileOffset`. */
  private emit(bytes: Buffer, fileOffset: number): void {
    let run = 0;
    for (let at = 0; at < bytes.length; at += BLOCK_BYTES) {
      if (!isZero(bytes, at)) continue;
      if (at > run) this.store(bytes.subarray(run, at), fileOffset + run);
      this.zeroBlocks += 1;
      run = at + BLOCK_BYTES;
    }
    if (run < bytes.length) this.store(bytes.subarray(run), fileOffset + run);
  }

  private store(bytes: Buffer, fileOffset: number): void {
    this.storeShortRun(fileOffset);
    this.zeroBlocks = 0;
    this.sink.append(this.base + fileOffset, bytes);
  }

  /** Stores the zero blocks that end at `fileOffset` unless they are enough for a gap. */
  private storeShortRun(fileOffset = this.position): void {
    if (this.zeroBlocks === 0 || this.zeroBlocks >= MIN_GAP_BLOCKS) return;
    const bytes = this.zeroBlocks * BLOCK_BYTES;
    this.sink.append(this.base + fileOffset - bytes, ZEROS.subarray(0, bytes));
  }
}

function isZero(bytes: Buffer, at: number): boolean {
  // Nearly every block of data shows itself in its first bytes.
  if (bytes[at] !== 0 || bytes[at + 1] !== 0 || bytes[at + 64] !== 0) return false;
  return bytes.compare(ZEROS, 0, BLOCK_BYTES, at, at + BLOCK_BYTES) === 0;
}
