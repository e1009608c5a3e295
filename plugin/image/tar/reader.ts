/**
 * A tar reader that is fed chunk by chunk and calls a handler; it holds at most one header, one meta header's body (1 MiB) or one
 * sparse map. Sources: POSIX.1-2017 pax, GNU tar manual. Where readers differ it follows Go's archive/tar, which containerd uses:
 * global headers are ignored, a GNU long name beats a PAX path, links and devices have no content whatever their size says.
 *
 *   header ──► meta (x, L, K, g) ──► header
 *     │  └──► gnuPairs (S, extended) ─┐
 *     │  └──► sparseMap (PAX 1.0) ────┤
 *     └────────────────────────────────┴─► content ─► padding ─► header … zero block ─► zero block ─► end (the rest is ignored)
 */
import { applyPaxSparse, type MetaHeaders, makeEntry, paddedBytes, type TarEntry } from './entry.ts';
import { tarError } from './errors.ts';
import { BLOCK_BYTES, isZeroBlock, parseHeader, parseNumber, type RawHeader, verifyChecksum } from './header.ts';
import { MAX_META_BYTES, MAX_META_HEADERS, MAX_SPARSE_MAP_BYTES } from './limits.ts';
import { parsePax } from './pax.ts';
import { checkSparseMap, parseInlineMap, readGnuPairs, type SparseSegment } from './sparse.ts';

/** Receives what the reader finds, in the order of the tar. What a method throws passes through {@link TarReader.push}. */
export interface TarHandler {
  /** An object; for a file with content, calls of `content` follow, then `entryEnd` in any case. */
  entry(entry: TarEntry): void;
  /** Bytes of the file at `fileOffset`, ascending; gaps are holes. Borrowed: valid during the call only. */
  content(bytes: Buffer, fileOffset: number): void;
  entryEnd(): void;
  /** After `entryEnd`: what follows the content up to the next header, zeros in any sound tar. Borrowed. */
  padding?(bytes: Buffer): void;
}

type State = 'header' | 'meta' | 'gnuPairs' | 'sparseMap' | 'content' | 'padding' | 'end';

const NO_META = (headerOffset: number): MetaHeaders => ({ pax: undefined, gnuLongName: undefined, gnuLongLink: undefined, headerOffset });

export class TarReader {
  private readonly handler: TarHandler;
  private state: State = 'header';
  /** Bytes of the tar consumed so far. */
  private position = 0;
  /** Bytes collected for the present state, and how many it wants. */
  private readonly block = Buffer.alloc(BLOCK_BYTES);
  private collected: Buffer = this.block;
  private have = 0;
  private want = BLOCK_BYTES;
  private zeroBlocks = 0;
  private metaType = '';
  private metaBytes = 0;
  private metaCount = 0;
  private meta = NO_META(0);
  private entry: TarEntry | undefined;
  private pairs: SparseSegment[] = [];
  private segmentIndex = 0;
  private contentDone = 0;
  private skipBytes = 0;

  constructor(handler: TarHandler) {
    this.handler = handler;
  }

  /** Bytes of the decompressed tar taken so far. */
  get positionBytes(): number {
    return this.position;
  }

  /** Name of the entry whose content is being read, a byte string; undefined between entries. */
  get entryName(): string | undefined {
    return this.entry?.name;
  }

  /** Takes the next bytes (any number). Throws AppError InvalidArgument, Unimplemented or ResourceExhausted; then it is unusable. */
  push(chunk: Buffer): void {
    let at = 0;
    while (at < chunk.length) {
      if (this.state === 'content') at += this.takeContent(chunk, at);
      else if (this.state === 'padding') at += this.takePadding(chunk, at);
      else if (this.state === 'end') {
        this.position += chunk.length - at;
        return;
      } else at += this.collect(chunk, at);
    }
  }

  /** The stream is over. Throws unless it ended between entries. */
  end(): void {
    if (this.state === 'end') return;
    if (this.state === 'header' && this.have === 0 && this.metaCount === 0) return;
    throw tarError(this.position, this.entry?.name ?? '', 'the archive ends here, in the middle of an entry', 'DataLoss');
  }

