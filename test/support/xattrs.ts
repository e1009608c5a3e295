/** Extended attributes, which Node does not read. Source: llistxattr(2), lgetxattr(2), lsetxattr(2). Symbolic links are not followed. */
import koffi from 'koffi';

const libc = koffi.load('libc.so.6');
const llistxattr = libc.func('long llistxattr(const uint8_t *path, _Out_ uint8_t *list, size_t size)');
const lgetxattr = libc.func('long lgetxattr(const uint8_t *path, const char *name, _Out_ uint8_t *value, size_t size)');

const lsetxattr = libc.func('int lsetxattr(const char *path, const char *name, const uint8_t *value, size_t size, int flags)');

/** The kernel's own limit of a list and of a value (XATTR_LIST_MAX, XATTR_SIZE_MAX). */
const MAX_BYTES = 65_536;
const EOPNOTSUPP = 95;

/** Name → value, sorted by name; empty where the file system keeps none. */
export function readXattrs(path: Buffer): Record<string, Buffer> {
  const cPath = Buffer.concat([path, Buffer.from([0])]);
  const list = Buffer.alloc(MAX_BYTES);
  const listBytes = Number(llistxattr(cPath, list, list.length));
  if (listBytes < 0) {
    if (koffi.errno() === EOPNOTSUPP) return {};
    throw new Error(`llistxattr ${path.toString()}: errno ${koffi.errno()}`);
  }
  const found: Record<string, Buffer> = {};
  for (const name of list.toString('utf8', 0, listBytes).split('\0').filter(Boolean).sort()) {
    const value = Buffer.alloc(MAX_BYTES);
    const valueBytes = Number(lgetxattr(cPath, name, value, value.length));
    if (valueBytes < 0) throw new Error(`lgetxattr ${name} ${path.toString()}: errno ${koffi.errno()}`);
    found[name] = value.subarray(0, valueBytes);
  }
  return found;
}

/** Sets one attribute. */
export function writeXattr(path: string, name: string, value: string): void {
  const bytes = Buffer.from(value);
  if (lsetxattr(path, name, bytes, bytes.length, 0) !== 0) throw new Error(`lsetxattr ${name} ${path}: errno ${koffi.errno()}`);
}
