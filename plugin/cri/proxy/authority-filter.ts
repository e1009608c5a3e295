/**
 * Makes the `:authority` of incoming requests acceptable. Clients built on older grpc-go (kubelet before 1.28) dial a unix socket and send its
 * path there; Node's HTTP/2 refuses a `/` in it as a protocol error before any of our code sees the request. Every `/` in that one value
 * becomes a `-` of the same length in place, so no frame, and no entry of the compression table that both ends keep, changes its size.
 * Sources: RFC 9113 4.1 and 6.2 (frames), RFC 7541 5 and 6 (representations), appendix B (Huffman codes).
 *
 *   24 bytes preface │ frame header 9 │ payload │ frame header 9 │ payload …     only payloads of HEADERS are looked into
 */
import { Transform, type TransformCallback } from 'node:stream';

const PREFACE_BYTES = 24;
const FRAME_HEADER_BYTES = 9;
const TYPE_HEADERS = 1;
const FLAG_PADDED = 0x8;
const FLAG_PRIORITY = 0x20;
/** Larger frames are an error here (SETTINGS_MAX_FRAME_SIZE stays at its default), which HTTP/2 itself says. */
const MAX_FRAME_BYTES = 16_384;

const SLASH = 0x2f;
const DASH = 0x2d;
/** `:authority` in the static table. */
const AUTHORITY_INDEX = 1;
/** `/` is 011000 and `-` is 010110 in the Huffman code. */
const HUFFMAN_SLASH = 0b011000;
const HUFFMAN_DASH = 0b010110;

/** An integer with a prefix of `prefixBits` (RFC 7541 5.1); undefined when it does not end within the block. */
function readInteger(block: Uint8Array, offset: number, prefixBits: number): [value: number, next: number] | undefined {
  const mask = 2 ** prefixBits - 1;
  const first = block[offset];
  if (first === undefined) return undefined;
  let value = first & mask;
  if (value < mask) return [value, offset + 1];
  for (let i = 0; i < 4; i += 1) {
    const byte = block[offset + 1 + i];
    if (byte === undefined) return undefined;
    value += (byte & 0x7f) * 2 ** (7 * i);
    if (byte < 0x80) return [value, offset + 2 + i];
  }
  return undefined;
}

/** Replaces codes of `/` by those of `-`. Codes of 5 to 8 bits are told apart by their value alone; a longer one ends the work. */
function replaceHuffmanSlashes(text: Uint8Array): void {
  const bitsAt = (bit: number, count: number): number => {
    const byte = bit >> 3;
    const pair = ((text[byte] ?? 0xff) << 8) | (text[byte + 1] ?? 0xff);
    return (pair >> (16 - (bit & 7) - count)) & (2 ** count - 1);
  };
  const limit = text.length * 8;
  let bit = 0;
  while (bit + 5 <= limit) {
    if (bitsAt(bit, 5) < 10) bit += 5;
    else if (bitsAt(bit, 6) < 46) {
      if (bitsAt(bit, 6) === HUFFMAN_SLASH && bit + 6 <= limit) {
        for (let i = 0; i < 6; i += 1) {
          const at = bit + i;
          const mask = 0x80 >> (at & 7);
          const isSet = ((HUFFMAN_DASH >> (5 - i)) & 1) === 1;
          text[at >> 3] = isSet ? text[at >> 3]! | mask : text[at >> 3]! & ~mask;
        }
      }
      bit += 6;
    } else if (bitsAt(bit, 7) < 124) bit += 7;
    else if (bitsAt(bit, 8) < 254) bit += 8;
    else return;
  }
}

/** Changes the header block in place. What it cannot read it leaves to HTTP/2, which says what is wrong with it. */
function replaceSlashes(block: Uint8Array): void {
  let at = 0;
  while (at < block.length) {
    const first = block[at]!;
    // Indexed field; table size update.
    const isPlain = first >= 0x80 || (first & 0xe0) === 0x20;
    const name = readInteger(block, at, first >= 0x80 ? 7 : (first & 0xc0) === 0x40 ? 6 : isPlain ? 5 : 4);
    if (name === undefined) return;
    at = name[1];
    if (isPlain) continue;
    for (const part of name[0] === 0 ? ['name', 'value'] : ['value']) {
      const isHuffman = (block[at] ?? 0) >= 0x80;
      const length = readInteger(block, at, 7);
      if (length === undefined) return;
      const text = block.subarray(length[1], length[1] + length[0]);
      at = length[1] + length[0];
      if (at > block.length) return;
      if (part === 'name' || name[0] !== AUTHORITY_INDEX) continue;
      if (isHuffman) replaceHuffmanSlashes(text);
      else for (const [i, byte] of text.entries()) if (byte === SLASH) text[i] = DASH;
    }
  }
}

/** The bytes of one client connection, from the client's preface on. */
export class AuthorityFilter extends Transform {
  private prefaceLeft = PREFACE_BYTES;
  /** Bytes of a payload that pass as they are. */
  private passLeft = 0;
  /** A frame header or a HEADERS frame that is not complete yet. */
  private held: Buffer<ArrayBufferLike> = Buffer.alloc(0);

  override _transform(chunk: Buffer, _encoding: BufferEncoding, callback: TransformCallback): void {
    let data: Buffer<ArrayBufferLike> = this.held.length === 0 ? chunk : Buffer.concat([this.held, chunk]);
    this.held = Buffer.alloc(0);
    while (data.length > 0) {
      const pass = Math.min(data.length, this.prefaceLeft > 0 ? this.prefaceLeft : this.passLeft);
      if (pass > 0) {
        if (this.prefaceLeft > 0) this.prefaceLeft -= pass;
        else this.passLeft -= pass;
        this.push(data.subarray(0, pass));
        data = data.subarray(pass);
        continue;
      }
      if (data.length < FRAME_HEADER_BYTES) break;
      const payloadBytes = data.readUIntBE(0, 3);
      if (data[3] !== TYPE_HEADERS || payloadBytes > MAX_FRAME_BYTES) {
        this.push(data.subarray(0, FRAME_HEADER_BYTES));
        data = data.subarray(FRAME_HEADER_BYTES);
        this.passLeft = payloadBytes;
        continue;
      }
      if (data.length < FRAME_HEADER_BYTES + payloadBytes) break;
      const frame = Buffer.from(data.subarray(0, FRAME_HEADER_BYTES + payloadBytes));
      data = data.subarray(frame.length);
      const flags = frame[4]!;
      const isPadded = (flags & FLAG_PADDED) !== 0;
      const start = FRAME_HEADER_BYTES + (isPadded ? 1 : 0) + ((flags & FLAG_PRIORITY) !== 0 ? 5 : 0);
      replaceSlashes(frame.subarray(start, frame.length - (isPadded ? frame[FRAME_HEADER_BYTES]! : 0)));
      this.push(frame);
    }
    // Bounded: less than one HEADERS frame.
    this.held = Buffer.from(data);
    callback();
  }
}
