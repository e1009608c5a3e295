/**
 * Protocol buffers by table, for the few messages that test clients speak: a message is a table of field names with number and kind.
 * Unknown fields are skipped when reading. Source: protobuf.dev, encoding. Test support only: whole messages in memory, no streaming.
 */
import { type BinaryReader, BinaryWriter, BinaryReader as Reader, WireType } from '@bufbuild/protobuf/wire';

export type Scalar = 'string' | 'bytes' | 'bool' | 'int' | 'uint64' | 'int64';

export type FieldKind = Scalar | MessageTable | { repeated: 'string' | MessageTable } | { map: true };

/** Field name → number and kind. */
export interface MessageTable {
  readonly [name: string]: readonly [number: number, kind: FieldKind];
}

/** Plain values of a message: absent fields are left out. 64-bit integers are numbers. */
export type Message = { [name: string]: unknown };

function isTable(kind: FieldKind): kind is MessageTable {
  return typeof kind === 'object' && !('repeated' in kind) && !('map' in kind);
}

function isRepeated(kind: FieldKind): kind is { repeated: 'string' | MessageTable } {
  return typeof kind === 'object' && 'repeated' in kind;
}

const isMap = (kind: FieldKind): boolean => typeof kind === 'object' && 'map' in kind && !isRepeated(kind);

export function encode(table: MessageTable, message: Message): Uint8Array<ArrayBuffer> {
  const writer = new BinaryWriter();
  for (const name of Object.keys(message)) {
    const field = table[name];
    if (field === undefined) throw new Error(`no field ${name} in a message of ${Object.keys(table).join(', ')}`);
    const value = message[name];
    if (value !== undefined) writeField(writer, field[0], field[1], value);
  }
  return writer.finish();
}

function writeField(writer: BinaryWriter, number: number, kind: FieldKind, value: unknown): void {
  if (isMap(kind)) {
    for (const [key, text] of Object.entries(value as Record<string, string>)) {
      const entry = new BinaryWriter().tag(1, WireType.LengthDelimited).string(key).tag(2, WireType.LengthDelimited).string(text);
      writer.tag(number, WireType.LengthDelimited).bytes(entry.finish());
    }
  } else if (isRepeated(kind)) {
    for (const item of value as unknown[]) writeField(writer, number, kind.repeated, item);
  } else if (isTable(kind)) {
    writer.tag(number, WireType.LengthDelimited).bytes(encode(kind, value as Message));
  } else if (kind === 'string') writer.tag(number, WireType.LengthDelimited).string(value as string);
  else if (kind === 'bytes') writer.tag(number, WireType.LengthDelimited).bytes(value as Uint8Array);
  else if (kind === 'bool') writer.tag(number, WireType.Varint).bool(value as boolean);
  else if (kind === 'int') writer.tag(number, WireType.Varint).int32(value as number);
  else if (kind === 'uint64') writer.tag(number, WireType.Varint).uint64(value as number);
  else writer.tag(number, WireType.Varint).int64(value as number);
}

export function decode(table: MessageTable, bytes: Uint8Array): Message {
  const reader = new Reader(bytes);
  const byNumber = new Map(Object.entries(table).map(([name, [number, kind]]) => [number, { name, kind }]));
  const message: Message = {};
  for (const [name, [, kind]] of Object.entries(table)) {
    if (isRepeated(kind)) message[name] = [];
    else if (isMap(kind)) message[name] = {};
  }
  while (reader.pos < reader.len) {
    const [number, wireType] = reader.tag();
    const field = byNumber.get(number);
    if (field === undefined) reader.skip(wireType, number);
    else readField(reader, message, field.name, field.kind);
  }
  return message;
}

function readField(reader: BinaryReader, message: Message, name: string, kind: FieldKind): void {
  if (isMap(kind)) {
    const entry = decode({ key: [1, 'string'], value: [2, 'string'] }, reader.bytes());
    (message[name] as Record<string, string>)[String(entry.key ?? '')] = String(entry.value ?? '');
  } else if (isRepeated(kind)) {
    (message[name] as unknown[]).push(kind.repeated === 'string' ? reader.string() : decode(kind.repeated, reader.bytes()));
  } else if (isTable(kind)) message[name] = decode(kind, reader.bytes());
  else if (kind === 'string') message[name] = reader.string();
  else if (kind === 'bytes') message[name] = reader.bytes();
  else if (kind === 'bool') message[name] = reader.bool();
  else if (kind === 'int') message[name] = reader.int32();
  // Nanoseconds since the epoch pass 2^53 and lose their last digits, which no test looks at.
  else message[name] = Number(kind === 'uint64' ? reader.uint64() : reader.int64());
}
