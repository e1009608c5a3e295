/**
 * Keeps of a tar what an index-only layer stores itself: the entries, small files, pieces of sparse files that lie in no sectors, and the
 * end of a file whose last sector holds something else behind it (a sound tar has zeros there). Ours.
 */
import { SECTOR_BYTES } from '../../../base/units.ts';
import type { TarEntry } from '../../../image/tar/entry.ts';
import type { TarHandler } from '../../../image/tar/reader.ts';
import { mappedRuns } from './mapped-runs.ts';
import type { TarRecord } from './tar-records.ts';

/** Padding never fills a sector. */
const ZEROS = Buffer.alloc(SECTOR_BYTES);

export class EntryRecorder implements TarHandler {
  private readonly inlineLimitBytes: number;
  private readonly push: (record: TarRecord) => void;
  private isOpen = false;
  private keepsAll = false;
  /** The part of the last sector that belongs to the file, and where it begins. */
  private readonly tail = Buffer.alloc(SECTOR_BYTES);
  private tailOffset = 0;
  private tailBytes = 0;
  entryCount = 0;
  /** Runs that become records of the layer's index. */
  runCount = 0;
  /** Content that the layer stores itself. */
  keptBytes = 0;

  constructor(inlineLimitBytes: number, push: (record: TarRecord) => void) {
    this.inlineLimitBytes = inlineLimitBytes;
    this.push = push;
  }

  entry(entry: TarEntry): void {
    this.close();
    this.entryCount += 1;
    this.isOpen = true;
    this.tailBytes = 0;
    const runs = entry.type === 'file' ? mappedRuns(entry) : [];
    this.keepsAll = runs === undefined || entry.sizeBytes <= this.inlineLimitBytes;
    if (runs !== undefined && !this.keepsAll) this.runCount += runs.length;
    const last = runs?.at(-1);
    this.tailOffset = last === undefined ? 0 : last.fileOffset + Math.floor(last.lengthBytes / SECTOR_BYTES) * SECTOR_BYTES;
    this.push(entry);
  }

  content(bytes: Buffer, fileOffset: number): void {
    if (this.keepsAll) {
      this.keptBytes += bytes.length;
      this.push({ fileOffset, bytes: Buffer.from(bytes) });
      return;
    }
    const end = fileOffset + bytes.length;
    if (end <= this.tailOffset) return;
    const from = Math.max(fileOffset, this.tailOffset);
    bytes.copy(this.tail, from - this.tailOffset, from - fileOffset);
    this.tailBytes = end - this.tailOffset;
  }

  /** The end is told when it is known what follows the content. */
  entryEnd(): void {}

  padding(bytes: Buffer): void {
    if (this.tailBytes === 0 || bytes.equals(ZEROS.subarray(0, bytes.length))) return;
    this.keptBytes += this.tailBytes;
    this.push({ fileOffset: this.tailOffset, bytes: Buffer.from(this.tail.subarray(0, this.tailBytes)) });
    this.tailBytes = 0;
  }

  /** Ends the last entry; call at the end of the tar. */
  close(): void {
    if (this.isOpen) this.push(null);
    this.isOpen = false;
  }
}
