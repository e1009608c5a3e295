/**
 * Little-endian fields and the one error that all binary formats of this folder raise. Ours.
 *
 * 64-bit fields become doubles: above 2^53 they are rounded, never wrapped, so a comparison with any sane limit still refuses them.
 */
import { AppError } from '../../base/errors.ts';

export function readU16(bytes: Uint8Array, offset: number): number {
  return bytes[offset]! | (bytes[offset + 1]! << 8);
}

export function readU32(bytes: Uint8Array, offset: number): number {
  return (bytes[offset]! | (bytes[offset + 1]! << 8) | (bytes[offset + 2]! << 16) | (bytes[offset + 3]! << 24)) >>> 0;
}

/** Unsigned 64 bits as a double; exact up to 2^53. */
export function readU64(bytes: Uint8Array, offset: number): number {
  return readU32(bytes, offset) + readU32(bytes, offset + 4) * 0x1_0000_0000;
}

export function writeU32(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value;
  bytes[offset + 1] = value >>> 8;
  bytes[offset + 2] = value >>> 16;
  bytes[offset + 3] = value >>> 24;
}

/** `value` must be a safe integer ≥ 0. */
export function writeU64(bytes: Uint8Array, offset: number, value: number): void {
  writeU32(bytes, offset, value % 0x1_0000_0000);
  writeU32(bytes, offset + 4, Math.floor(value / 0x1_0000_0000));
}

/** True when `bytes` holds `magic` at `offset`. */
export function hasBytes(bytes: Uint8Array, offset: number, magic: Uint8Array): boolean {
  if (offset + magic.length > bytes.length) return false;
  for (let i = 0; i < magic.length; i++) if (bytes[offset + i] !== magic[i]) return false;
  return true;
}

/** ASCII text up to the first NUL, at most `size` bytes. Bytes outside printable ASCII become `?`. */
export function readText(bytes: Uint8Array, offset: number, size: number): string {
  let text = '';
  for (let i = offset; i < offset + size && bytes[i] !== 0; i++) {
    const code = bytes[i]!;
    text += code >= 0x20 && code < 0x7f ? String.fromCharCode(code) : '?';
  }
  return text;
}

export interface BadField {
  /** The step: `open lsmt layer`. */
  op: string;
  /** The file, usually its digest. */
  subject: string;
  /** The field as the format's table calls it. */
  field: string;
  /** What the file says. */
  found: string | number;
  /** What would have been accepted, limit included. */
  expected: string;
  /** Where the field lies, counted in the file that the format describes. */
  offsetBytes: number;
  cause?: unknown;
}

/** The error of a file that breaks its format: DataLoss that names file, field, offset and limit. */
export function badField(bad: BadField): AppError {
  return new AppError('DataLoss', {
    op: bad.op,
    subject: bad.subject,
    what: `${bad.field} at byte ${bad.offsetBytes} is ${bad.found}, expected ${bad.expected}`,
    details: { field: bad.field, offset: bad.offsetBytes, expected: bad.expected },
    ...(bad.cause === undefined ? {} : { cause: bad.cause }),
  });
}
