/** Turns a segment table over readable sources into the bytes of one committed layer: commit of a writable layer, flattening of a stack. */
import { AppError } from '../base/errors.ts';
import { SECTOR_BYTES } from '../base/units.ts';
import type { CommittedLayerWriter } from '../image/lsmt/committed-writer.ts';
import { type SegmentTable, segmentsOf } from '../image/lsmt/segments.ts';
import { MissingList, type RandomAccessFile } from './file.ts';

/** Bytes in one yielded chunk, at most. */
const CHUNK_BYTES = 1024 * 1024;

/**
 * Yields the layer file from header to trailer. `tagOf` gives the tag that a record keeps (0 for an ordinary commit; the layer's
 * distance from the top when flattening, as the reference does). Chunks are the caller's. Throws FailedPrecondition when bytes are
 * not local, DataLoss when they are corrupt.
 */
export function* commitSegments(
  table: SegmentTable,
  sources: readonly RandomAccessFile[],
  writer: CommittedLayerWriter,
  tagOf: (source: number) => number,
): Generator<Uint8Array> {
  yield writer.header();
  for (const segment of segmentsOf(table)) {
    const tag = tagOf(segment.source);
    if (segment.isZeroed) {
      writer.addZeroed(segment.lbaSectors, segment.lengthSectors, tag);
      continue;
    }
    writer.addData(segment.lbaSectors, segment.lengthSectors, tag);
    const bytes = segment.lengthSectors * SECTOR_BYTES;
    for (let done = 0; done < bytes; done += CHUNK_BYTES) {
      const size = Math.min(CHUNK_BYTES, bytes - done);
      yield readLocal(sources[segment.source]!, segment.moffsetSectors * SECTOR_BYTES + done, size);
    }
  }
  yield writer.finish();
}

function readLocal(file: RandomAccessFile, offsetBytes: number, lengthBytes: number): Uint8Array {
  const bytes = Buffer.allocUnsafeSlow(lengthBytes);
  const missing = new MissingList();
  if (file.readSync(offsetBytes, lengthBytes, bytes, 0, missing)) return bytes;
  const what = `${missing.ranges.length} ranges are not local; fetch the layers first`;
  throw new AppError('FailedPrecondition', { op: 'commit', subject: 'layer', what });
}
