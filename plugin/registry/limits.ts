/** Bounds of the registry client, each with its reason. */
import { KIB, MIB } from '../base/units.ts';

/** Connections to one origin: 128 × 1 request ÷ 20 ms round trip = 6,400 ranges per second, twice the goal. */
export const MAX_CONNECTIONS_PER_ORIGIN = 128;

/** Origins with open connections: registries, mirrors, storage hosts and token services of one node. The least recently used is closed. */
export const MAX_ORIGINS = 128;

/** Requests under way or waiting for a connection, all origins together: 16 waiting per connection of two origins. */
export const MAX_PENDING_REQUESTS = 4096;

/** A quiet connection is kept this long: shorter than the 60 s after which common load balancers drop one silently. */
export const KEEP_ALIVE_MS = 30_000;

/** TCP and TLS set-up: four lost SYN packets' worth on a bad link; a host that needs longer is down. */
export const CONNECT_TIMEOUT_MS = 5_000;

/** Until response headers: registries that fetch from a slow store behind them answer within a few seconds. */
export const HEADERS_TIMEOUT_MS = 15_000;

/** Between two pieces of a body. */
export const BODY_IDLE_TIMEOUT_MS = 10_000;

/** One range read with all its mirrors, renewals and redirects, before the size is counted. */
export const RANGE_TIMEOUT_MS = 30_000;

/** Added to {@link RANGE_TIMEOUT_MS} by size: a link slower than 32 KiB/s is treated as down. */
export const SLOWEST_BYTES_PER_MS = 32;

/** One small request (token, manifest, list page, upload step) with its redirects. */
export const REQUEST_TIMEOUT_MS = 30_000;

/** A blob that is held in memory as a whole: the index of a layer of some GB. A caller that wants more than a document says so. */
export const MAX_SMALL_BLOB_BYTES = 64 * MIB;

/** The largest range of one call; callers ask for about 1 MiB. */
export const MAX_RANGE_BYTES = 64 * MIB;

/** A whole blob sent in answer to a range is read up to here (bytes before the range are dropped); above, the answer is an error. */
export const MAX_WHOLE_BLOB_BYTES = 4 * MIB;

/** Redirects followed for one request; object stores use one or two. */
export const MAX_REDIRECTS = 5;

/** Bodies of answers nobody wants are read to this size so that the connection can be used again; a longer one is cut off. */
export const MAX_DISCARD_BYTES = 64 * KIB;

/** Where a blob is read from is remembered this long: the usual life of a signed URL is 15 minutes or more, the reference keeps 300 s. */
export const ROUTE_LIFETIME_MS = 300_000;

/** Remembered blob routes: the layers of some 100 running images. About 1 KiB each. */
export const MAX_ROUTES = 8192;

/** A redirect target longer than this is refused; signed URLs have 1–2 KiB. */
export const MAX_URL_CHARS = 16 * KIB;

/** Bearer token and header lengths: servers refuse header blocks above 8–64 KiB anyway. */
export const MAX_TOKEN_CHARS = 32 * KIB;

/** A token service's answer, a credential helper's answer. */
export const MAX_TOKEN_RESPONSE_BYTES = 256 * KIB;

/** Kept authorizations: one per repository and action in use. */
export const MAX_AUTHORIZATIONS = 4096;

/** A token without a stated life lives this long (distribution token specification). */
export const DEFAULT_TOKEN_LIFETIME_MS = 60_000;

/** A token is used at least this long, whatever it says, so that a life of 0 s does not double every request; a 401 ends it earlier. */
export const MIN_TOKEN_LIFETIME_MS = 30_000;

/** No token is trusted longer than this without asking again. */
export const MAX_TOKEN_LIFETIME_MS = 24 * 3_600_000;

/** How long credentials are used before their source is asked again: the longest time that a rotated secret stays in use. */
export const CREDENTIAL_RECHECK_MS = 1_000;

