/** The tree on a device, read with nothing but its bytes: attributes, links and the digest of every content. */
import { hash } from 'node:crypto';
import { S_IFMT } from '../../../../../plugin/image/erofs/format.ts';
import { ErofsReader } from '../../../../../plugin/image/erofs/reader.ts';
import { decodeXattrs } from '../../../../../plugin/image/erofs/xattrs.ts';

const ROOT = 36;
const DIRECTORY = 0x4000;
const FILE = 0x8000;
const SYMLINK = 0xa000;

/** Every path with a line that tells all about its object. */
export function listTree(read: (offset: number, length: number) => Buffer): Map<string, string> {
  const reader = new ErofsReader(read);
  const listed = new Map<string, string>();
  const first = new Map<number, string>();
  const visit = (nid: number, path: string): void => {
    const inode = reader.inode(nid);
    const type = inode.mode & S_IFMT;
    if (!first.has(nid)) first.set(nid, path);
    const hasContent = type === FILE || type === SYMLINK;
    const content = hasContent ? hash('sha256', reader.content(inode, 0, inode.sizeBytes)) : type === DIRECTORY ? 0 : inode.union;
    const xattrs = [...decodeXattrs(reader.xattrBytes(inode), path)].map(
      ([name, value]) => `${name}=${Buffer.from(value).toString('hex')}`,
    );
    const { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, linkCount } = inode;
    const fields = [
      mode.toString(8),
      uid,
      gid,
      mtimeSeconds,
      mtimeNanoseconds,
      linkCount,
      first.get(nid),
      hasContent ? inode.sizeBytes : 0,
      content,
    ];
    listed.set(path, [...fields, ...xattrs.sort()].join(' '));
    if (type !== DIRECTORY) return;
    for (const entry of reader.directory(inode)) {
      if (entry.name !== '.' && entry.name !== '..') visit(entry.nid, `${path}/${entry.name}`);
    }
  };
  visit(ROOT, '');
  return listed;
}
