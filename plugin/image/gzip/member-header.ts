/** The header of a gzip member, RFC 1952 section 2.3: how many bytes come before the deflate data. */
import { AppError } from '../../base/errors.ts';
import { readU16 } from '../lsmt/bytes.ts';

/** Extra field (64 KiB at most) with name and comment, which have no limit of their own. No writer of layers makes more than some dozen. */
export const MAX_GZIP_HEADER_BYTES = 128 * 1024;
/** CRC-32 and size (modulo 2^32) of the data, behind the deflate stream. */
export const GZIP_TRAILER_BYTES = 8;

const FIXED_BYTES = 10;
const DEFLATE = 8;
const FLAG = { headerCrc: 2, extra: 4, name: 8, comment: 16, reserved: 0xe0 } as const;

/** Length of the member header that `head` begins with; undefined when more bytes are needed. Throws DataLoss when it is none. */
export function gzipHeaderBytes(head: Uint8Array, subject: string): number | undefined {
  const bad = (what: string): AppError => new AppError('DataLoss', { op: 'read gzip header', subject, what });
  if (head.length < FIXED_BYTES) return undefined;
  const flags = head[3]!;
  if (head[0] !== 0x1f || head[1] !== 0x8b) throw bad('it does not begin with 1f 8b');
  if (head[2] !== DEFLATE) throw bad(`compression method ${head[2]}, only ${DEFLATE} (deflate) is known`);
  if ((flags & FLAG.reserved) !== 0) throw bad(`flags 0x${flags.toString(16)} have reserved bits`);
  let at: number | undefined = FIXED_BYTES;
  if ((flags & FLAG.extra) !== 0) at = head.length < at + 2 ? undefined : at + 2 + readU16(head, at);
  for (const flag of [FLAG.name, FLAG.comment]) if (at !== undefined && (flags & flag) !== 0) at = behindZero(head, at);
  if (at !== undefined && (flags & FLAG.headerCrc) !== 0) at += 2;
  if (at !== undefined && at <= head.length) return at;
  if (head.length >= MAX_GZIP_HEADER_BYTES) throw bad(`the header is longer than ${MAX_GZIP_HEADER_BYTES} bytes`);
  return undefined;
}

function behindZero(bytes: Uint8Array, from: number): number | undefined {
  const zero = bytes.indexOf(0, from);
  return zero < 0 ? undefined : zero + 1;
}
