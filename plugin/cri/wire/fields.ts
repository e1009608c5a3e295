/**
 * Protocol buffers as a list of fields, for messages of which only a part is known: what is not understood keeps its bytes and its place.
 * Source: protobuf.dev, encoding. Whole messages in memory; views of the caller's bytes, valid as long as those.
 */
import { AppError } from '../../base/errors.ts';

/** One field as it stands on the wire. */
export interface Field {
  readonly number: number;
  /** 0 varint, 1 eight bytes, 2 length-delimited, 5 four bytes. */
  readonly wireType: 0 | 1 | 2 | 5;
  /** Tag and value as they came. Borrowed. */
  readonly raw: Uint8Array;
  /** The content of a length-delimited field; empty for others. Borrowed. */
  readonly content: Uint8Array;
  /** The value of a varint, cut to 53 bits; 0 for others. */
  readonly value: number;
}

/** Fields of one message: a list of ten thousand images has that many. */
const MAX_FIELDS = 50_000;
const MAX_FIELD_NUMBER = 2 ** 29 - 1;

function malformed(what: string): AppError {
  return new AppError('InvalidArgument', { op: 'read', subject: 'message', what });
}

/** A varint at `offset`: its value (exact below 2^53) and the offset behind it. */
function readVarint(bytes: Uint8Array, offset: number): [value: number, next: number] {
  let value = 0;
  for (let i = 0; i < 10; i += 1) {
    const byte = bytes[offset + i];
    if (byte === undefined) throw malformed('ends inside a varint');
    if (i < 8) value += (byte & 0x7f) * 2 ** (7 * i);
    if (byte < 0x80) return [value, offset + i + 1];
  }
  throw malformed('holds a varint of more than 10 bytes');
}

/** All fields in order. Throws InvalidArgument for bytes that are no message (groups, which nobody uses any more, included). */
export function readFields(bytes: Uint8Array): Field[] {
  const fields: Field[] = [];
  let at = 0;
  while (at < bytes.length) {
    if (fields.length >= MAX_FIELDS) throw malformed(`has more than ${MAX_FIELDS} fields`);
    const start = at;
    const [tag, afterTag] = readVarint(bytes, at);
    const number = Math.floor(tag / 8);
    const wireType = tag % 8;
    if (number < 1 || number > MAX_FIELD_NUMBER) throw malformed(`has a field of number ${number}`);
    let value = 0;
    let contentStart = afterTag;
    let end: number;
    if (wireType === 0) {
      [value, end] = readVarint(bytes, afterTag);
      contentStart = end;
    } else if (wireType === 2) {
      const [length, next] = readVarint(bytes, afterTag);
      contentStart = next;
      end = next + length;
    } else if (wireType === 1 || wireType === 5) {
      end = afterTag + (wireType === 1 ? 8 : 4);
      contentStart = end;
    } else throw malformed(`has a field of wire type ${wireType}`);
    if (end > bytes.length) throw malformed(`has a field of ${end - contentStart} bytes where ${bytes.length - contentStart} are left`);
    fields.push({ number, wireType, raw: bytes.subarray(start, end), content: bytes.subarray(contentStart, end), value });
    at = end;
  }
  return fields;
}

/** The last length-delimited field of a number, as the format wants it for fields that are there once. */
export function contentOf(fields: readonly Field[], number: number): Uint8Array | undefined {
  return fields.findLast((field) => field.number === number && field.wireType === 2)?.content;
}

/** Text of a field; empty when it is absent. Bytes that are no UTF-8 become replacement characters, which match nothing. */
export function textOf(fields: readonly Field[], number: number): string {
  const content = contentOf(fields, number);
  return content === undefined ? '' : Buffer.from(content.buffer, content.byteOffset, content.length).toString('utf8');
}

/** The value of a varint field; 0 when it is absent. */
export function numberOf(fields: readonly Field[], number: number): number {
  return fields.findLast((field) => field.number === number && field.wireType === 0)?.value ?? 0;
}

/** A `map<string, string>`; the last of equal keys counts. Has no prototype, so no key means something else. */
export function mapOf(fields: readonly Field[], number: number): Readonly<Record<string, string>> {
  const map: Record<string, string> = Object.create(null) as Record<string, string>;
  for (const field of fields) {
    if (field.number !== number || field.wireType !== 2) continue;
    const entry = readFields(field.content);
    map[textOf(entry, 1)] = textOf(entry, 2);
  }
  return map;
}

/** All texts of a repeated field. */
export function textsOf(fields: readonly Field[], number: number): string[] {
  return fields
    .filter((field) => field.number === number && field.wireType === 2)
    .map(({ content }) => Buffer.from(content).toString('utf8'));
}

function varint(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  while (rest >= 0x80) {
    bytes.push((rest % 0x80) | 0x80);
    rest = Math.floor(rest / 0x80);
  }
  bytes.push(rest);
  return bytes;
}

/** A length-delimited field. */
export function bytesField(number: number, content: Uint8Array): Uint8Array {
  return Buffer.concat([Uint8Array.from([...varint(number * 8 + 2), ...varint(content.length)]), content]);
}

/** A string field; nothing for the empty string, which is the default. */
export function textField(number: number, text: string): Uint8Array {
  return text === '' ? new Uint8Array() : bytesField(number, Buffer.from(text, 'utf8'));
}

/** A varint field; nothing for 0, which is the default. Non-negative safe integers. */
export function numberField(number: number, value: number): Uint8Array {
  return value === 0 ? new Uint8Array() : Uint8Array.from([...varint(number * 8), ...varint(value)]);
}

/** The message with every field of `number` replaced by `field`, which comes last; all else byte for byte. */
export function withField(fields: readonly Field[], number: number, field: Uint8Array): Uint8Array {
  return Buffer.concat([...fields.filter((one) => one.number !== number).map((one) => one.raw), field]);
}

/** The message with each length-delimited field of `number` replaced by what `change` makes of its content; all else byte for byte. */
export function mapFields(fields: readonly Field[], number: number, change: (content: Uint8Array) => Uint8Array): Uint8Array {
  return Buffer.concat(
    fields.map((one) => (one.number === number && one.wireType === 2 ? bytesField(number, change(one.content)) : one.raw)),
  );
}
