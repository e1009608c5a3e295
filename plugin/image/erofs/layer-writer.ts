/**
 * Writes the metadata of one layer: first the blocks of lower layers that changed, then the layer's own region (directory blocks,
 * inodes with what lies behind them), all in ascending device order. Yields bytes as it goes; holds 256 KiB. Ours.
 */
import assert from 'node:assert';
import { KIB, roundUp } from '../../base/units.ts';
import type { DeviceSpace } from './device-space.ts';
import { ROOT_NID } from './device-space.ts';
import { type Dirent, encodeDirents } from './directory.ts';
import {
  BLOCK_BYTES,
  direntType,
  EXTENDED_INODE_BYTES,
  encodeInode,
  encodeSuperblock,
  type InodeFields,
  LAYOUT,
  SLOT_BYTES,
} from './format.ts';
import { CONTENT } from './inode-table.ts';
import { type LayerPlan, planLayer, type ReadDevice, sortedNames, storedInode } from './layer-plan.ts';
import type { FileTree } from './tree.ts';

/** Marks devices of this builder, so that only those are built upon. */
export const VOLUME_NAME = 'overlaybd-erofs1';

const REGION_BUFFER_BYTES = 256 * KIB;

/** Whole blocks of the device. The bytes belong to the receiver. */
export interface DeviceExtent {
  offsetBytes: number;
  bytes: Buffer;
}

export interface LayerSources {
  tree: FileTree;
  space: DeviceSpace;
  read: ReadDevice;
  /** Content of small files and symbolic links that the layer brought, by the position in `content`. */
  readSpool: (offsetBytes: number, lengthBytes: number) => Buffer;
  /** 16 bytes: identity of the file system with this layer on top. */
  uuid: Uint8Array;
}

/** A run of bytes at a position of a lower layer's block. */
interface Patch {
  offsetBytes: number;
  bytes: Buffer;
}

/** Lays the changes of the tree's present layer out and yields the blocks. Afterwards the tree knows all positions; call endLayer. */
export function* writeLayer(sources: LayerSources): Generator<DeviceExtent> {
  const { tree, space, read } = sources;
  const plan = planLayer(tree, space, read);
  const writer = new LayerWriter(sources, plan);
  yield* mergePatches(writer.patches(), sources);
  yield* writer.region();
  for (const ino of plan.placed) if (tree.inodes.contentKind[ino] === CONTENT.spool) tree.inodes.contentKind[ino] = CONTENT.inline;
}

class LayerWriter {
  private readonly sources: LayerSources;
  private readonly plan: LayerPlan;

  constructor(sources: LayerSources, plan: LayerPlan) {
    this.sources = sources;
    this.plan = plan;
  }

  /** Changes to blocks of lower layers, ascending; made one at a time. */
  *patches(): Generator<Patch> {
    const { plan } = this;
    const { tree } = this.sources;
    const blocks: { offset: number; directory: number; index: number }[] = [];
    for (const directory of plan.keptBlocks) {
      const address = tree.inodes.content[directory]!;
      plan.cuts.get(directory)!.forEach((_, index) => {
        blocks.push({ offset: address + index * BLOCK_BYTES, directory, index });
      });
    }
    blocks.sort((a, b) => a.offset - b.offset);
    let next = 0;
    let sorted = { directory: -1, names: [] as string[] };
    const position = (i: number): number =>
      i < plan.rewritten.length ? tree.inodes.position[plan.rewritten[i]!]! : Number.POSITIVE_INFINITY;
    for (const block of blocks) {
      while (position(next) < block.offset) yield this.inodePatch(plan.rewritten[next++]!);
      // A directory's blocks lie together, so its names are sorted once.
      if (sorted.directory !== block.directory) sorted = { directory: block.directory, names: sortedNames(tree, block.directory) };
      const bytes = this.directoryBlock(block.directory, block.index, sorted.names);
      if (!bytes.equals(this.sources.read(block.offset, BLOCK_BYTES))) yield { offsetBytes: block.offset, bytes };
    }
    while (next < plan.rewritten.length) yield this.inodePatch(plan.rewritten[next++]!);
  }

