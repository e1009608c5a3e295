/**
 * Raw inflate of a whole stream that can stop at deflate block boundaries (Z_BLOCK), through the zlib inside the Node binary: Node's own
 * API does not say where blocks begin. Signatures, the z_stream layout (LP64) and the meaning of data_type: zlib.h.
 */
import assert from 'node:assert';
import koffi from 'koffi';
import { AppError } from '../base/errors.ts';
import { writeU32, writeU64 } from '../image/lsmt/bytes.ts';

/** See inflate.ts for the whole struct. */
const STREAM_BYTES = 112;
const AT = { nextIn: 0, availIn: 8, nextOut: 24, availOut: 32, dataType: 88 };
const RAW_WINDOW_BITS = -15;
const Z_OK = 0;
const Z_STREAM_END = 1;
const Z_BUF_ERROR = -5;
const Z_NO_FLUSH = 0;
const Z_BLOCK = 5;
const AT_BOUNDARY = 128;
const IN_LAST_BLOCK = 64;
const UNUSED_BITS = 7;

export interface InflateStep {
  consumed: number;
  produced: number;
  /** `boundary`: a block begins at the next bit; `end`: the stream is over; `bad`: no valid deflate; `more`: out of input or room. */
  at: 'more' | 'boundary' | 'end' | 'bad';
  /** 0..7: bits of the last byte consumed that are not used yet. */
  bits: number;
}

/** One stream at a time; some 40 KiB of zlib's memory, freed on dispose. */
export class BlockInflater {
  /** Longer than 64 bytes, so it lies outside V8's heap and never moves: zlib keeps its address. */
  private readonly stream = Buffer.allocUnsafeSlow(STREAM_BYTES).fill(0);
  private readonly reset: (stream: Uint8Array, windowBits: number) => number;
  private readonly run: (stream: Uint8Array, flush: number) => number;
  private readonly end: (stream: Uint8Array) => number;
  /** Keeps the memory that zlib's pointer is into. */
  protected input: Uint8Array = new Uint8Array();

  constructor() {
    const zlib = koffi.load(null);
    const init = zlib.func('int inflateInit2_(uint8_t *strm, int windowBits, const char *version, int size)');
    this.reset = zlib.func('int inflateReset2(uint8_t *strm, int windowBits)');
    this.run = zlib.func('int inflate(uint8_t *strm, int flush)');
    this.end = zlib.func('int inflateEnd(uint8_t *strm)');
    const result = init(this.stream, RAW_WINDOW_BITS, '1.2.11', STREAM_BYTES) as number;
    if (result !== Z_OK) throw new AppError('Internal', { op: 'load', subject: 'zlib', what: `inflateInit2 returned ${result}` });
  }

  /** Begins a new stream. */
  start(): void {
    const result = this.reset(this.stream, RAW_WINDOW_BITS);
    assert(result === Z_OK, `inflateReset2 returned ${result}: called with valid arguments`);
  }

  /** What is inflated next; borrowed until all of it is consumed or other input is given. */
  setInput(input: Uint8Array): void {
    this.input = input;
    writeU64(this.stream, AT.nextIn, input.length === 0 ? 0 : Number(koffi.address(input)));
    writeU32(this.stream, AT.availIn, input.length);
  }

  /** Bytes of the input that are not consumed yet. */
  get inputLeft(): number {
    return this.stream.readUInt32LE(AT.availIn);
  }

  /** Where a block of memory lies, which must not move: memory of its own, or shared. */
  static addressOf(memory: Uint8Array): number {
    return Number(koffi.address(memory));
  }

  /**
   * Inflates the input to at most `length` bytes at `address`, which is borrowed during the call; with `stopsAtBlock` until the next
   * boundary at most, else past boundaries without telling. Neither may be empty.
   */
  step(address: number, length: number, options: { stopsAtBlock: boolean }): InflateStep {
    const inputBytes = this.inputLeft;
    assert(inputBytes > 0 && length > 0, 'nothing to inflate');
    writeU64(this.stream, AT.nextOut, address);
    writeU32(this.stream, AT.availOut, length);
    const result = this.run(this.stream, options.stopsAtBlock ? Z_BLOCK : Z_NO_FLUSH);
    const dataType = this.stream.readInt32LE(AT.dataType);
    const known = result === Z_OK || result === Z_BUF_ERROR;
    // Behind the last block zlib stops once more.
    const begins = options.stopsAtBlock && (dataType & (AT_BOUNDARY | IN_LAST_BLOCK)) === AT_BOUNDARY;
    return {
      consumed: inputBytes - this.inputLeft,
      produced: length - this.stream.readUInt32LE(AT.availOut),
      at: result === Z_STREAM_END ? 'end' : !known ? 'bad' : begins ? 'boundary' : 'more',
      bits: dataType & UNUSED_BITS,
    };
  }

  [Symbol.dispose](): void {
    this.end(this.stream);
  }
}
