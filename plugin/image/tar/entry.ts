/** What a tar says about one object, after all its headers were read. Ours. */
import { tarError } from './errors.ts';
import { BLOCK_BYTES, type RawHeader } from './header.ts';
import { MAX_CONTENT_BYTES, MAX_PATH_BYTES } from './limits.ts';
import { type PaxRecords, parsePaxInteger, parsePaxTime } from './pax.ts';
import { checkSparseMap, paxSparseMap, type SparseSegment } from './sparse.ts';

export type TarEntryType = 'file' | 'hardlink' | 'symlink' | 'char' | 'block' | 'directory' | 'fifo';

export interface TarEntry {
  type: TarEntryType;
  /** Byte string (latin1), as written; see pathParts. */
  name: string;
  /** Target of a link, byte string as written; else empty. */
  linkName: string;
  /** Permission bits with setuid, setgid and sticky; no file type. */
  mode: number;
  uid: number;
  gid: number;
  mtimeSeconds: number;
  mtimeNanoseconds: number;
  devMajor: number;
  devMinor: number;
  /** Size of the file (holes included); 0 for everything else. */
  sizeBytes: number;
  /** Position of the entry's first header in the decompressed tar. */
  headerOffset: number;
  /** Position and length of the stored bytes in the decompressed tar. The position is a multiple of 512. */
  contentOffset: number;
  storedBytes: number;
  /** Sparse files: where the stored bytes belong, ascending; everything between reads as zeros. */
  segments: SparseSegment[] | undefined;
  /** Names are byte strings. */
  xattrs: Map<string, Uint8Array> | undefined;
}

/** Headers that came before the one that names the object. */
export interface MetaHeaders {
  pax: PaxRecords | undefined;
  gnuLongName: string | undefined;
  gnuLongLink: string | undefined;
  /** Where the first of them begins. */
  headerOffset: number;
}

const TYPES: Readonly<Record<string, TarEntryType>> = {
  '0': 'file',
  '\0': 'file',
  '7': 'file',
  S: 'file',
  '1': 'hardlink',
  '2': 'symlink',
  '3': 'char',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
};

const UINT32_MAX = 0xffff_ffff;

/** Joins a header with those before it. For a sparse file whose map follows, `segments` stays undefined until the reader has it. */
export function makeEntry(raw: RawHeader, meta: MetaHeaders, headerEnd: number): TarEntry {
  const offset = meta.headerOffset;
  const text = meta.pax?.text;
  const name = meta.gnuLongName ?? text?.get('GNU.sparse.name') ?? text?.get('path') ?? raw.name;
  let type = TYPES[raw.typeFlag];
  if (type === undefined) {
    throw tarError(offset, name, `type ${JSON.stringify(raw.typeFlag)} is not one that an image layer may hold`, 'Unimplemented');
  }
  // Before POSIX a directory was a file whose name ends in a slash.
  if (type === 'file' && raw.typeFlag !== 'S' && name.endsWith('/')) type = 'directory';
  const linkName = meta.gnuLongLink ?? text?.get('linkpath') ?? raw.linkName;
  if ((type === 'symlink' || type === 'hardlink') && (linkName === '' || linkName.length > MAX_PATH_BYTES)) {
    throw tarError(offset, name, `link target has ${linkName.length} bytes, 1 to ${MAX_PATH_BYTES} are allowed`);
  }
  const integer = (key: string, value: number): number => {
    const record = text?.get(key);
    return record === undefined ? value : parsePaxInteger(record, key, offset);
  };
  const mtime = text?.get('mtime');
  const time = mtime === undefined ? { seconds: raw.mtimeSeconds, nanoseconds: 0 } : parsePaxTime(mtime, 'mtime', offset);
  const isFile = type === 'file';
  const storedBytes = isFile ? integer('size', raw.sizeBytes) : 0;
  if (storedBytes < 0 || storedBytes > MAX_CONTENT_BYTES - headerEnd) throw tarError(offset, name, `size is ${storedBytes} bytes`);
  const entry: TarEntry = {
    type,
    name,
    linkName: type === 'symlink' || type === 'hardlink' ? linkName : '',
    mode: raw.mode & 0o7777,
    uid: integer('uid', raw.uid),
    gid: integer('gid', raw.gid),
    mtimeSeconds: time.seconds,
    mtimeNanoseconds: time.nanoseconds,
    devMajor: raw.devMajor,
    devMinor: raw.devMinor,
    sizeBytes: storedBytes,
    headerOffset: offset,
    contentOffset: headerEnd,
    storedBytes,
    segments: undefined,
    xattrs: meta.pax?.xattrs,
  };
  if (entry.uid < 0 || entry.uid > UINT32_MAX || entry.gid < 0 || entry.gid > UINT32_MAX) {
    throw tarError(offset, name, `owner ${entry.uid}:${entry.gid} does not fit 32 bits`);
  }
  if (entry.devMajor < 0 || entry.devMajor > 0xfff || entry.devMinor < 0 || entry.devMinor > 0xfffff) {
    throw tarError(offset, name, `device ${entry.devMajor}:${entry.devMinor} is beyond 4095:1048575`);
  }
  return entry;
}

/** Applies PAX sparse records 0.0 and 0.1; returns true when the map of format 1.0 still has to be read from the content. */
export function applyPaxSparse(entry: TarEntry, pax: PaxRecords | undefined): boolean {
  if (pax === undefined || entry.type !== 'file') return false;
  const offset = entry.headerOffset;
  const major = pax.text.get('GNU.sparse.major');
  const isInline = major === '1' && pax.text.get('GNU.sparse.minor') === '0';
  const segments = isInline ? undefined : paxSparseMap(pax, offset);
  if (!isInline && segments === undefined) return false;
  const size = pax.text.get('GNU.sparse.realsize') ?? pax.text.get('GNU.sparse.size');
  if (size === undefined) throw tarError(offset, entry.name, 'sparse file without GNU.sparse.realsize or GNU.sparse.size');
  entry.sizeBytes = parsePaxInteger(size, 'GNU.sparse.size', offset);
  if (entry.sizeBytes > MAX_CONTENT_BYTES) throw tarError(offset, entry.name, `sparse file of ${entry.sizeBytes} bytes`);
  if (isInline) return true;
  entry.segments = checkSparseMap(segments!, entry.sizeBytes, entry.storedBytes, offset);
  return false;
}

/** Bytes that the stored content takes in the tar, padding included. */
export function paddedBytes(storedBytes: number): number {
  return Math.ceil(storedBytes / BLOCK_BYTES) * BLOCK_BYTES;
}
