/**
 * Decides where everything that a layer changed goes, before a byte is written. Ours; the rules are in design.md, "Conversion".
 *
 * - New inodes, and those whose attributes outgrew their place, go into the layer's own region, in the order of a walk of the tree.
 *   Every other inode keeps its position, which is its number.
 * - A directory that fits behind its inode lies there; otherwise in blocks. A changed directory keeps its blocks as long as each name
 *   still fits into the block it belongs to by order, so that only blocks that differ are written; else it gets new blocks.
 */
import assert from 'node:assert';
import { roundUp } from '../../base/units.ts';
import type { DeviceSpace } from './device-space.ts';
import { ROOT_END, ROOT_POSITION } from './device-space.ts';
import { cutDirectory, decodeDirents, direntBytes } from './directory.ts';
import { BLOCK_BYTES, decodeInode, EXTENDED_INODE_BYTES, type InodeFields, LAYOUT, SLOT_BYTES } from './format.ts';
import { CONTENT } from './inode-table.ts';
import type { FileTree } from './tree.ts';

/** Directories of more blocks leave an eighth of each block free, so that a name added later changes one block and not all. */
const ROOMY_DIRECTORY_BLOCKS = 16;
const ROOMY_FILL_BYTES = BLOCK_BYTES - BLOCK_BYTES / 8;

/** Reads metadata of the device as the lower layers left it; unwritten bytes are zeros. The result is the caller's to keep. */
export type ReadDevice = (offsetBytes: number, lengthBytes: number) => Buffer;

export interface LayerPlan {
  /** Directories whose entries are written, in tree order. */
  directories: number[];
  /** Where each directory that lies in blocks is cut: index of the first name of each block. */
  cuts: Map<number, number[]>;
  /** Directories that keep their old blocks. */
  keptBlocks: Set<number>;
  /** Inodes written into the region, ascending by position. */
  placed: number[];
  /** Inodes that keep their position and are written again, ascending by position. */
  rewritten: number[];
  /** Inodes that moved, with the position they had. */
  movedFrom: Map<number, number>;
  /** Content that was to lie behind its inode and no longer fits there: the blocks it goes to instead. */
  evicted: Map<number, number>;
  blocksStart: number;
  inodesStart: number;
  inodesEnd: number;
}

/** The entries' names of a directory in stored order. */
export function sortedNames(tree: FileTree, directory: number): string[] {
  const names = [...tree.namesOf(directory).keys(), '.', '..'];
  return names.sort();
}

/** Inode as stored, with the bytes it may use where it is. */
export function storedInode(read: ReadDevice, position: number): InodeFields & { roomBytes: number; tailBytes: number } {
  const fields = decodeInode(read(position, EXTENDED_INODE_BYTES), 0);
  const tailBytes = fields.layout === LAYOUT.inline ? fields.sizeBytes % BLOCK_BYTES : 0;
  const end = roundUp(position + EXTENDED_INODE_BYTES + fields.xattrBytes + tailBytes, SLOT_BYTES);
  return { ...fields, tailBytes, roomBytes: position === ROOT_POSITION ? ROOT_END - position : end - position };
}

export function planLayer(tree: FileTree, space: DeviceSpace, read: ReadDevice): LayerPlan {
  const { inodes } = tree;
  const plan: LayerPlan = {
    directories: [],
    cuts: new Map(),
    keptBlocks: new Set(),
    placed: [],
    rewritten: [],
    movedFrom: new Map(),
    evicted: new Map(),
    blocksStart: space.endBytes,
    inodesStart: 0,
    inodesEnd: 0,
  };
  findMoves(tree, read, plan);
  plan.directories = directoriesInOrder(tree);
  for (const directory of plan.directories) planDirectory(tree, space, read, plan, directory);
  for (const directory of plan.directories) evictLargeTails(tree, space, plan, directory);
  plan.inodesStart = space.endBytes;
  let cursor = plan.inodesStart;
  for (const directory of plan.directories) cursor = placeChildren(tree, plan, directory, cursor);
  plan.inodesEnd = space.allocate(cursor - plan.inodesStart) + roundUp(cursor - plan.inodesStart, BLOCK_BYTES);
  const rewritten = new Set([...tree.changedInodes, ...plan.directories].filter((ino) => inodes.position[ino]! < plan.inodesStart));
  plan.rewritten = [...rewritten].sort((a, b) => inodes.position[a]! - inodes.position[b]!);
  return plan;
}

