/** What a mounted file system shows, object by object, through system calls. Names are byte strings. */
import { hash } from 'node:crypto';
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import koffi from 'koffi';
import { MODE_TYPE, S_IFMT } from '../../../../plugin/image/erofs/format.ts';

const libc = koffi.load(null);
const llistxattr = libc.func('long llistxattr(const void *path, void *list, size_t size)') as (p: Buffer, l: Buffer, n: number) => number;
const lgetxattr = libc.func('long lgetxattr(const void *path, const void *name, void *value, size_t size)') as (
  p: Buffer,
  name: Buffer,
  value: Buffer,
  n: number,
) => number;
const lsetxattr = libc.func('int lsetxattr(const void *path, const void *name, const void *value, size_t size, int flags)') as (
  p: Buffer,
  name: Buffer,
  value: Buffer,
  n: number,
  flags: number,
) => number;

const mknod = libc.func('int mknod(const void *path, unsigned int mode, unsigned long device)') as (
  p: Buffer,
  mode: number,
  device: number,
) => number;

export interface MountedObject {
  type: string;
  mode: number;
  uid: number;
  gid: number;
  mtimeNs: bigint;
  sizeBytes: number;
  links: number;
  /** SHA-256 of content, target, or device number. */
  value: string;
  /** Values in base64. */
  xattrs: Record<string, string>;
  ino: bigint;
}

const TYPES = new Map<number, string>([
  [MODE_TYPE.fifo, 'fifo'],
  [MODE_TYPE.char, 'char'],
  [MODE_TYPE.directory, 'dir'],
  [MODE_TYPE.block, 'block'],
  [MODE_TYPE.file, 'file'],
  [MODE_TYPE.symlink, 'symlink'],
]);

const cString = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(1)]);

/** Every object below `root`, by its path relative to it (a byte string; the root is `.`). `maySkip`: which failures leave an object out. */
export function listMounted(root: string, maySkip: (error: unknown) => boolean = () => false): Map<string, MountedObject> {
  const found = new Map<string, MountedObject>();
  const pending = ['.'];
  for (let path = pending.pop(); path !== undefined; path = pending.pop()) {
    const full = Buffer.from(`${root}/${path}`, 'latin1');
    let object: MountedObject;
    try {
      object = inspect(full);
    } catch (error) {
      if (maySkip(error)) continue;
      throw error;
    }
    found.set(path, object);
    if (object.type !== 'dir') continue;
    for (const name of readdirSync(full, { encoding: 'buffer' })) {
      pending.push(`${path === '.' ? '' : `${path}/`}${name.toString('latin1')}`);
    }
  }
  return found;
}

function inspect(path: Buffer): MountedObject {
  const stat = lstatSync(path, { bigint: true });
  const mode = Number(stat.mode);
  const type = TYPES.get(mode & S_IFMT) ?? 'unknown';
  const device = Number(stat.rdev);
  let value = '';
  if (type === 'file') value = hash('sha256', readFileSync(path));
  else if (type === 'symlink') value = readlinkSync(path, { encoding: 'buffer' }).toString('latin1');
  else if (type === 'char' || type === 'block') value = `${(device >>> 8) & 0xfff}:${(device & 0xff) | ((device >>> 12) & 0xfff00)}`;
  return {
    type,
    mode: mode & 0o7777,
    uid: Number(stat.uid),
    gid: Number(stat.gid),
    mtimeNs: stat.mtimeNs,
    sizeBytes: type === 'file' || type === 'symlink' ? Number(stat.size) : 0,
    links: Number(stat.nlink),
    value,
    xattrs: xattrsOf(path),
    ino: stat.ino,
  };
}

function xattrsOf(path: Buffer): Record<string, string> {
  const file = cString(path);
  const list = Buffer.alloc(65_536);
  const length = llistxattr(file, list, list.length);
  const found: Record<string, string> = {};
  if (length <= 0) return found;
  for (const name of list.toString('latin1', 0, length).split('\0')) {
    if (name === '') continue;
    const value = Buffer.alloc(65_536);
    const size = lgetxattr(file, cString(Buffer.from(name, 'latin1')), value, value.length);
    found[name] = size < 0 ? 'unreadable' : value.toString('base64', 0, size);
  }
  return found;
}

/** Sets an attribute without following links. Throws when the kernel refuses. */
export function setXattr(path: Buffer, name: string, value: Buffer): void {
  if (lsetxattr(cString(path), cString(Buffer.from(name, 'latin1')), value, value.length, 0) !== 0) {
    throw new Error(`lsetxattr ${name} of ${value.length} bytes on ${path.toString('latin1')} failed`);
  }
}

/** What overlayfs takes for "hidden": a character device 0:0. */
export function makeWhiteout(path: Buffer): void {
  if (mknod(cString(path), MODE_TYPE.char, 0) !== 0) throw new Error(`mknod ${path.toString('latin1')} failed`);
}
