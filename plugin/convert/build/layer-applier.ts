/**
 * Applies the entries of one layer's tar to the tree, and hands content on. What it means is overlaybd-formats.md 9.2, with these
 * deliberate differences: link targets are kept as written; PAX owner, time and base-256 numbers count; sparse files are stored; a
 * directory that is listed again takes all its attributes from the newer entry, as an overlay would show it.
 *
 * Refused, because an unpacker would have to leave the image or guess: names that climb above the root, parents that are symbolic
 * links or files, links to nothing or to directories, whiteouts of "." and "..".
 */

import type { DeviceSpace } from '../../image/erofs/device-space.ts';
import { BLOCK_BYTES, EXTENDED_INODE_BYTES, encodeDevice, MODE_TYPE, S_IFMT } from '../../image/erofs/format.ts';
import { CONTENT } from '../../image/erofs/inode-table.ts';
import type { Attributes, FileTree } from '../../image/erofs/tree.ts';
import { decodeXattrs, encodeXattrs, isStorableXattr, MAX_XATTR_VALUE_BYTES } from '../../image/erofs/xattrs.ts';
import type { TarEntry } from '../../image/tar/entry.ts';
import { printableBytes, tarError } from '../../image/tar/errors.ts';
import { MAX_NAME_BYTES } from '../../image/tar/limits.ts';
import { pathParts, WHITEOUT_PREFIX } from '../../image/tar/path.ts';
import type { TarHandler } from '../../image/tar/reader.ts';

const WHITEOUT_META_PREFIX = '.wh..wh.';
const OPAQUE_NAME = '.wh..wh..opq';

/** Where the content of a file or link goes. */
export interface ContentSink {
  /** The largest content that may lie behind its inode; 0 for none. */
  readonly inlineLimitBytes: number;
  /** Keeps small content until the layer is laid out; returns its position in the spool. */
  spool(bytes: Buffer): number;
  /** Content of `entry` follows for the blocks at `deviceOffset`. */
  begin(entry: TarEntry, deviceOffset: number): void;
  write(bytes: Buffer, fileOffset: number): void;
  end(sizeBytes: number): void;
}

const TYPE_MODE = {
  file: MODE_TYPE.file,
  symlink: MODE_TYPE.symlink,
  char: MODE_TYPE.char,
  block: MODE_TYPE.block,
  fifo: MODE_TYPE.fifo,
  directory: MODE_TYPE.directory,
} as const;

/** Attributes that overlayfs would act upon if it saw them in a lower directory. */
const isOverlayXattr = (name: string): boolean => name.startsWith('trusted.overlay.') || name.startsWith('user.overlay.');

/** 2^32-1 is nobody: chown(2) takes it for "as it is", which is root's where things are unpacked; what it owns could not even be removed. */
const ownerOf = (id: number): number => (id === 0xffff_ffff ? 0 : id);

/**
 * Attributes that objects of a type cannot have. The kernel lists them all the same and then says that they are not there, or refuses to set
 * them, at which overlayfs gives up copying the object up: it could neither be changed nor moved.
 */
function isMisplaced(name: string, mode: number): boolean {
  const type = mode & S_IFMT;
  if (name.startsWith('user.')) return type !== MODE_TYPE.file && type !== MODE_TYPE.directory;
  if (name === 'system.posix_acl_access') return type === MODE_TYPE.symlink;
  return name === 'system.posix_acl_default' && type !== MODE_TYPE.directory;
}

export class LayerApplier implements TarHandler {
  private readonly tree: FileTree;
  private readonly space: DeviceSpace;
  private readonly sink: ContentSink;
  /**
   * Directory part of the last name and its inode: entries of a directory come together. What an entry removes lies below its own
   * parent, so this one never goes stale.
   */
  private lastParent = { path: '', ino: -1 };
  private current: { entry: TarEntry; isSpooled: boolean; ino: number; small: Buffer } | undefined;
  entryCount = 0;
  /** Attributes left out, by name: no file system of Linux stores them (there), or overlayfs would misread them. */
  readonly skippedXattrs = new Map<string, number>();

  constructor(tree: FileTree, space: DeviceSpace, sink: ContentSink) {
    this.tree = tree;
    this.space = space;
    this.sink = sink;
  }