/** Takes the position from inodes whose attributes no longer fit, and marks every directory that names them. */
function findMoves(tree: FileTree, read: ReadDevice, plan: LayerPlan): void {
  const { inodes } = tree;
  const movedFiles = new Set<number>();
  for (const ino of [...tree.changedInodes].sort((a, b) => inodes.position[a]! - inodes.position[b]!)) {
    const position = inodes.position[ino]!;
    const stored = storedInode(read, position);
    const tail = inodes.isDirectory(ino) ? 0 : stored.tailBytes;
    const xattrBytes = tree.xattrs.bytesOf(inodes.xattrs[ino]!).length;
    // Entries that lay behind the inode shift with its attributes, or make room for them.
    if (inodes.isDirectory(ino) && xattrBytes !== stored.xattrBytes) tree.changedDirectories.add(ino);
    if (fitsInPlace(position, xattrBytes, tail, stored.roomBytes)) continue;
    assert(ino !== tree.root, 'the room behind the root holds any attributes');
    plan.movedFrom.set(ino, position);
    inodes.position[ino] = 0;
    if (inodes.isDirectory(ino)) {
      tree.changedDirectories.add(ino).add(inodes.link[ino]!);
      for (const child of tree.namesOf(ino).values()) if (inodes.isDirectory(child)) tree.changedDirectories.add(child);
    } else movedFiles.add(ino);
  }
  if (movedFiles.size === 0) return;
  // Rare, so a walk of everything instead of a parent list in memory.
  const pending = [tree.root];
  for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
    for (const child of tree.namesOf(directory).values()) {
      if (inodes.isDirectory(child)) pending.push(child);
      else if (movedFiles.has(child)) tree.changedDirectories.add(directory);
    }
  }
}

function fitsInPlace(position: number, xattrBytes: number, tailBytes: number, roomBytes: number): boolean {
  const head = EXTENDED_INODE_BYTES + xattrBytes;
  return head + tailBytes <= roomBytes && (tailBytes === 0 || ((position + head) % BLOCK_BYTES) + tailBytes <= BLOCK_BYTES);
}

/** Changed directories, parents before children, siblings by name. */
function directoriesInOrder(tree: FileTree): number[] {
  const { inodes } = tree;
  const onPath = new Set<number>();
  for (const changed of tree.changedDirectories) {
    for (let ino = changed; !onPath.has(ino); ino = inodes.link[ino]!) onPath.add(ino);
  }
  const order: number[] = [];
  const pending = onPath.size > 0 ? [tree.root] : [];
  for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
    if (tree.changedDirectories.has(directory)) order.push(directory);
    const children: string[] = [];
    for (const [name, child] of tree.namesOf(directory)) if (inodes.isDirectory(child) && onPath.has(child)) children.push(name);
    children.sort();
    for (let i = children.length - 1; i >= 0; i -= 1) pending.push(tree.lookup(directory, children[i]!)!);
  }
  return order;
}

function planDirectory(tree: FileTree, space: DeviceSpace, read: ReadDevice, plan: LayerPlan, directory: number): void {
  const { inodes } = tree;
  const names = sortedNames(tree, directory);
  let total = 0;
  for (const name of names) total += direntBytes(name);
  const position = inodes.position[directory]!;
  const head = EXTENDED_INODE_BYTES + tree.xattrs.bytesOf(inodes.xattrs[directory]!).length;
  const stored = position > 0 ? storedInode(read, position) : undefined;
  const mayBeInline = directory !== tree.root && head + total <= BLOCK_BYTES;
  if (stored === undefined || stored.sizeBytes === 0 || stored.layout === LAYOUT.inline) {
    if (
      mayBeInline &&
      (stored === undefined || (stored.sizeBytes > 0 && fitsInPlace(position, head - EXTENDED_INODE_BYTES, total, stored.roomBytes)))
    ) {
      inodes.contentKind[directory] = CONTENT.inline;
      inodes.sizeBytes[directory] = total;
      return;
    }
  } else {
    const starts = keepCut(read, stored, names);
    if (starts !== undefined) {
      plan.cuts.set(directory, starts);
      plan.keptBlocks.add(directory);
      inodes.contentKind[directory] = CONTENT.blocks;
      inodes.content[directory] = stored.union * BLOCK_BYTES;
      inodes.sizeBytes[directory] = starts.length * BLOCK_BYTES;
      return;
    }
  }
  let starts = cutDirectory(names, BLOCK_BYTES);
  if (starts.length > ROOMY_DIRECTORY_BLOCKS) starts = cutDirectory(names, ROOMY_FILL_BYTES);
  plan.cuts.set(directory, starts);
  inodes.contentKind[directory] = CONTENT.blocks;
  inodes.sizeBytes[directory] = starts.length * BLOCK_BYTES;
  inodes.content[directory] = space.allocate(starts.length * BLOCK_BYTES);
}

