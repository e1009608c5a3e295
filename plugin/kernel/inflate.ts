/**
 * Raw inflate that can start in the middle of a byte, through the zlib inside the Node binary (`koffi.load(null)`): Node's own API has
 * no inflatePrime. Signatures and the z_stream layout (LP64): zlib.h.
 */
import assert from 'node:assert';
import koffi from 'koffi';
import { AppError } from '../base/errors.ts';
import type { RawInflater } from '../image/gzip/inflater.ts';
import { writeU32, writeU64 } from '../image/lsmt/bytes.ts';

/**
 * struct z_stream, 112 bytes:
 *   0 next_in   8 avail_in   16 total_in   24 next_out   32 avail_out   40 total_out   48 msg   56 state
 *   64 zalloc   72 zfree     80 opaque     88 data_type  96 adler      104 reserved
 */
const STREAM_BYTES = 112;
const AT = { nextIn: 0, availIn: 8, nextOut: 24, availOut: 32 };
const RAW_WINDOW_BITS = -15;
const Z_OK = 0;
const Z_STREAM_END = 1;
const Z_BUF_ERROR = -5;
const Z_SYNC_FLUSH = 2;

/** One raw inflate stream, reset for each use; it keeps zlib's window of 32 KiB for the thread's life. */
export class LibraryInflater implements RawInflater {
  /** Longer than 64 bytes, so it lies outside V8's heap and never moves: zlib keeps its address. */
  private readonly stream = Buffer.allocUnsafeSlow(STREAM_BYTES).fill(0);
  private readonly reset: (stream: Uint8Array, windowBits: number) => number;
  private readonly prime: (stream: Uint8Array, bits: number, value: number) => number;
  private readonly setDictionary: (stream: Uint8Array, dictionary: Uint8Array, length: number) => number;
  private readonly run: (stream: Uint8Array, flush: number) => number;

  constructor() {
    const zlib = koffi.load(null);
    const init = zlib.func('int inflateInit2_(uint8_t *strm, int windowBits, const char *version, int size)');
    this.reset = zlib.func('int inflateReset2(uint8_t *strm, int windowBits)');
    this.prime = zlib.func('int inflatePrime(uint8_t *strm, int bits, int value)');
    this.setDictionary = zlib.func('int inflateSetDictionary(uint8_t *strm, const uint8_t *dictionary, uint length)');
    this.run = zlib.func('int inflate(uint8_t *strm, int flush)');
    const result = init(this.stream, RAW_WINDOW_BITS, '1.2.11', STREAM_BYTES) as number;
    if (result !== Z_OK) {
      throw new AppError('Internal', { op: 'load', subject: 'zlib', what: `inflateInit2 returned ${result}` });
    }
  }

  inflate(
    input: Uint8Array,
    start: { bits: number; bitsValue: number; dictionary: Uint8Array },
    output: Uint8Array,
  ): { produced: number; ended: boolean } {
    assert(input.length > 0 && output.length > 0, 'nothing to inflate');
    this.check(this.reset(this.stream, RAW_WINDOW_BITS), 'inflateReset2');
    if (start.bits > 0) this.check(this.prime(this.stream, start.bits, start.bitsValue), 'inflatePrime');
    if (start.dictionary.length > 0) {
      this.check(this.setDictionary(this.stream, start.dictionary, start.dictionary.length), 'inflateSetDictionary');
    }
    writeU64(this.stream, AT.nextIn, Number(koffi.address(input)));
    writeU32(this.stream, AT.availIn, input.length);
    writeU64(this.stream, AT.nextOut, Number(koffi.address(output)));
    writeU32(this.stream, AT.availOut, output.length);
    const result = this.run(this.stream, Z_SYNC_FLUSH);
    const produced = output.length - this.stream.readUInt32LE(AT.availOut);
    if (result !== Z_OK && result !== Z_STREAM_END && result !== Z_BUF_ERROR) return { produced: -1, ended: false };
    return { produced, ended: result === Z_STREAM_END };
  }

  private check(result: number, call: string): void {
    assert(result === Z_OK, `${call} returned ${result}: called with valid arguments`);
  }
}
