/** Writes tars byte by byte, so that a test decides about every field; names are byte strings. Source: POSIX.1-2017 pax, GNU tar manual. */

export interface RawEntry {
  name: string;
  /** Type flag; default '0'. */
  type?: string;
  mode?: number;
  uid?: number;
  gid?: number;
  size?: number;
  mtime?: number;
  linkName?: string;
  devMajor?: number;
  devMinor?: number;
  content?: Uint8Array | string;
  magic?: string;
  /** Bytes written over the header before its checksum, by offset. */
  patch?: Record<number, Uint8Array | string>;
  /** Written as an `x` header in front. Values are byte strings. */
  pax?: readonly (readonly [string, string | Uint8Array])[];
  checksum?: 'signed' | 'wrong';
}

const bytesOf = (value: Uint8Array | string): Buffer => (typeof value === 'string' ? Buffer.from(value, 'latin1') : Buffer.from(value));

function octal(value: number, width: number): string {
  return `${value.toString(8).padStart(width - 1, '0')}\0`;
}

/** A base-256 field. */
export function base256(value: bigint, width: number): Buffer {
  const bytes = Buffer.alloc(width);
  let rest = BigInt.asUintN(width * 8, value);
  for (let i = width - 1; i >= 0; i -= 1) {
    bytes[i] = Number(rest & 0xffn);
    rest >>= 8n;
  }
  bytes[0] = bytes[0]! | 0x80;
  return bytes;
}

export function padded(bytes: Uint8Array): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((512 - (bytes.length % 512)) % 512)]);
}

export function rawHeader(entry: RawEntry): Buffer {
  const block = Buffer.alloc(512);
  const content = bytesOf(entry.content ?? '');
  block.write(entry.name.slice(0, 100), 0, 'latin1');
  block.write(octal(entry.mode ?? 0o644, 8), 100, 'latin1');
  block.write(octal(entry.uid ?? 0, 8), 108, 'latin1');
  block.write(octal(entry.gid ?? 0, 8), 116, 'latin1');
  block.write(octal(entry.size ?? content.length, 12), 124, 'latin1');
  block.write(octal(entry.mtime ?? 1_700_000_000, 12), 136, 'latin1');
  block.write(entry.type ?? '0', 156, 'latin1');
  block.write((entry.linkName ?? '').slice(0, 100), 157, 'latin1');
  block.write(entry.magic ?? 'ustar\x0000', 257, 'latin1');
  block.write(octal(entry.devMajor ?? 0, 8), 329, 'latin1');
  block.write(octal(entry.devMinor ?? 0, 8), 337, 'latin1');
  for (const [offset, bytes] of Object.entries(entry.patch ?? {})) block.set(bytesOf(bytes), Number(offset));
  block.fill(0x20, 148, 156);
  let sum = 0;
  for (const byte of block) sum += entry.checksum === 'signed' && byte > 127 ? byte - 256 : byte;
  if (entry.checksum === 'wrong') sum += 1;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

export function paxRecord(key: string, value: string | Uint8Array): Buffer {
  const body = Buffer.concat([Buffer.from(` ${key}=`, 'latin1'), bytesOf(value), Buffer.from('\n')]);
  let length = body.length + 1;
  while (String(length).length + body.length !== length) length = String(length).length + body.length;
  return Buffer.concat([Buffer.from(String(length)), body]);
}

export function rawEntry(entry: RawEntry): Buffer {
  const parts: Buffer[] = [];
  if (entry.pax !== undefined) {
    const body = Buffer.concat(entry.pax.map(([key, value]) => paxRecord(key, value)));
    parts.push(rawEntry({ name: 'pax', type: 'x', content: body }));
  }
  parts.push(rawHeader(entry), padded(bytesOf(entry.content ?? '')));
  return Buffer.concat(parts);
}

/** A whole archive with its end mark. */
export function rawTar(entries: readonly RawEntry[]): Buffer {
  return Buffer.concat([...entries.map(rawEntry), Buffer.alloc(1024)]);
}
