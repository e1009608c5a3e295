/**
 * The file system in memory: inodes, names, and what the present layer changed. Layers are applied one after the other; the layout step
 * asks afterwards which directories and inodes differ. Ours; the meaning of whiteouts is the OCI image-spec's (layer.md).
 *
 * Memory: inode table 64 bytes, map slot about 50, name about 40: test/unit holds a million objects to 500 bytes each.
 */
import assert from 'node:assert';
import { ROOT_POSITION } from './device-space.ts';
import { MODE_TYPE } from './format.ts';
import { InodeTable } from './inode-table.ts';
import { XattrTable } from './xattrs.ts';

/** Owner, mode, time and attributes of an object. */
export interface Attributes {
  /** Permission bits only. */
  mode: number;
  uid: number;
  gid: number;
  mtimeSeconds: number;
  mtimeNanoseconds: number;
  /** Number of an interned set, see {@link XattrTable}. */
  xattrs: number;
}

const NO_NAMES: ReadonlyMap<string, number> = new Map();

export class FileTree {
  readonly inodes = new InodeTable();
  readonly xattrs = new XattrTable();
  readonly root: number;
  /** Names of each directory, by its inode; absent: empty. */
  private readonly names: (Map<string, number> | undefined)[] = [];
  /** Directories whose entries changed in this layer. */
  readonly changedDirectories = new Set<number>();
  /** Inodes that exist on the device and whose fields changed in this layer. */
  readonly changedInodes = new Set<number>();
  /** Names that this layer gave to inodes of lower layers (hard links), as `<directory>/<name>`. */
  private readonly ownLinks = new Set<string>();
  /** Directories in which nothing of lower layers is left, and nothing can come back in this layer: marks may be repeated without end. */
  private readonly hidden = new Set<number>();
  private readonly dead: number[] = [];
  private layer = 0;

  constructor() {
    this.root = this.inodes.add(MODE_TYPE.directory | 0o755);
    this.inodes.link[this.root] = this.root;
    this.inodes.links[this.root] = 1;
    this.inodes.position[this.root] = ROOT_POSITION;
    this.changedDirectories.add(this.root);
  }

  /** Begins a layer; `layer` ascends from 1. */
  beginLayer(layer: number): void {
    assert(layer > this.layer && layer <= 0xffff);
    this.layer = layer;
  }

  /** Forgets what the layer changed; call when it is on the device. */
  endLayer(): void {
    this.changedDirectories.clear();
    this.changedInodes.clear();
    this.ownLinks.clear();
    this.hidden.clear();
    this.inodes.release(this.dead);
    this.dead.length = 0;
  }

  /** Names and inodes of a directory, in no useful order. */
  namesOf(directory: number): ReadonlyMap<string, number> {
    return this.names[directory] ?? NO_NAMES;
  }

  lookup(directory: number, name: string): number | undefined {
    return this.names[directory]?.get(name);
  }

  /** True when the present layer listed this name itself. */
  isOwn(directory: number, name: string, ino: number): boolean {
    return this.inodes.layer[ino] === this.layer || this.ownLinks.has(`${directory}/${name}`);
  }

  /** Adds a new object under a name that is free. `type` is one of MODE_TYPE. */
  create(directory: number, name: string, type: number, attributes: Attributes): number {
    const ino = this.inodes.add(type | (attributes.mode & 0o7777));
    const { inodes } = this;
    inodes.uid[ino] = attributes.uid;
    inodes.gid[ino] = attributes.gid;
    inodes.mtimeSeconds[ino] = attributes.mtimeSeconds;
    inodes.mtimeNanoseconds[ino] = attributes.mtimeNanoseconds;
    inodes.xattrs[ino] = attributes.xattrs;
    inodes.layer[ino] = this.layer;
    if (type === MODE_TYPE.directory) {
      inodes.link[ino] = directory;
      this.changedDirectories.add(ino);
    }
    this.attach(directory, name, ino);
    return ino;
  }

  /** Gives an existing object that is no directory a further name, which is free. */
  addLink(directory: number, name: string, ino: number): void {
    assert(!this.inodes.isDirectory(ino));
    this.attach(directory, name, ino);
    this.claimLink(directory, name);
    this.markChanged(ino);
  }

  /** Marks a name as listed by the present layer although its object is older. */
  claimLink(directory: number, name: string): void {
    if (this.inodes.layer[this.lookup(directory, name)!] !== this.layer) this.ownLinks.add(`${directory}/${name}`);
  }

  /** Restores a name from a device that is read back; changes nothing in the books of the layer. */
  restoreName(directory: number, name: string, ino: number): void {
    this.setName(directory, name, ino);
    this.inodes.links[ino] = this.inodes.links[ino]! + 1;
    if (this.inodes.isDirectory(ino)) this.inodes.link[ino] = directory;
  }