  private collect(chunk: Buffer, at: number): number {
    const take = Math.min(this.want - this.have, chunk.length - at);
    if (this.have === 0 && take === this.want && this.want === BLOCK_BYTES) {
      this.position += take;
      this.process(chunk.subarray(at, at + take));
      return take;
    }
    chunk.copy(this.collected, this.have, at, at + take);
    this.have += take;
    this.position += take;
    if (this.have === this.want) {
      this.have = 0;
      this.process(this.collected);
    }
    return take;
  }

  private process(bytes: Buffer): void {
    if (this.state === 'header') this.onHeader(bytes);
    else if (this.state === 'meta') this.onMeta(bytes);
    else if (this.state === 'gnuPairs') this.onGnuPairs(bytes);
    else this.onSparseMap(bytes);
  }

  private expect(state: State, bytes: number): void {
    this.state = state;
    this.want = bytes;
    this.have = 0;
    this.collected = bytes === BLOCK_BYTES ? this.block : Buffer.allocUnsafe(bytes);
  }

  private onHeader(block: Buffer): void {
    const offset = this.position - BLOCK_BYTES;
    if (isZeroBlock(block)) {
      if (this.metaCount > 0) throw tarError(offset, '', 'the archive ends after a header that describes a further entry', 'DataLoss');
      this.zeroBlocks += 1;
      if (this.zeroBlocks === 2) this.state = 'end';
      return;
    }
    if (this.zeroBlocks > 0) throw tarError(offset, '', 'a header follows a single zero block');
    verifyChecksum(block, offset);
    const raw = parseHeader(block, offset);
    if (this.metaCount === 0) this.meta = NO_META(offset);
    if ('xgLK'.includes(raw.typeFlag)) this.beginMeta(raw, offset);
    else this.beginEntry(raw, block);
  }

  private beginMeta(raw: RawHeader, offset: number): void {
    this.metaCount += 1;
    if (this.metaCount > MAX_META_HEADERS) {
      throw tarError(offset, '', `more than ${MAX_META_HEADERS} extended headers before one entry`, 'ResourceExhausted');
    }
    if (raw.sizeBytes < 0 || raw.sizeBytes > MAX_META_BYTES) {
      throw tarError(offset, '', `extended header of ${raw.sizeBytes} bytes, at most ${MAX_META_BYTES} are allowed`, 'ResourceExhausted');
    }
    this.metaType = raw.typeFlag;
    this.metaBytes = raw.sizeBytes;
    if (raw.sizeBytes > 0) this.expect('meta', paddedBytes(raw.sizeBytes));
    else if (raw.typeFlag === 'g') this.metaCount -= 1;
  }

  private onMeta(padded: Buffer): void {
    const body = padded.subarray(0, this.metaBytes);
    const offset = this.position - padded.length - BLOCK_BYTES;
    if (this.metaType === 'x') this.meta.pax = parsePax(body, offset);
    else if (this.metaType === 'g') {
      // Says nothing about the next entry; how many there may be is bounded by the size of the stream.
      this.metaCount -= 1;
    } else {
      const zero = body.indexOf(0);
      const text = body.toString('latin1', 0, zero < 0 ? body.length : zero);
      if (this.metaType === 'L') this.meta.gnuLongName = text;
      else this.meta.gnuLongLink = text;
    }
    this.expect('header', BLOCK_BYTES);
  }

  private beginEntry(raw: RawHeader, block: Buffer): void {
    const entry = makeEntry(raw, this.meta, this.position);
    this.entry = entry;
    if (raw.typeFlag === 'S') {
      this.pairs = [];
      entry.sizeBytes = parseNumber(block, 483, 12, 'real size', entry.headerOffset);
      if (entry.sizeBytes < 0) throw tarError(entry.headerOffset, entry.name, `sparse file of ${entry.sizeBytes} bytes`);
      readGnuPairs(block, 386, 4, this.pairs, entry.headerOffset);
      if (block[482] !== 0) this.expect('gnuPairs', BLOCK_BYTES);
      else this.finishPairs(entry);
    } else if (applyPaxSparse(entry, this.meta.pax)) {
      // The map is at least one block; onSparseMap asks for more when it is not all there.
      if (entry.storedBytes < BLOCK_BYTES) throw tarError(entry.headerOffset, entry.name, 'sparse file without its map');
      this.expect('sparseMap', BLOCK_BYTES);
    } else this.emitEntry(entry);
  }