  entry(entry: TarEntry): void {
    this.entryCount += 1;
    this.current = undefined;
    const parts = pathParts(entry.name, entry.headerOffset);
    const name = parts.pop();
    if (name === undefined) {
      if (entry.type !== 'directory') throw tarError(entry.headerOffset, entry.name, `a ${entry.type} cannot replace the root directory`);
      this.tree.setAttributes(this.tree.root, this.attributesOf(entry));
      this.tree.claim(this.tree.root);
      return;
    }
    const isMeta = (part: string): boolean => part.startsWith(WHITEOUT_META_PREFIX) && part !== OPAQUE_NAME;
    if (isMeta(name) || parts.some(isMeta)) return;
    if (parts.some((part) => part.length > MAX_NAME_BYTES)) throw tarError(entry.headerOffset, entry.name, 'a directory name is too long');
    const parent = this.parentOf(parts, entry);
    if (name === OPAQUE_NAME) this.tree.hideLower(parent);
    else if (name.startsWith(WHITEOUT_PREFIX)) this.applyWhiteout(parent, name.slice(WHITEOUT_PREFIX.length), entry);
    else if (entry.type === 'directory') this.applyDirectory(parent, name, entry);
    else if (entry.type === 'hardlink') this.applyHardLink(parent, name, entry);
    else this.applyObject(parent, name, entry);
  }

  content(bytes: Buffer, fileOffset: number): void {
    const { current } = this;
    if (current === undefined) return;
    if (current.isSpooled) bytes.copy(current.small, fileOffset);
    else this.sink.write(bytes, fileOffset);
  }

  entryEnd(): void {
    const { current } = this;
    if (current === undefined) return;
    if (current.isSpooled) this.tree.inodes.content[current.ino] = this.sink.spool(current.small);
    else this.sink.end(current.entry.sizeBytes);
    this.current = undefined;
  }

  private applyWhiteout(parent: number, name: string, entry: TarEntry): void {
    if (name === '' || name === '.' || name === '..')
      throw tarError(entry.headerOffset, entry.name, 'a whiteout of this name hides nothing');
    this.tree.whiteout(parent, name);
  }

  private applyDirectory(parent: number, name: string, entry: TarEntry): void {
    const existing = this.tree.lookup(parent, name);
    if (existing !== undefined && this.tree.inodes.isDirectory(existing)) {
      this.tree.setAttributes(existing, this.attributesOf(entry));
      this.tree.claim(existing);
      return;
    }
    this.tree.remove(parent, name);
    this.tree.create(parent, name, MODE_TYPE.directory, this.attributesOf(entry));
  }

  private applyHardLink(parent: number, name: string, entry: TarEntry): void {
    const { tree } = this;
    const target = pathParts(entry.linkName, entry.headerOffset);
    const targetName = target.pop();
    const describe = `hard link to "${printableBytes(entry.linkName)}"`;
    const directory = targetName === undefined ? undefined : this.existingDirectory(target);
    const ino = directory === undefined ? undefined : tree.lookup(directory, targetName!);
    if (ino === undefined) throw tarError(entry.headerOffset, entry.name, `${describe}, which does not exist`, 'NotFound');
    if (tree.inodes.isDirectory(ino)) throw tarError(entry.headerOffset, entry.name, `${describe}, which is a directory`);
    if (tree.lookup(parent, name) === ino) tree.claimLink(parent, name);
    else {
      tree.remove(parent, name);
      // The target may have lain under what was just replaced.
      if (tree.inodes.links[ino] === 0) throw tarError(entry.headerOffset, entry.name, `${describe}, which it replaces`, 'NotFound');
      tree.addLink(parent, name, ino);
    }
    const attributes = this.attributesOf(entry, tree.inodes.mode[ino]!);
    if (tree.inodes.isSymlink(ino)) attributes.mode = 0o777;
    // A link's header need not repeat the attributes of the file; those it has are added.
    attributes.xattrs = this.mergedXattrs(tree.inodes.xattrs[ino]!, attributes.xattrs, entry);
    tree.setAttributes(ino, attributes);
  }

  private applyObject(parent: number, name: string, entry: TarEntry): void {
    const { tree } = this;
    const { inodes } = tree;
    tree.remove(parent, name);
    const type = TYPE_MODE[entry.type as keyof typeof TYPE_MODE];
    const attributes = this.attributesOf(entry, type);
    if (entry.type === 'symlink') attributes.mode = 0o777;
    const ino = tree.create(parent, name, type, attributes);
    if (entry.type === 'char' || entry.type === 'block') inodes.link[ino] = encodeDevice(entry.devMajor, entry.devMinor);
    else if (entry.type === 'symlink') this.storeLink(ino, entry);
    else if (entry.type === 'file' && entry.sizeBytes > 0) this.beginContent(ino, entry);
  }

