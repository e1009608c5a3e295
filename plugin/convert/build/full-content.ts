/** Full mode: content of files goes into the layer itself, small files behind their inodes. Ours. */
import { KIB } from '../../base/units.ts';
import type { TarEntry } from '../../image/tar/entry.ts';
import { type ExtentSink, FileBlocks } from './file-blocks.ts';
import type { ContentSink } from './layer-applier.ts';
import type { Spool } from './spool.ts';

/**
 * Files up to this size lie behind their inodes: looking a small file up brings its content along. Larger ones would swell the metadata
 * that a tree walk reads, for a saving (the rest of a block) that compression makes anyway.
 */
const INLINE_LIMIT_BYTES = 2 * KIB;

export class FullContent implements ContentSink {
  readonly inlineLimitBytes = INLINE_LIMIT_BYTES;
  private readonly blocks: FileBlocks;
  private readonly files: Spool;

  constructor(sink: ExtentSink, files: Spool) {
    this.blocks = new FileBlocks(sink);
    this.files = files;
  }

  spool(bytes: Buffer): number {
    return this.files.append(bytes);
  }

  begin(_entry: TarEntry, deviceOffset: number): void {
    this.blocks.begin(deviceOffset);
  }

  write(bytes: Buffer, fileOffset: number): void {
    this.blocks.write(bytes, fileOffset);
  }

  end(sizeBytes: number): void {
    this.blocks.end(sizeBytes);
  }
}