  /** An inode that keeps its place: its fields, and what lies behind it as far as that changed; the rest of its room is zeroed. */
  private inodePatch(ino: number): Patch {
    const { tree, read } = this.sources;
    const { inodes } = tree;
    const position = inodes.position[ino]!;
    const stored = storedInode(read, position);
    const fields = this.fieldsOf(ino);
    const isDirectory = inodes.isDirectory(ino);
    const tailBytes = fields.layout === LAYOUT.inline ? fields.sizeBytes : 0;
    const usedBytes = EXTENDED_INODE_BYTES + fields.xattrBytes + tailBytes;
    const oldBytes = EXTENDED_INODE_BYTES + stored.xattrBytes + stored.tailBytes;
    const bytes = Buffer.alloc(Math.max(usedBytes, oldBytes));
    encodeInode(bytes, 0, fields, position / SLOT_BYTES);
    bytes.set(tree.xattrs.bytesOf(inodes.xattrs[ino]!), EXTENDED_INODE_BYTES);
    const tailAt = EXTENDED_INODE_BYTES + fields.xattrBytes;
    if (tailBytes > 0 && isDirectory) this.directoryTail(ino, bytes, tailAt);
    else if (tailBytes > 0) bytes.set(read(position + EXTENDED_INODE_BYTES + stored.xattrBytes, tailBytes), tailAt);
    return { offsetBytes: position, bytes };
  }

  *region(): Generator<DeviceExtent> {
    const { plan } = this;
    const { tree } = this.sources;
    const out = new RegionBuffer(plan.blocksStart);
    for (const directory of plan.directories) {
      const cut = plan.cuts.get(directory);
      if (cut === undefined || plan.keptBlocks.has(directory)) continue;
      assert.equal(out.position, tree.inodes.content[directory]);
      const names = sortedNames(tree, directory);
      for (let i = 0; i < cut.length; i += 1) {
        out.append(this.directoryBlock(directory, i, names));
        yield* out.full();
      }
    }
    for (const [ino, address] of plan.evicted) {
      assert.equal(out.position, address);
      out.append(this.contentOf(ino));
      out.skipTo(address + BLOCK_BYTES);
      tree.inodes.contentKind[ino] = CONTENT.blocks;
      tree.inodes.content[ino] = address;
      yield* out.full();
    }
    assert.equal(out.position, plan.inodesStart);
    for (const ino of plan.placed) {
      out.skipTo(tree.inodes.position[ino]!);
      out.append(this.placedInode(ino));
      yield* out.full();
    }
    out.skipTo(plan.inodesEnd);
    yield* out.rest();
  }

  private placedInode(ino: number): Buffer {
    const { tree } = this.sources;
    const { inodes } = tree;
    const fields = this.fieldsOf(ino);
    const tailBytes = fields.layout === LAYOUT.inline ? fields.sizeBytes : 0;
    const tailAt = EXTENDED_INODE_BYTES + fields.xattrBytes;
    const bytes = Buffer.alloc(tailAt + tailBytes);
    encodeInode(bytes, 0, fields, inodes.position[ino]! / SLOT_BYTES);
    bytes.set(tree.xattrs.bytesOf(inodes.xattrs[ino]!), EXTENDED_INODE_BYTES);
    if (tailBytes === 0) return bytes;
    if (inodes.isDirectory(ino)) this.directoryTail(ino, bytes, tailAt);
    else bytes.set(this.contentOf(ino), tailAt);
    return bytes;
  }

  /** Content of a small file or link: from the spool, or for one that moved from behind its old position. */
  private contentOf(ino: number): Buffer {
    const { inodes } = this.sources.tree;
    if (inodes.contentKind[ino] === CONTENT.spool) return this.sources.readSpool(inodes.content[ino]!, inodes.sizeBytes[ino]!);
    const from = this.plan.movedFrom.get(ino)!;
    const stored = storedInode(this.sources.read, from);
    return this.sources.read(from + EXTENDED_INODE_BYTES + stored.xattrBytes, stored.tailBytes);
  }

  private fieldsOf(ino: number): InodeFields {
    const { tree } = this.sources;
    const { inodes } = tree;
    const kind = inodes.contentKind[ino]!;
    const type = inodes.mode[ino]! & 0o170000;
    const isDevice = type === 0o020000 || type === 0o060000;
    let links = inodes.links[ino]!;
    if (inodes.isDirectory(ino)) {
      links = 2;
      for (const child of tree.namesOf(ino).values()) if (inodes.isDirectory(child)) links += 1;
    }
    return {
      layout: kind === CONTENT.spool || kind === CONTENT.inline ? LAYOUT.inline : LAYOUT.plain,
      xattrBytes: tree.xattrs.bytesOf(inodes.xattrs[ino]!).length,
      mode: inodes.mode[ino]!,
      sizeBytes: inodes.sizeBytes[ino]!,
      union: isDevice ? inodes.link[ino]! : kind === CONTENT.blocks ? inodes.content[ino]! / BLOCK_BYTES : 0,
      uid: inodes.uid[ino]!,
      gid: inodes.gid[ino]!,
      mtimeSeconds: inodes.mtimeSeconds[ino]!,
      mtimeNanoseconds: inodes.mtimeNanoseconds[ino]!,
      linkCount: links,
    };
  }

