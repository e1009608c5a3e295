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

/** Events that are looked through for those since a time: all that are kept, the audit log's included. */
export const EVENTS_MAX = 40_000;

/** People and one scraper use the API; more connections than this are a mistake or an attack. */
export const MAX_CONNECTIONS = 64;

/** References are at most 255 bytes of name, 128 of tag and 72 of digest. */
export const MAX_REFERENCE_CHARS = 512;

/** Callers that watch a conversion; each holds a connection of the 64. */
export const WATCHERS_MAX = 32;

/** Callers that watch image caches, and as many the status page; together with those of conversions they leave connections for others. */
export const PAGE_WATCHERS_MAX = 12;

/** Between two looks at everything for the status page; people do not see faster ones. */
export const OVERVIEW_INTERVAL_MS = 1000;

/** A comment this often tells both ends of a silent stream of events that the other is there. */
export const HEARTBEAT_MS = 15_000;

/** A reader of events who takes nothing for this long, heartbeats included, is gone or stuck; its place is for others. */
export const READER_PATIENCE_MS = 60_000;

/** How often connections are looked through for requests that are late: a late one lasts this much longer than it may. */
export const LATE_CHECK_MS = 1000;

/** Requests of one caller in a second: a script that reads one after the other does not get so far. */
export const READS_PER_SECOND = 1000;

/** Changes of one caller in a second; each is a flush of the database, about 1 ms. */
export const CHANGES_PER_SECOND = 300;

/** Caches of one page: each with its events, some 20 KiB. */
export const CACHE_PAGE_MAX = 100;
export const CACHE_PAGE_DEFAULT = 50;
