/**
 * Names of tar entries as paths inside an image. A name is a byte string; `/` in front means the image's root, `.` and empty parts
 * vanish, an inner `..` takes back the part before it, and one that climbs above the root is refused.
 */
import { printableBytes, tarError } from './errors.ts';
import { MAX_NAME_BYTES, MAX_PATH_BYTES } from './limits.ts';

/** Marks an entry that hides a name of lower layers (OCI image-spec, layer.md); the name behind it may have the full length. */
export const WHITEOUT_PREFIX = '.wh.';

/** Splits a name into parts; the root itself is the empty list. `offset`: the entry's header in the decompressed tar, for errors. */
export function pathParts(name: string, offset: number): string[] {
  if (name.length > MAX_PATH_BYTES) throw tarError(offset, name, `path has ${name.length} bytes, at most ${MAX_PATH_BYTES} are allowed`);
  const parts: string[] = [];
  for (const part of name.split('/')) {
    if (part === '' || part === '.') continue;
    if (part === '..') {
      if (parts.pop() === undefined) throw tarError(offset, name, 'path climbs above the root with ".."');
      continue;
    }
    if (part.length > MAX_NAME_BYTES + (part.startsWith(WHITEOUT_PREFIX) ? WHITEOUT_PREFIX.length : 0)) {
      throw tarError(offset, name, `name "${printableBytes(part.slice(0, 40))}…" has ${part.length} bytes, at most 255 are allowed`);
    }
    parts.push(part);
  }
  return parts;
}