  private direntsOf(directory: number, names: readonly string[], start: number, end: number): Dirent[] {
    const { tree } = this.sources;
    const { inodes } = tree;
    const entries: Dirent[] = [];
    for (let i = start; i < end; i += 1) {
      const name = names[i]!;
      const ino = name === '.' ? directory : name === '..' ? inodes.link[directory]! : tree.lookup(directory, name)!;
      entries.push({ name, nid: inodes.position[ino]! / SLOT_BYTES, type: direntType(inodes.mode[ino]!) });
    }
    return entries;
  }

  private directoryBlock(directory: number, index: number, names: readonly string[]): Buffer {
    const cut = this.plan.cuts.get(directory)!;
    const block = Buffer.allocUnsafe(BLOCK_BYTES);
    encodeDirents(block, 0, BLOCK_BYTES, this.direntsOf(directory, names, cut[index]!, cut[index + 1] ?? names.length));
    return block;
  }

  private directoryTail(directory: number, target: Buffer, at: number): void {
    const names = sortedNames(this.sources.tree, directory);
    const used = encodeDirents(
      target,
      at,
      this.sources.tree.inodes.sizeBytes[directory]!,
      this.direntsOf(directory, names, 0, names.length),
    );
    assert.equal(used, this.sources.tree.inodes.sizeBytes[directory]);
  }
}

/** Applies patches to the blocks they touch and yields, ascending, those that differ. Block 0 gets the superblock and always differs. */
function* mergePatches(patches: Iterable<Patch>, { tree, space, read, uuid }: LayerSources): Generator<DeviceExtent> {
  let start = 0;
  let bytes = read(0, BLOCK_BYTES);
  const finish = function* (end: number): Generator<DeviceExtent> {
    const done = bytes.subarray(0, end - start);
    if (start === 0) {
      const inodeCount = tree.inodes.liveCount;
      encodeSuperblock(done, { rootNid: ROOT_NID, inodeCount, blockCount: space.endBytes / BLOCK_BYTES, uuid, volumeName: VOLUME_NAME });
    }
    if (!done.equals(read(start, done.length))) yield { offsetBytes: start, bytes: done };
  };
  for (const patch of patches) {
    const first = Math.floor(patch.offsetBytes / BLOCK_BYTES) * BLOCK_BYTES;
    const end = roundUp(patch.offsetBytes + patch.bytes.length, BLOCK_BYTES);
    if (first > start) {
      // Patches ascend, so everything before this one's first block is complete.
      const complete = Math.min(first, start + bytes.length);
      yield* finish(complete);
      bytes = bytes.subarray(complete - start);
      start = first;
    }
    if (end > start + bytes.length) bytes = Buffer.concat([bytes, read(start + bytes.length, end - start - bytes.length)]);
    bytes.set(patch.bytes, patch.offsetBytes - start);
  }
  yield* finish(start + bytes.length);
}

/** Collects the region's bytes in order and hands them out in whole blocks. */
class RegionBuffer {
  private buffer = Buffer.alloc(REGION_BUFFER_BYTES);
  private start: number;
  private used = 0;
  private readonly ready: DeviceExtent[] = [];

  constructor(start: number) {
    this.start = start;
  }

  get position(): number {
    return this.start + this.used;
  }

  append(bytes: Buffer): void {
    let done = 0;
    while (done < bytes.length) {
      const take = Math.min(bytes.length - done, this.buffer.length - this.used);
      bytes.copy(this.buffer, this.used, done, done + take);
      this.used += take;
      done += take;
      if (this.used === this.buffer.length) this.turn();
    }
  }

  /** Zeros up to a position. */
  skipTo(position: number): void {
    assert(position >= this.position);
    while (this.position < position) {
      this.used += Math.min(position - this.position, this.buffer.length - this.used);
      if (this.used === this.buffer.length) this.turn();
    }
  }

  *full(): Generator<DeviceExtent> {
    yield* this.ready;
    this.ready.length = 0;
  }

  *rest(): Generator<DeviceExtent> {
    assert.equal(this.used % BLOCK_BYTES, 0);
    if (this.used > 0) this.ready.push({ offsetBytes: this.start, bytes: this.buffer.subarray(0, this.used) });
    yield* this.full();
  }

  private turn(): void {
    this.ready.push({ offsetBytes: this.start, bytes: this.buffer });
    this.start += this.used;
    this.used = 0;
    this.buffer = Buffer.alloc(REGION_BUFFER_BYTES);
  }
}
