/**
 * The metadata of the device that is being built, as it stands: later layers change single inodes and directory blocks and need the
 * bytes around them. Lies in one staging file; what no layer of this conversion wrote comes from the base, if there is one. Ours.
 */
import assert from 'node:assert';
import { closeSync, openSync, unlinkSync } from 'node:fs';
import { BLOCK_BYTES } from '../../image/erofs/format.ts';
import type { ReadDevice } from '../../image/erofs/layer-plan.ts';
import { readFully, writeFully } from './spool.ts';

/** A run of the device in the file. */
interface Region {
  start: number;
  end: number;
  fileOffset: number;
}

export class MetadataStore {
  private readonly path: string;
  private readonly fd: number;
  private readonly base: ReadDevice | undefined;
  /** Ascending; each layer adds one behind the others. */
  private readonly regions: Region[] = [];
  /** Blocks outside the regions that were written: root, superblock, changed blocks of the base. Block number to file offset. */
  private readonly blocks = new Map<number, number>();
  private fileEnd = 0;

  constructor(path: string, base?: ReadDevice) {
    this.path = path;
    this.base = base;
    this.fd = openSync(path, 'wx+', 0o600);
  }

  readonly read: ReadDevice = (offset, length) => {
    const target = Buffer.alloc(length);
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const region = this.regionOf(at);
      const take = Math.min(length - done, region === undefined ? BLOCK_BYTES - (at % BLOCK_BYTES) : region.end - at);
      const part = target.subarray(done, done + take);
      const block = region === undefined ? this.blocks.get(Math.floor(at / BLOCK_BYTES)) : undefined;
      if (region !== undefined) readFully(this.fd, part, region.fileOffset + at - region.start);
      else if (block !== undefined) readFully(this.fd, part, block + (at % BLOCK_BYTES));
      else if (this.base !== undefined) part.set(this.base(at, take));
      done += take;
    }
    return target;
  };

  /** Keeps whole blocks. `regionStart`: everything from there on belongs to the present layer's own region. */
  write(offset: number, bytes: Buffer, regionStart: number): void {
    assert(offset % BLOCK_BYTES === 0 && bytes.length % BLOCK_BYTES === 0);
    if (offset >= regionStart) this.extend(offset, bytes);
    else for (let done = 0; done < bytes.length; done += BLOCK_BYTES) this.replace(offset + done, bytes.subarray(done, done + BLOCK_BYTES));
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
    unlinkSync(this.path);
  }

  private extend(offset: number, bytes: Buffer): void {
    const last = this.regions.at(-1);
    if (last !== undefined && last.end === offset && last.fileOffset + last.end - last.start === this.fileEnd) last.end += bytes.length;
    else this.regions.push({ start: offset, end: offset + bytes.length, fileOffset: this.fileEnd });
    writeFully(this.fd, bytes, this.fileEnd, this.path);
    this.fileEnd += bytes.length;
  }

  private replace(offset: number, block: Buffer): void {
    const region = this.regionOf(offset);
    if (region !== undefined) {
      writeFully(this.fd, block, region.fileOffset + offset - region.start, this.path);
      return;
    }
    const number = offset / BLOCK_BYTES;
    let position = this.blocks.get(number);
    if (position === undefined) {
      position = this.fileEnd;
      this.fileEnd += BLOCK_BYTES;
      this.blocks.set(number, position);
    }
    writeFully(this.fd, block, position, this.path);
  }

  private regionOf(offset: number): Region | undefined {
    let low = 0;
    let high = this.regions.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.regions[middle]!.start <= offset) low = middle + 1;
      else high = middle;
    }
    const region = this.regions[low - 1];
    return region !== undefined && offset < region.end ? region : undefined;
  }
}
