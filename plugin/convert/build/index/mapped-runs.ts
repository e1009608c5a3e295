/** Which bytes of a file an index-only layer can map into the tar: whole sectors at whole sectors of both. Ours. */
import { SECTOR_BYTES } from '../../../base/units.ts';
import type { TarEntry } from '../../../image/tar/entry.ts';

export interface MappedRun {
  fileOffset: number;
  lengthBytes: number;
  /** In the decompressed tar. */
  tarOffset: number;
}

/**
 * The runs of a file's content, ascending, each beginning at a sector of the file and of the tar; undefined when the content must be
 * copied instead: sparse files whose pieces do not lie in sectors.
 */
export function mappedRuns(entry: TarEntry): MappedRun[] | undefined {
  if (entry.segments === undefined) return [{ fileOffset: 0, lengthBytes: entry.storedBytes, tarOffset: entry.contentOffset }];
  const runs: MappedRun[] = [];
  let tarOffset = entry.contentOffset;
  for (const { offsetBytes, lengthBytes } of entry.segments) {
    if (lengthBytes === 0) continue;
    if (offsetBytes % SECTOR_BYTES !== 0 || tarOffset % SECTOR_BYTES !== 0) return undefined;
    runs.push({ fileOffset: offsetBytes, lengthBytes, tarOffset });
    tarOffset += lengthBytes;
  }
  return runs;
}