  /** Sets owner, mode, time and attributes of an object that the layer lists again. */
  setAttributes(ino: number, attributes: Attributes): void {
    const { inodes } = this;
    const type = inodes.mode[ino]! & 0o170000;
    inodes.mode[ino] = type | (attributes.mode & 0o7777);
    inodes.uid[ino] = attributes.uid;
    inodes.gid[ino] = attributes.gid;
    inodes.mtimeSeconds[ino] = attributes.mtimeSeconds;
    inodes.mtimeNanoseconds[ino] = attributes.mtimeNanoseconds;
    inodes.xattrs[ino] = attributes.xattrs;
    this.markChanged(ino);
  }

  /** Marks a directory as listed by the present layer. */
  claim(ino: number): void {
    this.inodes.layer[ino] = this.layer;
  }

  /** Removes a name and, if it was a directory, everything under it. */
  remove(directory: number, name: string): void {
    const ino = this.lookup(directory, name);
    if (ino === undefined) return;
    if (this.inodes.isDirectory(ino)) this.clearDirectory(ino);
    this.detach(directory, name, ino);
  }

  /** A whiteout: removes what lower layers put under a name; what this layer listed itself stays. A missing name is no error. */
  whiteout(directory: number, name: string): void {
    const ino = this.lookup(directory, name);
    if (ino === undefined) return;
    if (!this.inodes.isDirectory(ino)) {
      if (!this.isOwn(directory, name, ino)) this.detach(directory, name, ino);
      return;
    }
    this.hideLower(ino);
    if (!this.isOwn(directory, name, ino) && this.namesOf(ino).size === 0) this.detach(directory, name, ino);
  }

  /** An opaque mark: removes everything in a directory that lower layers put there. Iterative: paths may be 2,000 parts deep. */
  hideLower(directory: number): void {
    if (this.hidden.has(directory)) return;
    this.hidden.add(directory);
    const order = [directory];
    for (let i = 0; i < order.length; i += 1) {
      for (const [name, ino] of this.namesOf(order[i]!)) {
        if (this.inodes.isDirectory(ino)) order.push(ino);
        else if (!this.isOwn(order[i]!, name, ino)) this.detach(order[i]!, name, ino);
      }
    }
    // Children before parents, so that emptied directories of lower layers go with their content.
    for (let i = order.length - 1; i >= 0; i -= 1) {
      for (const [name, ino] of this.namesOf(order[i]!)) {
        const isEmptied = this.inodes.isDirectory(ino) && this.inodes.layer[ino] !== this.layer && this.namesOf(ino).size === 0;
        if (isEmptied) this.detach(order[i]!, name, ino);
      }
    }
  }

  private clearDirectory(directory: number): void {
    const order = [directory];
    for (let i = 0; i < order.length; i += 1) {
      for (const [name, ino] of this.namesOf(order[i]!)) {
        if (this.inodes.isDirectory(ino)) order.push(ino);
        else this.detach(order[i]!, name, ino);
      }
    }
    for (let i = order.length - 1; i >= 0; i -= 1) {
      for (const [name, ino] of this.namesOf(order[i]!)) this.detach(order[i]!, name, ino);
    }
  }

  private attach(directory: number, name: string, ino: number): void {
    assert(this.lookup(directory, name) === undefined);
    this.setName(directory, name, ino);
    this.inodes.links[ino] = this.inodes.links[ino]! + 1;
    this.changedDirectories.add(directory);
  }

  private detach(directory: number, name: string, ino: number): void {
    const map = this.names[directory]!;
    map.delete(name);
    if (map.size === 0) this.names[directory] = undefined;
    this.changedDirectories.add(directory);
    this.ownLinks.delete(`${directory}/${name}`);
    this.inodes.links[ino] = this.inodes.links[ino]! - 1;
    if (this.inodes.links[ino]! > 0) {
      this.markChanged(ino);
      return;
    }
    assert(!this.inodes.isDirectory(ino) || this.namesOf(ino).size === 0);
    this.changedDirectories.delete(ino);
    this.changedInodes.delete(ino);
    this.dead.push(ino);
  }

  private setName(directory: number, name: string, ino: number): void {
    const map = this.names[directory];
    // Copied: a part of a path would keep the whole path in memory.
    const own = Buffer.from(name, 'latin1').toString('latin1');
    if (map === undefined) this.names[directory] = new Map([[own, ino]]);
    else map.set(own, ino);
  }

  private markChanged(ino: number): void {
    if (this.inodes.position[ino]! > 0) this.changedInodes.add(ino);
  }
}