/** After a refused token request, the same one is not repeated for this long: thousands of reads must not become thousands of logins. */
export const TOKEN_FAILURE_HOLD_MS = 1_000;

/** The same while the token service is away: short, since reads must go on within 2 s of its return. */
export const TOKEN_OUTAGE_HOLD_MS = 250;

/** Remembered failures of token requests. */
export const MAX_TOKEN_FAILURES = 256;

/** A credential helper is a program that may talk to a cloud: it gets this long. */
export const HELPER_TIMEOUT_MS = 10_000;

/** A helper's answer is reused this long: starting a process per repository and second would be felt. */
export const HELPER_CACHE_MS = 30_000;

/** After a failure it is not run again for this long: short, since reads must go on soon after the cloud login's return. */
export const HELPER_FAILURE_HOLD_MS = 500;

/** While a helper fails or docker's file cannot be read, what they said last goes on for this long: six times the patience of a read. */
export const KEEP_CREDENTIALS_MS = 3_600_000;
export const MAX_HELPER_ENTRIES = 256;

/** docker's config.json; a node with a thousand registries has 200 KiB. */
export const MAX_DOCKER_CONFIG_BYTES = 4 * MIB;

/** Files of hosts.toml directories: certificates, keys, bundles. */
export const MAX_HOST_FILE_BYTES = 4 * MIB;

/** Mirrors of one registry. */
export const MAX_MIRRORS = 16;

/** Registries whose host configuration is remembered. */
export const MAX_HOSTS = 512;

/** Files are looked at again after this long, so that a change counts from then on. */
export const FILE_RECHECK_MS = 1_000;

/** A mirror that failed is passed over for this long at first, doubled with each further failure. */
export const MIRROR_HOLD_MS = 1_000;
export const MIRROR_HOLD_MAX_MS = 30_000;

/** What a mirror that failed last time gets of a request while others are left: a unit of 64 KiB at 180 kbit/s. */
export const MIRROR_TRIAL_MS = 3_000;
export const MAX_MIRROR_STATES = 1024;

/** Retry-After is believed up to here. */
export const MAX_RETRY_AFTER_MS = 5 * 60_000;

/** What callers should wait after a failure that says nothing about time. */
export const DEFAULT_RETRY_AFTER_MS = 200;

/** Attempts of one small request, and the first wait between them (doubled, with jitter). */
export const MAX_ATTEMPTS = 3;
export const FIRST_BACKOFF_MS = 200;
/** A longer wait than this is the caller's decision, not the client's. */
export const MAX_BACKOFF_MS = 2_000;

/** Pages and entries of one list (tags, referrers). */
export const MAX_PAGES = 100;
export const MAX_TAGS = 100_000;
export const MAX_REFERRERS = 20_000;
export const MAX_PAGE_BYTES = 8 * MIB;

/** Writes of a referrers tag before other writers win: nodes that convert the same image write it at the same moment. Some seconds. */
export const MAX_REFERRERS_ATTEMPTS = 8;

/** Entries of a referrers tag that are looked at one after the other when the registry misses one: seconds, and far above real lists. */
export const MAX_REFERRERS_CHECKED = 256;

/** Breaks without progress after which a streamed blob or an upload gives up. */
export const MAX_STREAM_BREAKS = 5;

/** A streamed body holds at most this much that its reader has not taken. */
export const STREAM_BUFFER_BYTES = 1 * MIB;

/** Blobs up to this size are uploaded in one request. */
export const MONOLITHIC_UPLOAD_BYTES = 4 * MIB;

/** Pieces read from a source during an upload. */
export const UPLOAD_READ_BYTES = 256 * KIB;

/** No byte of an upload accepted for this long means that the connection is dead. */
export const UPLOAD_IDLE_TIMEOUT_MS = 30_000;

/** Committing a large blob makes some registries hash and copy it before they answer. */
export const UPLOAD_COMMIT_TIMEOUT_MS = 300_000;