/** Cuts the names where the stored blocks are cut; undefined when a block would overflow or be empty. */
function keepCut(read: ReadDevice, stored: InodeFields, names: readonly string[]): number[] | undefined {
  const blocks = Math.ceil(stored.sizeBytes / BLOCK_BYTES);
  const starts = [0];
  let next = 0;
  for (let block = 1; block <= blocks; block += 1) {
    let used = 0;
    const limit = block < blocks ? firstName(read, stored, block) : undefined;
    const start = next;
    while (next < names.length && (limit === undefined || names[next]! < limit)) {
      used += direntBytes(names[next]!);
      next += 1;
    }
    if (used > BLOCK_BYTES || next === start) return undefined;
    if (block < blocks) starts.push(next);
  }
  return starts;
}

function firstName(read: ReadDevice, stored: InodeFields, block: number): string {
  const bytes = read(stored.union * BLOCK_BYTES + block * BLOCK_BYTES, BLOCK_BYTES);
  const length = Math.min(BLOCK_BYTES, stored.sizeBytes - block * BLOCK_BYTES);
  return decodeDirents(bytes, 0, length, 'lower layer')[0]!.name;
}

/** Gives blocks to content that no longer fits behind its inode, because the attributes grew after it was put there. */
function evictLargeTails(tree: FileTree, space: DeviceSpace, plan: LayerPlan, directory: number): void {
  const { inodes } = tree;
  const large: string[] = [];
  for (const [name, ino] of tree.namesOf(directory)) {
    const kind = inodes.contentKind[ino]!;
    if (inodes.position[ino]! > 0 || inodes.isDirectory(ino) || (kind !== CONTENT.spool && kind !== CONTENT.inline)) continue;
    const head = EXTENDED_INODE_BYTES + tree.xattrs.bytesOf(inodes.xattrs[ino]!).length;
    if (head + inodes.sizeBytes[ino]! > BLOCK_BYTES) large.push(name);
  }
  // By name, because the order in memory is that of the tar, which a tree that was read back does not know.
  for (const name of large.sort()) {
    const ino = tree.lookup(directory, name)!;
    if (!plan.evicted.has(ino)) plan.evicted.set(ino, space.allocate(inodes.sizeBytes[ino]!));
  }
}

/** Gives positions to the children of a directory that have none; returns the cursor behind them. */
function placeChildren(tree: FileTree, plan: LayerPlan, directory: number, start: number): number {
  const { inodes } = tree;
  let cursor = start;
  for (const name of [...tree.namesOf(directory).keys()].sort()) {
    const ino = tree.lookup(directory, name)!;
    if (inodes.position[ino]! > 0) continue;
    const head = EXTENDED_INODE_BYTES + tree.xattrs.bytesOf(inodes.xattrs[ino]!).length;
    const kind = inodes.contentKind[ino]!;
    const isInline = (kind === CONTENT.spool || kind === CONTENT.inline) && !plan.evicted.has(ino);
    const tail = isInline ? inodes.sizeBytes[ino]! : 0;
    let position = roundUp(cursor, SLOT_BYTES);
    // Inode, attributes and tail share a block when they fit one: the kernel requires it of the tail, readers of 5.15 gain by the rest.
    if (head + tail <= BLOCK_BYTES && (position % BLOCK_BYTES) + head + tail > BLOCK_BYTES) position = roundUp(position, BLOCK_BYTES);
    inodes.position[ino] = position;
    plan.placed.push(ino);
    cursor = position + head + tail;
  }
  return cursor;
}
