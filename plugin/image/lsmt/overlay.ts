/**
 * Merging layers: for each device sector the topmost record that covers it wins, zeroed or not. Source: the reference's merged index,
 * whose segments this equals one for one; computed here as a balanced tree of two-way merges, since laying one over another is
 * associative. Cost O(segments × log layers).
 */
import { AppError } from '../../base/errors.ts';
import { MAX_LAYERS } from '../../base/limits.ts';
import { isZeroed, lengthOf, SegmentBuilder, type SegmentTable } from './segments.ts';

/**
 * Segments of one device. 16 Mi × 20 bytes = 320 MiB of shared table, far above the largest image known (a few hundred thousand);
 * a hostile stack of 255 full indexes stops here instead of taking the node's memory.
 */
export const MAX_MERGED_SEGMENTS = 16 * 1024 * 1024;

/** Adds `base` to every `source`, so that tables of different layers can be merged. */
export function withSourceBase(table: SegmentTable, base: number): SegmentTable {
  if (base === 0) return table;
  const source = new Uint16Array(table.count);
  for (let i = 0; i < table.count; i++) source[i] = table.source[i]! + base;
  return { ...table, source };
}

/** Lays `upper` over `lower`. */
export function overlay(upper: SegmentTable, lower: SegmentTable): SegmentTable {
  const out = new SegmentBuilder(upper.count + lower.count);
  let j = 0;
  let visibleFrom = 0;

  /** Emits what of the lower table lies in [visibleFrom, until). */
  const emitLower = (until: number): void => {
    for (; j < lower.count; j++) {
      const begin = lower.lba[j]!;
      const end = begin + lengthOf(lower, j);
      const from = Math.max(begin, visibleFrom);
      const to = Math.min(end, until);
      if (from < to) {
        const zeroed = isZeroed(lower, j);
        out.push(from, to - from, zeroed ? lower.moffset[j]! : lower.moffset[j]! + (from - begin), zeroed, lower.source[j]!);
      }
      if (end > until) return;
    }
  };

  for (let i = 0; i < upper.count; i++) {
    const begin = upper.lba[i]!;
    const length = lengthOf(upper, i);
    emitLower(begin);
    out.push(begin, length, upper.moffset[i]!, isZeroed(upper, i), upper.source[i]!);
    visibleFrom = begin + length;
  }
  emitLower(Number.POSITIVE_INFINITY);
  return out.view();
}

/** Merges tables given bottom to top. Throws InvalidArgument above 255 layers and ResourceExhausted above {@link MAX_MERGED_SEGMENTS}. */
export function mergeLayers(tables: readonly SegmentTable[], subject: string): SegmentTable {
  if (tables.length > MAX_LAYERS) {
    throw new AppError('InvalidArgument', { op: 'merge layers', subject, what: `${tables.length} layers, at most ${MAX_LAYERS}` });
  }
  const total = tables.reduce((sum, table) => sum + table.count, 0);
  if (total > MAX_MERGED_SEGMENTS) {
    const what = `${total} segments, at most ${MAX_MERGED_SEGMENTS}`;
    throw new AppError('ResourceExhausted', { op: 'merge layers', subject, what, details: { limit: MAX_MERGED_SEGMENTS } });
  }
  return overlayAll(tables, 0, tables.length);
}

/** Merges tables[from, to): the later lies over the earlier. */
function overlayAll(tables: readonly SegmentTable[], from: number, to: number): SegmentTable {
  if (to - from === 0) return new SegmentBuilder(1).view();
  if (to - from === 1) return tables[from]!;
  const middle = (from + to) >>> 1;
  return overlay(overlayAll(tables, middle, to), overlayAll(tables, from, middle));
}

/** Size of a stack: the topmost size that is not 0 (given bottom to top), else 0. */
export function stackSizeBytes(virtualSizes: readonly number[]): number {
  return virtualSizes.findLast((size) => size > 0) ?? 0;
}
