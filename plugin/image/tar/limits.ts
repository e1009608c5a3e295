/** Bounds of the tar reader; each protects memory or time against a stream made to hurt. */
import { KIB, MIB } from '../../base/units.ts';

/** One PAX header, GNU long name or long link; Go's archive/tar, which wrote most layers, has the same limit. */
export const MAX_META_BYTES = 1 * MIB;

/** Headers (PAX, long name, long link, global) before one entry: writers use at most three. */
export const MAX_META_HEADERS = 32;

/** A path or link target: Linux's PATH_MAX without its NUL. */
export const MAX_PATH_BYTES = 4 * KIB - 1;

/** One component of a path: Linux's NAME_MAX. */
export const MAX_NAME_BYTES = 255;

/** Data segments of one sparse file: each of them, be it one byte, becomes a block of 4 KiB of output; 64 MiB at most at a time. */
export const MAX_SPARSE_SEGMENTS = 16_384;

/** The map of a PAX 1.0 sparse file: at most 2 numbers of 20 digits and a newline a segment. */
export const MAX_SPARSE_MAP_BYTES = 1 * MIB;

/** A content size or position beyond this is a lie: 2^53-1 less room for rounding. */
export const MAX_CONTENT_BYTES = Number.MAX_SAFE_INTEGER - 1 * MIB;
