/**
 * The tar wrapper around a layer file, which makes a registry blob of it: detection, and both forms that writers produce.
 * See FORMAT.md.
 */
import { roundUp } from '../../base/units.ts';
import { badField, hasBytes } from '../lsmt/bytes.ts';

const BLOCK = 512;
/** Bytes from the blob's start that detection looks at. A PAX header longer than what fits in them is refused. */
export const TAR_HEAD_BYTES = 4096;
/** Size of the head that {@link encodePaxHead} produces. */
export const PAX_HEAD_BYTES = 1536;

const OP = 'open tar wrapper';
const AT = {
  mode: 100,
  uid: 108,
  gid: 116,
  size: 124,
  mtime: 136,
  checksum: 148,
  type: 156,
  magic: 257,
  version: 263,
  uname: 265,
  gname: 297,
};
const USTAR = Uint8Array.from([0x75, 0x73, 0x74, 0x61, 0x72]);
const BLANK = 0x20;

export interface Payload {
  /** Position of the layer file in the blob. */
  offsetBytes: number;
  sizeBytes: number;
}

/**
 * Looks for a wrapper in `head`, the blob's first min(blobSizeBytes, {@link TAR_HEAD_BYTES}) bytes. Without one the payload is the
 * whole blob. Throws DataLoss on a wrapper whose sizes are no numbers or whose payload does not lie in the blob.
 */
export function findPayload(head: Uint8Array, blobSizeBytes: number, subject: string): Payload {
  if (!isUstar(head)) return { offsetBytes: 0, sizeBytes: blobSizeBytes };
  let offsetBytes = BLOCK;
  let sizeBytes = 0;
  if (head[AT.type] === 0x78) {
    const paxBytes = readOctal(head, AT.size, 12, 'PAX header size', subject);
    offsetBytes = BLOCK + roundUp(paxBytes, BLOCK) + BLOCK;
    if (paxBytes > TAR_HEAD_BYTES || offsetBytes > head.length) {
      const expected = `at most ${TAR_HEAD_BYTES - 2 * BLOCK} bytes, followed by a header`;
      throw badField({ op: OP, subject, field: 'PAX header size', found: paxBytes, expected, offsetBytes: AT.size });
    }
    sizeBytes = readPaxSize(head.subarray(BLOCK, BLOCK + paxBytes), subject);
  }
  if (sizeBytes === 0) sizeBytes = readOctal(head, offsetBytes - BLOCK + AT.size, 12, 'entry size', subject);
  if (offsetBytes + sizeBytes > blobSizeBytes) {
    const expected = `at most ${blobSizeBytes - offsetBytes}, what the blob holds`;
    throw badField({ op: OP, subject, field: 'payload size', found: sizeBytes, expected, offsetBytes: AT.size });
  }
  return { offsetBytes, sizeBytes };
}

/** POSIX ustar with a right checksum. GNU headers are not wrappers (the reference does not see them either). */
function isUstar(head: Uint8Array): boolean {
  if (head.length < BLOCK || !hasBytes(head, AT.magic, USTAR) || head[AT.version] !== 0x30 || head[AT.version + 1] !== 0x30) return false;
  const text = String.fromCharCode(...head.subarray(AT.checksum, AT.checksum + 8));
  const match = /^[ \0]*([0-7]+)[ \0]*$/.exec(text);
  if (match === null) return false;
  const wanted = Number.parseInt(match[1]!, 8);
  const { unsigned, signed } = checksumsOf(head);
  return wanted === unsigned || wanted === signed;
}

function checksumsOf(header: Uint8Array): { unsigned: number; signed: number } {
  let unsigned = 0;
  let signed = 0;
  for (let i = 0; i < BLOCK; i++) {
    const byte = i >= AT.checksum && i < AT.checksum + 8 ? BLANK : header[i]!;
    unsigned += byte;
    signed += byte > 127 ? byte - 256 : byte;
  }
  return { unsigned, signed };
}

function readOctal(bytes: Uint8Array, at: number, size: number, field: string, subject: string): number {
  const text = String.fromCharCode(...bytes.subarray(at, at + size));
  const match = /^[ \0]*([0-7]*)[ \0]*$/.exec(text);
  if (match === null) {
    throw badField({ op: OP, subject, field, found: JSON.stringify(text), expected: 'octal digits', offsetBytes: at });
  }
  return match[1] === '' ? 0 : Number.parseInt(match[1]!, 8);
}