  private onGnuPairs(block: Buffer): void {
    const entry = this.entry!;
    readGnuPairs(block, 0, 21, this.pairs, entry.headerOffset);
    entry.contentOffset = this.position;
    if (block[504] === 0) this.finishPairs(entry);
  }

  private finishPairs(entry: TarEntry): void {
    entry.segments = checkSparseMap(this.pairs, entry.sizeBytes, entry.storedBytes, entry.headerOffset);
    this.emitEntry(entry);
  }

  private onSparseMap(bytes: Buffer): void {
    const entry = this.entry!;
    const parsed = parseInlineMap(bytes, entry.headerOffset);
    if (parsed === undefined) {
      // Doubling keeps the work linear in the size of the map.
      const larger = Math.min(bytes.length * 2, paddedBytes(entry.storedBytes));
      if (larger === bytes.length || larger > MAX_SPARSE_MAP_BYTES) {
        throw tarError(entry.headerOffset, entry.name, `sparse map is not complete after ${bytes.length} bytes`);
      }
      const grown = Buffer.allocUnsafe(larger);
      bytes.copy(grown);
      this.collected = grown;
      this.have = bytes.length;
      this.want = larger;
      return;
    }
    const rest = Buffer.from(bytes.subarray(parsed.mapBytes));
    entry.contentOffset += parsed.mapBytes;
    entry.storedBytes -= parsed.mapBytes;
    if (entry.storedBytes < 0) throw tarError(entry.headerOffset, entry.name, 'sparse map is larger than the stored content');
    entry.segments = checkSparseMap(parsed.segments, entry.sizeBytes, entry.storedBytes, entry.headerOffset);
    this.emitEntry(entry);
    // What was read beyond the map is content already.
    this.position -= rest.length;
    this.push(rest);
  }

  private emitEntry(entry: TarEntry): void {
    this.metaCount = 0;
    this.handler.entry(entry);
    this.segmentIndex = 0;
    this.contentDone = 0;
    const contentBytes = entry.segments?.reduce((sum, segment) => sum + segment.lengthBytes, 0) ?? entry.storedBytes;
    this.skipBytes = paddedBytes(entry.storedBytes) - contentBytes;
    if (contentBytes > 0) this.state = 'content';
    else this.finishEntry();
  }

  private finishEntry(): void {
    this.handler.entryEnd();
    this.entry = undefined;
    if (this.skipBytes > 0) this.state = 'padding';
    else this.expect('header', BLOCK_BYTES);
  }

  private takeContent(chunk: Buffer, at: number): number {
    const entry = this.entry!;
    const segment = entry.segments?.[this.segmentIndex];
    const fileOffset = segment === undefined ? this.contentDone : segment.offsetBytes + this.contentDone;
    const length = segment === undefined ? entry.storedBytes : segment.lengthBytes;
    const take = Math.min(length - this.contentDone, chunk.length - at);
    this.handler.content(chunk.subarray(at, at + take), fileOffset);
    this.contentDone += take;
    this.position += take;
    if (this.contentDone === length) {
      this.contentDone = 0;
      this.segmentIndex += 1;
      if (entry.segments === undefined || this.segmentIndex === entry.segments.length) this.finishEntry();
    }
    return take;
  }

  private takePadding(chunk: Buffer, at: number): number {
    const take = Math.min(this.skipBytes, chunk.length - at);
    this.handler.padding?.(chunk.subarray(at, at + take));
    this.skipBytes -= take;
    this.position += take;
    if (this.skipBytes === 0) this.expect('header', BLOCK_BYTES);
    return take;
  }
}
