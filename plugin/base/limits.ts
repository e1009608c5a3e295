/**
 * Every bound that more than one part relies on, with its reason. Bounds of one format or one part stand beside their use.
 */
import { GIB, KIB, MIB } from './units.ts';

/** Presence granularity of the chunk store and least fetch: one miss costs at most this much of a link. */
export const FETCH_UNIT_BYTES = 64 * KIB;

/** A stream's fetch grows to this: at 30 ms round trip four of them in flight fill 1 Gbit/s. */
export const FETCH_STREAM_BYTES = 1 * MIB;

/** Layers in one device; the format's own limit (overlaybd-formats.md 10.3). */
export const MAX_LAYERS = 255;

/** A block device larger than this is a lie: the largest base layer in use says 256 GiB; endless reads must not follow from a header. */
export const MAX_DEVICE_BYTES = 64 * 1024 * GIB;

/** A layer blob larger than this is refused before any allocation. */
export const MAX_BLOB_BYTES = 16 * 1024 * GIB;

/** A manifest, index or config larger than this is refused (containerd's own limit is 8 MiB). */
export const MAX_MANIFEST_BYTES = 8 * MIB;

/** gRPC messages: CRI lists of a full node pass 4 MiB. */
export const MAX_GRPC_MESSAGE_BYTES = 16 * MIB;

/** A read that misses while the registry is away waits this long before the container sees an I/O error. */
export const MISS_PATIENCE_MS = 10 * 60_000;