/** The `size` record of PAX data, 0 when there is none. Records are `<length> <key>=<value>\n`. */
function readPaxSize(data: Uint8Array, subject: string): number {
  let sizeBytes = 0;
  for (let at = 0; at < data.length; ) {
    const text = String.fromCharCode(...data.subarray(at, Math.min(at + 128, data.length)));
    const length = /^([0-9]{1,6}) /.exec(text);
    const recordBytes = length === null ? 0 : Number(length[1]);
    if (length === null || recordBytes < length[0].length + 2 || at + recordBytes > data.length || data[at + recordBytes - 1] !== 0x0a) {
      const expected = 'a PAX record "<length> <key>=<value>" that fits the header';
      throw badField({ op: OP, subject, field: 'PAX data', found: JSON.stringify(text.slice(0, 24)), expected, offsetBytes: BLOCK + at });
    }
    const record = text.slice(length[0].length, recordBytes - 1);
    if (record.startsWith('size=')) {
      const value = record.slice(5);
      if (!/^[0-9]{1,15}$/.test(value)) {
        const expected = 'a decimal number';
        throw badField({ op: OP, subject, field: 'PAX size', found: JSON.stringify(value), expected, offsetBytes: BLOCK + at });
      }
      sizeBytes = Number(value);
    }
    at += recordBytes;
  }
  return sizeBytes;
}

/** The reference's numbers: right-aligned octal padded with blanks, a blank behind, a NUL after that if there is room for one. */
function putBlankPadded(header: Uint8Array, at: number, value: number, digits: number, nul: boolean): void {
  const text = `${value.toString(8).padStart(digits, ' ')} `;
  for (let i = 0; i < text.length; i++) header[at + i] = text.charCodeAt(i);
  if (nul) header[at + text.length] = 0;
}

/** Go's numbers: octal padded with zeros, a NUL behind. */
function putZeroPadded(header: Uint8Array, at: number, value: number, digits: number): void {
  putText(header, at, value.toString(8).padStart(digits, '0'));
}

function putText(header: Uint8Array, at: number, text: string): void {
  for (let i = 0; i < text.length; i++) header[at + i] = text.charCodeAt(i);
}

function ustarHeader(name: string, type: string): Uint8Array {
  const header = new Uint8Array(BLOCK);
  putText(header, 0, name);
  putText(header, AT.type, type);
  putText(header, AT.magic, 'ustar');
  putText(header, AT.version, '00');
  return header;
}

/** The 1536 bytes before a payload of `payloadBytes` in the PAX form, which is what layers above the base layer use. */
export function encodePaxHead(payloadBytes: number): Uint8Array {
  const body = ` size=${payloadBytes}\n`;
  // The record's length counts its own digits; it is never above 25.
  const length = body.length + (body.length + 1 < 10 ? 1 : 2);
  const record = `${length}${body}`;

  const pax = ustarHeader('overlaybd.pax', 'x');
  putBlankPadded(pax, AT.size, record.length, 11, false);
  putBlankPadded(pax, AT.checksum, checksumsOf(pax).unsigned, 6, true);

  const entry = ustarHeader('overlaybd.commit', '0');
  putBlankPadded(entry, AT.mode, 0o100644, 6, true);
  putBlankPadded(entry, AT.uid, 0, 6, true);
  putBlankPadded(entry, AT.gid, 0, 6, true);
  putBlankPadded(entry, AT.size, 0, 11, false);
  putBlankPadded(entry, AT.mtime, 0, 11, false);
  putText(entry, AT.uname, 'root');
  putText(entry, AT.gname, 'root');
  putBlankPadded(entry, AT.checksum, checksumsOf(entry).unsigned, 6, true);

  const head = new Uint8Array(PAX_HEAD_BYTES);
  head.set(pax);
  putText(head, BLOCK, record);
  head.set(entry, 2 * BLOCK);
  return head;
}

/** The 512 bytes before a payload in the plain form, as Go's archive/tar writes them. Payloads from 8 GiB on need the PAX form. */
export function encodePlainHead(payloadBytes: number, name = 'overlaybd.commit', mode = 0o444): Uint8Array {
  const header = ustarHeader(name, '0');
  putZeroPadded(header, AT.mode, mode, 7);
  putZeroPadded(header, AT.uid, 0, 7);
  putZeroPadded(header, AT.gid, 0, 7);
  putZeroPadded(header, AT.size, payloadBytes, 11);
  putZeroPadded(header, AT.mtime, 0, 11);
  putZeroPadded(header, 329, 0, 7);
  putZeroPadded(header, 337, 0, 7);
  putZeroPadded(header, AT.checksum, checksumsOf(header).unsigned, 6);
  header[AT.checksum + 7] = BLANK;
  return header;
}

/** The bytes after a payload: zeros to a multiple of 512, then the end of the archive. */
export function encodeTail(payloadBytes: number): Uint8Array {
  return new Uint8Array(roundUp(payloadBytes, BLOCK) - payloadBytes + 2 * BLOCK);
}
