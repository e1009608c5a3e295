/** Runs the tar reader over bytes and collects what it says. */
import type { TarEntry } from '../../../../../plugin/image/tar/entry.ts';
import { TarReader } from '../../../../../plugin/image/tar/reader.ts';

export interface CollectedEntry extends TarEntry {
  /** Content with holes filled by zeros. */
  content: Buffer;
}

/** `chunkBytes`: how the input is cut; the result must not depend on it. */
export function collectTar(tar: Uint8Array, chunkBytes = tar.length): CollectedEntry[] {
  const found: CollectedEntry[] = [];
  const reader = new TarReader({
    entry: (entry) => found.push({ ...entry, content: Buffer.alloc(entry.sizeBytes) }),
    content: (bytes, offset) => bytes.copy(found.at(-1)!.content, offset),
    entryEnd: () => undefined,
  });
  const bytes = Buffer.from(tar);
  for (let at = 0; at < bytes.length; at += chunkBytes) reader.push(bytes.subarray(at, at + chunkBytes));
  reader.end();
  return found;
}
