/**
 * What the dynamic loader brings when a program starts: its interpreter, its libraries and where the program wants them looked for. Source:
 * elf(5), the System V ABI (program header, dynamic section). Little-endian 64-bit files, which is what machines of this product run.
 */

export interface ElfNeeds {
  /** `/lib64/ld-linux-x86-64.so.2`; undefined: statically linked, or a library. */
  readonly interpreter: string | undefined;
  /** File names, in order. */
  readonly libraries: readonly string[];
  /** DT_RUNPATH or DT_RPATH as it is written, `$ORIGIN` included. */
  readonly searchPath: readonly string[];
}

/** Bytes at an offset; fewer at the end of the file. */
export type ReadAt = (offsetBytes: number, lengthBytes: number) => Buffer;

const HEADER_BYTES = 64;
const PROGRAM_HEADER_BYTES = 56;
/** A program has a dozen. */
const MAX_PROGRAM_HEADERS = 128;
const MAX_DYNAMIC_BYTES = 64 * 1024;
/** Names in one string table; glibc itself has 30 KiB. */
const MAX_STRINGS_BYTES = 4 * 1024 * 1024;
const MAX_LIBRARIES = 256;
const MAX_NAME_CHARS = 4096;

const PT_LOAD = 1;
const PT_DYNAMIC = 2;
const PT_INTERP = 3;
const DT_NEEDED = 1;
const DT_STRTAB = 5;
const DT_STRSZ = 10;
const DT_RPATH = 15;
const DT_RUNPATH = 29;

interface Segment {
  type: number;
  offset: number;
  address: number;
  fileBytes: number;
}

/** Undefined: no such file, or one that makes no sense; whoever runs it will say so. */
export function readElf(readAt: ReadAt): ElfNeeds | undefined {
  const header = readAt(0, HEADER_BYTES);
  if (header.length < HEADER_BYTES || header.readUInt32BE(0) !== 0x7f454c46 || header[4] !== 2 || header[5] !== 1) return undefined;
  const count = header.readUInt16LE(56);
  if (header.readUInt16LE(54) !== PROGRAM_HEADER_BYTES || count > MAX_PROGRAM_HEADERS) return undefined;
  const table = readAt(Number(header.readBigUInt64LE(32)), count * PROGRAM_HEADER_BYTES);
  if (table.length < count * PROGRAM_HEADER_BYTES) return undefined;
  const segments = Array.from({ length: count }, (_, i) => segmentAt(table, i * PROGRAM_HEADER_BYTES));
  const interpreter = segments.find(({ type }) => type === PT_INTERP);
  const name = interpreter === undefined ? '' : textAt(readAt(interpreter.offset, Math.min(interpreter.fileBytes, MAX_NAME_CHARS)), 0);
  return { interpreter: name === '' ? undefined : name, ...dynamicOf(segments, readAt) };
}

function segmentAt(table: Buffer, at: number): Segment {
  return {
    type: table.readUInt32LE(at),
    offset: Number(table.readBigUInt64LE(at + 8)),
    address: Number(table.readBigUInt64LE(at + 16)),
    fileBytes: Number(table.readBigUInt64LE(at + 32)),
  };
}

function dynamicOf(segments: readonly Segment[], readAt: ReadAt): Pick<ElfNeeds, 'libraries' | 'searchPath'> {
  const none = { libraries: [], searchPath: [] };
  const segment = segments.find(({ type }) => type === PT_DYNAMIC);
  if (segment === undefined) return none;
  const bytes = readAt(segment.offset, Math.min(segment.fileBytes, MAX_DYNAMIC_BYTES));
  const entries: { tag: number; value: number }[] = [];
  for (let at = 0; at + 16 <= bytes.length; at += 16) {
    const tag = Number(bytes.readBigInt64LE(at));
    if (tag === 0) break;
    entries.push({ tag, value: Number(bytes.readBigUInt64LE(at + 8)) });
  }
  const entryOf = (tag: number): number | undefined => entries.find((entry) => entry.tag === tag)?.value;
  const address = entryOf(DT_STRTAB);
  const size = entryOf(DT_STRSZ);
  const holder = segments.find(
    (s) => s.type === PT_LOAD && address !== undefined && address >= s.address && address < s.address + s.fileBytes,
  );
  if (address === undefined || size === undefined || holder === undefined || size > MAX_STRINGS_BYTES) return none;
  const strings = readAt(address - holder.address + holder.offset, size);
  const paths = textAt(strings, entryOf(DT_RUNPATH) ?? entryOf(DT_RPATH) ?? strings.length);
  return {
    libraries: entries
      .filter(({ tag }) => tag === DT_NEEDED)
      .slice(0, MAX_LIBRARIES)
      .map(({ value }) => textAt(strings, value))
      .filter((library) => library !== ''),
    searchPath: paths.split(':').filter((path) => path !== ''),
  };
}

/** The text that ends with a zero; empty where there is none. */
function textAt(bytes: Buffer, at: number): string {
  if (at >= bytes.length) return '';
  const end = bytes.indexOf(0, at);
  return bytes.toString('utf8', at, Math.min(end === -1 ? bytes.length : end, at + MAX_NAME_CHARS));
}
