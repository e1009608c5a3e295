/**
 * All inodes of the file system that is being built, as parallel arrays: 64 bytes an inode instead of an object each. Ours.
 * Together with its directory entry (a map slot and its name) an object takes about 250 bytes; see tree.ts for the measured bound.
 */
import { AppError } from '../../base/errors.ts';
import { MODE_TYPE, S_IFMT } from './format.ts';

/** More objects than this are refused: at 500 bytes each they pass the 4 GiB that a conversion may use. */
export const MAX_INODES = 6_000_000;

/** Where an inode's content is. Before its layer is finished: in the tar's device blocks or the spool; after: on the device. */
export const CONTENT = {
  /** None: empty file, device, fifo; a directory (its entries are the tree's). */
  none: 0,
  /** Device blocks from byte `content` on. */
  blocks: 1,
  /** Spool bytes from `content` on, to be stored behind the inode. */
  spool: 2,
  /** Behind the inode on the device. */
  inline: 3,
} as const;

export class InodeTable {
  count = 1;
  mode = new Uint16Array(1024);
  uid = new Uint32Array(1024);
  gid = new Uint32Array(1024);
  mtimeSeconds = new Float64Array(1024);
  mtimeNanoseconds = new Uint32Array(1024);
  sizeBytes = new Float64Array(1024);
  links = new Uint32Array(1024);
  /** Number of the interned attribute set. */
  xattrs = new Uint32Array(1024);
  /** Device number of a device file, parent inode of a directory. */
  link = new Uint32Array(1024);
  contentKind = new Uint8Array(1024);
  /** Byte position of the content, see {@link CONTENT}. */
  content = new Float64Array(1024);
  /** Byte position of the inode on the device; 0 while it has none. */
  position = new Float64Array(1024);
  /** Number of the layer that listed this object last. */
  layer = new Uint16Array(1024);
  private free: number[] = [];

  /** A fresh row, all zero but the mode. Row 0 is never given out: it stands for "none". */
  add(mode: number): number {
    const reused = this.free.pop();
    if (reused !== undefined) {
      this.clear(reused);
      this.mode[reused] = mode;
      return reused;
    }
    if (this.count >= MAX_INODES) {
      throw new AppError('ResourceExhausted', { op: 'add inode', subject: 'image', what: `it has more than ${MAX_INODES} objects` });
    }
    if (this.count === this.mode.length) this.grow();
    const ino = this.count;
    this.count += 1;
    this.mode[ino] = mode;
    return ino;
  }

  /** Gives rows back for reuse; nothing may refer to them any more. */
  release(inos: Iterable<number>): void {
    for (const ino of inos) {
      this.mode[ino] = 0;
      this.free.push(ino);
    }
  }

  isDirectory(ino: number): boolean {
    return (this.mode[ino]! & S_IFMT) === MODE_TYPE.directory;
  }

  isSymlink(ino: number): boolean {
    return (this.mode[ino]! & S_IFMT) === MODE_TYPE.symlink;
  }

  /** Rows in use, row 0 aside. */
  get liveCount(): number {
    return this.count - 1 - this.free.length;
  }

  private clear(ino: number): void {
    for (const column of this.columns()) column[ino] = 0;
  }

  private columns(): (Uint8Array | Uint16Array | Uint32Array | Float64Array)[] {
    return [
      this.mode,
      this.uid,
      this.gid,
      this.mtimeSeconds,
      this.mtimeNanoseconds,
      this.sizeBytes,
      this.links,
      this.xattrs,
      this.link,
      this.contentKind,
      this.content,
      this.position,
      this.layer,
    ];
  }

  private grow(): void {
    const size = Math.min(MAX_INODES, Math.ceil(this.mode.length * 1.5));
    const wider = <T extends Uint8Array | Uint16Array | Uint32Array | Float64Array>(to: T, from: T): T => {
      to.set(from as never);
      return to;
    };
    this.mode = wider(new Uint16Array(size), this.mode);
    this.uid = wider(new Uint32Array(size), this.uid);
    this.gid = wider(new Uint32Array(size), this.gid);
    this.mtimeSeconds = wider(new Float64Array(size), this.mtimeSeconds);
    this.mtimeNanoseconds = wider(new Uint32Array(size), this.mtimeNanoseconds);
    this.sizeBytes = wider(new Float64Array(size), this.sizeBytes);
    this.links = wider(new Uint32Array(size), this.links);
    this.xattrs = wider(new Uint32Array(size), this.xattrs);
    this.link = wider(new Uint32Array(size), this.link);
    this.contentKind = wider(new Uint8Array(size), this.contentKind);
    this.content = wider(new Float64Array(size), this.content);
    this.position = wider(new Float64Array(size), this.position);
    this.layer = wider(new Uint16Array(size), this.layer);
  }
}
