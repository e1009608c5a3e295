/**
 * PAX extended header records: `<length> <key>=<value>\n`, length counting itself. Source: POSIX.1-2017 pax, "pax Extended Header".
 * Keys and textual values are byte strings (latin1); values of extended attributes are bytes and may hold anything, NUL included.
 */
import { tarError } from './errors.ts';

const XATTR_PREFIX = 'SCHILY.xattr.';
const TEXT_FIELDS = new Set(['path', 'linkpath', 'GNU.sparse.name']);

/** What one extended header says. A key that appears twice: the last counts, as everywhere. */
export interface PaxRecords {
  text: Map<string, string>;
  xattrs: Map<string, Uint8Array> | undefined;
  /** Offset/length pairs of GNU sparse format 0.0, in the order written. */
  sparsePairs: string[] | undefined;
}

/** Parses the body of one `x` header. `offset`: position of the header in the decompressed tar, for errors. */
export function parsePax(body: Buffer, offset: number): PaxRecords {
  const records: PaxRecords = { text: new Map(), xattrs: undefined, sparsePairs: undefined };
  let position = 0;
  while (position < body.length) {
    let digits = position;
    let length = 0;
    while (digits < body.length && body[digits]! >= 0x30 && body[digits]! <= 0x39 && digits - position < 8) {
      length = length * 10 + (body[digits]! - 0x30);
      digits += 1;
    }
    const end = position + length;
    if (digits === position || body[digits] !== 0x20 || end > body.length || end < digits + 3 || body[end - 1] !== 0x0a) {
      // Some writers fill the rest with NULs.
      if (body.subarray(position).every((byte) => byte === 0)) return records;
      throw tarError(offset, '', `PAX record at byte ${position} of its header has no valid length`);
    }
    const equals = body.indexOf(0x3d, digits + 1);
    if (equals < 0 || equals >= end - 1) throw tarError(offset, '', `PAX record at byte ${position} of its header has no "="`);
    const key = body.toString('latin1', digits + 1, equals);
    store(records, key, body.subarray(equals + 1, end - 1), offset);
    position = end;
  }
  return records;
}

function store(records: PaxRecords, key: string, value: Buffer, offset: number): void {
  if (key.startsWith(XATTR_PREFIX)) {
    records.xattrs ??= new Map();
    // Copied: the header's buffer is large and would live as long as the attribute.
    records.xattrs.set(key.slice(XATTR_PREFIX.length), Uint8Array.from(value));
    return;
  }
  const text = value.toString('latin1');
  if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') {
    records.sparsePairs ??= [];
    const isOffset = key === 'GNU.sparse.offset';
    if ((records.sparsePairs.length % 2 === 0) !== isOffset) {
      throw tarError(offset, '', 'GNU.sparse.offset and GNU.sparse.numbytes do not alternate');
    }
    records.sparsePairs.push(text);
    return;
  }
  if (TEXT_FIELDS.has(key) && text.includes('\0')) throw tarError(offset, '', `PAX ${key} holds a NUL byte`);
  // An empty value takes the key back.
  if (text === '') records.text.delete(key);
  else records.text.set(key, text);
}

/** A decimal number of a PAX record that must be a whole number from 0 to 2^53-1. */
export function parsePaxInteger(text: string, key: string, offset: number): number {
  const value = /^[0-9]{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (!Number.isSafeInteger(value)) throw tarError(offset, '', `PAX ${key} is "${text.slice(0, 40)}", not a number below 2^53`);
  return value;
}

/** A PAX time, `[-]seconds[.fraction]`, as whole seconds (floor) and nanoseconds; further digits are cut off. */
export function parsePaxTime(text: string, key: string, offset: number): { seconds: number; nanoseconds: number } {
  const match = /^(-?)([0-9]{1,15})(?:\.([0-9]*))?$/.exec(text);
  if (match === null) throw tarError(offset, '', `PAX ${key} is "${text.slice(0, 40)}", not a time`);
  const seconds = Number(match[2]);
  const nanoseconds = Number((match[3] ?? '').slice(0, 9).padEnd(9, '0'));
  if (match[1] === '') return { seconds, nanoseconds };
  return nanoseconds === 0 ? { seconds: 0 - seconds, nanoseconds: 0 } : { seconds: -seconds - 1, nanoseconds: 1e9 - nanoseconds };
}
