/**
 * Reads the model back from a device that this builder made, so that further layers can be built on top without the layers it was made
 * from. Ours.
 */
import { AppError } from '../../base/errors.ts';
import { DeviceSpace, ROOT_NID, ROOT_POSITION } from './device-space.ts';
import { BLOCK_BYTES, LAYOUT, MODE_TYPE, S_IFMT } from './format.ts';
import { CONTENT } from './inode-table.ts';
import { VOLUME_NAME } from './layer-writer.ts';
import { type ErofsInode, ErofsReader, type ReadBytes } from './reader.ts';
import { FileTree } from './tree.ts';

/**
 * The tree and the free space of a device. `read` is called for metadata only. Throws FailedPrecondition when another builder made the
 * device, DataLoss when its structure is impossible, and what `read` throws.
 */
export function restoreTree(read: ReadBytes): { tree: FileTree; space: DeviceSpace } {
  const reader = new ErofsReader(read);
  if (reader.superblock.volumeName !== VOLUME_NAME || reader.superblock.rootNid !== ROOT_NID || reader.superblock.metaBlock !== 0) {
    const what = `the device is named "${reader.superblock.volumeName}"; only those named "${VOLUME_NAME}" can be built upon`;
    throw new AppError('FailedPrecondition', { op: 'restore erofs tree', subject: 'base', what });
  }
  const tree = new FileTree();
  const byPosition = new Map<number, number>();
  fill(tree, reader, reader.inode(ROOT_NID), tree.root);
  byPosition.set(ROOT_POSITION, tree.root);
  const pending = [tree.root];
  for (let directory = pending.pop(); directory !== undefined; directory = pending.pop()) {
    const inode = reader.inode(tree.inodes.position[directory]! / 32);
    for (const { name, nid } of reader.directory(inode)) {
      if (name === '.' || name === '..') continue;
      if (tree.lookup(directory, name) !== undefined) throw bad(nid, 'its directory has the name twice');
      const position = nid * 32;
      let ino = byPosition.get(position);
      if (ino === undefined) {
        const child = reader.inode(nid);
        ino = tree.inodes.add(child.mode);
        fill(tree, reader, child, ino);
        byPosition.set(position, ino);
        if (tree.inodes.isDirectory(ino)) pending.push(ino);
      } else if (tree.inodes.isDirectory(ino)) throw bad(nid, 'a directory has two names');
      tree.restoreName(directory, name, ino);
    }
  }
  tree.endLayer();
  return { tree, space: new DeviceSpace(reader.superblock.blockCount * BLOCK_BYTES) };
}

function fill(tree: FileTree, reader: ErofsReader, inode: ErofsInode, ino: number): void {
  const { inodes } = tree;
  if (!inode.isExtended || inode.layout === LAYOUT.chunkBased) throw bad(inode.nid, 'it is not of a form that this builder writes');
  inodes.mode[ino] = inode.mode;
  inodes.uid[ino] = inode.uid;
  inodes.gid[ino] = inode.gid;
  inodes.mtimeSeconds[ino] = inode.mtimeSeconds;
  inodes.mtimeNanoseconds[ino] = inode.mtimeNanoseconds;
  inodes.sizeBytes[ino] = inode.sizeBytes;
  inodes.position[ino] = inode.position;
  inodes.xattrs[ino] = tree.xattrs.intern(reader.xattrBytes(inode), `inode ${inode.nid}`);
  const type = inode.mode & S_IFMT;
  if (type === MODE_TYPE.char || type === MODE_TYPE.block) inodes.link[ino] = inode.union;
  if (inode.sizeBytes === 0) inodes.contentKind[ino] = CONTENT.none;
  else if (inode.layout === LAYOUT.inline) inodes.contentKind[ino] = CONTENT.inline;
  else {
    inodes.contentKind[ino] = CONTENT.blocks;
    inodes.content[ino] = inode.union * BLOCK_BYTES;
  }
}

function bad(nid: number, what: string): AppError {
  return new AppError('DataLoss', { op: 'restore erofs tree', subject: `inode ${nid}`, what });
}
