/** Bounds of the admin API, with their reasons. */
import { KIB } from '../plugin/base/units.ts';

/** Requests carry a reference and little else. */
export const MAX_REQUEST_BYTES = 64 * KIB;

/** Answers come from memory and the local database; what takes longer is stuck, and the caller should know. */
export const ANSWER_DEADLINE_MS = 10_000;

/** A large image (20 GiB) over a slow link (10 MB/s) takes half an hour; the caller may hang up earlier, which ends the work. */
export const MATERIALIZE_DEADLINE_MS = 60 * 60_000;

/** Materializations at once: each may fill the link; the second is for an operator who mistyped the first. */
export const MAX_MATERIALIZATIONS = 2;

/** A page of a list: about 1 MiB of JSON at 500 bytes a row. */
export const PAGE_ROWS_MAX = 2000;
export const PAGE_ROWS_DEFAULT = 500;

/** People and one scraper use the API; more connections than this are a mistake or an attack. */
export const MAX_CONNECTIONS = 64;

/** References are at most 255 bytes of name, 128 of tag and 72 of digest. */
export const MAX_REFERENCE_CHARS = 512;

/** Callers that watch a conversion; each holds a connection of the 64. */
export const WATCHERS_MAX = 32;