  private storeLink(ino: number, entry: TarEntry): void {
    const { inodes } = this.tree;
    const target = Buffer.from(entry.linkName, 'latin1');
    inodes.sizeBytes[ino] = target.length;
    // Targets always lie behind the inode if they fit, in either mode: they are metadata.
    if (this.fitsBehind(ino, target.length, BLOCK_BYTES)) {
      inodes.contentKind[ino] = CONTENT.spool;
      inodes.content[ino] = this.sink.spool(target);
    } else {
      inodes.contentKind[ino] = CONTENT.blocks;
      inodes.content[ino] = this.space.allocate(target.length);
      this.sink.begin(entry, inodes.content[ino]!);
      this.sink.write(target, 0);
      this.sink.end(target.length);
    }
  }

  private beginContent(ino: number, entry: TarEntry): void {
    const { inodes } = this.tree;
    inodes.sizeBytes[ino] = entry.sizeBytes;
    const isSpooled = this.fitsBehind(ino, entry.sizeBytes, this.sink.inlineLimitBytes);
    if (isSpooled) inodes.contentKind[ino] = CONTENT.spool;
    else {
      inodes.contentKind[ino] = CONTENT.blocks;
      inodes.content[ino] = this.space.allocate(entry.sizeBytes);
      this.sink.begin(entry, inodes.content[ino]!);
    }
    this.current = { entry, isSpooled, ino, small: Buffer.alloc(isSpooled ? entry.sizeBytes : 0) };
  }

  private fitsBehind(ino: number, sizeBytes: number, limitBytes: number): boolean {
    const { inodes, xattrs } = this.tree;
    return sizeBytes <= limitBytes && EXTENDED_INODE_BYTES + xattrs.bytesOf(inodes.xattrs[ino]!).length + sizeBytes <= BLOCK_BYTES;
  }

  /** The directory at `parts`, made with its own parents where it is missing: 0755, root's, at time 0. */
  private parentOf(parts: readonly string[], entry: TarEntry): number {
    const path = parts.join('/');
    if (this.lastParent.ino >= 0 && this.lastParent.path === path) return this.lastParent.ino;
    const { tree } = this;
    let directory = tree.root;
    for (const part of parts) {
      const next = tree.lookup(directory, part);
      if (next !== undefined && !tree.inodes.isDirectory(next)) {
        const what = tree.inodes.isSymlink(next) ? 'a symbolic link' : 'not a directory';
        throw tarError(entry.headerOffset, entry.name, `its parent "${printableBytes(part)}" is ${what}`);
      }
      const attributes = { mode: 0o755, uid: 0, gid: 0, mtimeSeconds: 0, mtimeNanoseconds: 0, xattrs: 0 };
      directory = next ?? tree.create(directory, part, MODE_TYPE.directory, attributes);
    }
    this.lastParent = { path, ino: directory };
    return directory;
  }

  private existingDirectory(parts: readonly string[]): number | undefined {
    let directory = this.tree.root;
    for (const part of parts) {
      const next = this.tree.lookup(directory, part);
      if (next === undefined || !this.tree.inodes.isDirectory(next)) return undefined;
      directory = next;
    }
    return directory;
  }

  private attributesOf(entry: TarEntry, type: number = MODE_TYPE.directory): Attributes {
    const { mode, mtimeSeconds, mtimeNanoseconds } = entry;
    const [uid, gid] = [ownerOf(entry.uid), ownerOf(entry.gid)];
    return { mode, uid, gid, mtimeSeconds, mtimeNanoseconds, xattrs: this.internXattrs(entry, type) };
  }

  private internXattrs(entry: TarEntry, type: number): number {
    if (entry.xattrs === undefined) return 0;
    const kept = new Map<string, Uint8Array>();
    for (const [name, value] of entry.xattrs) {
      if (!isStorableXattr(name) || isOverlayXattr(name) || isMisplaced(name, type)) {
        const label = printableBytes(name.slice(0, 100));
        if (this.skippedXattrs.size < 100 || this.skippedXattrs.has(label))
          this.skippedXattrs.set(label, (this.skippedXattrs.get(label) ?? 0) + 1);
        continue;
      }
      if (value.length > MAX_XATTR_VALUE_BYTES) {
        const what = `extended attribute ${printableBytes(name)} has ${value.length} bytes, at most ${MAX_XATTR_VALUE_BYTES} can be stored`;
        throw tarError(entry.headerOffset, entry.name, what, 'ResourceExhausted');
      }
      kept.set(name, value);
    }
    return this.tree.xattrs.intern(encodeXattrs(kept), printableBytes(entry.name));
  }

  private mergedXattrs(stored: number, added: number, entry: TarEntry): number {
    const { xattrs } = this.tree;
    if (added === 0 || stored === 0 || added === stored) return added === 0 ? stored : added;
    const subject = printableBytes(entry.name);
    const merged = new Map([...decodeXattrs(xattrs.bytesOf(stored), subject), ...decodeXattrs(xattrs.bytesOf(added), subject)]);
    return xattrs.intern(encodeXattrs(merged), subject);
  }
}
