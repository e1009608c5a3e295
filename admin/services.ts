/**
 * What the admin API needs from the rest of the service: one interface, implemented by the wiring in `plugin/main.ts`, and the shapes
 * of its answers. The shapes are zod schemas, so that one source gives the types, the OpenAPI document and the checks.
 */
import { z } from '@hono/zod-openapi';

const count = z.int().min(0);
const bytes = z.int().min(0).openapi({ description: 'bytes' });
const at = z.string().openapi({ description: 'ISO 8601, UTC', example: '2026-01-31T12:00:00.000Z' });

export const processSchema = z
  .object({ name: z.enum(['keeper', 'blockd', 'sidecar']), pid: z.int().nullable(), state: z.enum(['running', 'down']) })
  .openapi('Process');

export const statusSchema = z
  .object({
    version: z.string(),
    startedAt: at,
    /** Every part works; `degraded` is empty. */
    isReady: z.boolean(),
    /** What does not work and since when, one sentence each. */
    degraded: z.array(z.string()),
    processes: z.array(processSchema),
    rootDirectory: z.string(),
    snapshotterSocket: z.string(),
    counts: z.object({ snapshots: count, brokenSnapshots: count, devices: count, images: count }),
  })
  .openapi('Status');
export type NodeStatus = z.infer<typeof statusSchema>;

export const snapshotSchema = z
  .object({
    key: z.string(),
    kind: z.enum(['active', 'view', 'committed']),
    parent: z.string().nullable(),
    /**
     * remote: its bytes come from the registry when read. downloaded: a block layer that containerd fetched whole. ordinary: a directory,
     * as the overlayfs snapshotter has it.
     */
    layer: z.enum(['remote', 'downloaded', 'ordinary']),
    image: z.string().nullable(),
    layerDigest: z.string().nullable(),
    createdAt: at,
    updatedAt: at,
    deviceId: z.string().nullable(),
    /**
     * Whether every layer of the image is served lazily, as decided at its first Prepare, and if not, which layer ended it; null when
     * nothing had to be decided (a container, an image without overlaybd layers).
     */
    decision: z.object({ isLazy: z.boolean(), reason: z.string() }).nullable(),
    /** Set when the snapshot cannot be used: it can still be removed, and blocks no other. */
    broken: z.object({ reason: z.string(), since: at }).nullable(),
  })
  .openapi('Snapshot');
export type SnapshotRow = z.infer<typeof snapshotSchema>;

export const deviceSchema = z
  .object({
    id: z.string(),
    image: z.string(),
    state: z.enum(['opening', 'attached', 'releasing', 'failed']),
    /** Why it failed, or what it waits for. */
    detail: z.string().nullable(),
    /** The FUSE file that the kernel reads. */
    devicePath: z.string(),
    sizeBytes: bytes,
    layerCount: count,
    /** Bytes of its layers, as the registry has them; equal layers of two devices count for both. */
    layerBytes: bytes,
    /** Of these, bytes that are local. */
    presentBytes: bytes,
    /** Of these, bytes that a container has read. */
    accessedBytes: bytes,
    /** Reads that the kernel asked for, since blockd started; so are the next ones. */
    readCount: count,
    /** Bytes of these reads. */
    readBytes: bytes,
    /** Reads that were answered from local bytes. */
    hitCount: count,
    /** Reads that found something missing. */
    missCount: count,
    /** Reads that waited for the registry for a second or longer. */
    stallCount: count,
    /** Reads that wait for the registry now. */
    waitingCount: count,
    /** Reads that ended in an I/O error. */
    failureCount: count,
  })
  .openapi('Device');
export type DeviceRow = z.infer<typeof deviceSchema>;

export const storeSchema = z
  .object({
    budgetBytes: bytes,
    /** On disk, as `du` counts it. */
    usedBytes: bytes,
    /** Reserved for fetches that are under way. */
    reservedBytes: bytes,
    /** Fetched bytes that only memory holds, since the disk does not take them. */
    memoryBytes: bytes,
    blobCount: count,
    /** Why fetched bytes are not kept on disk now: `budget`, or a system error such as `ENOSPC`. Reads go on all the same. */
    degradedBy: z.string().nullable(),
  })
  .openapi('Store');
export type StoreStatus = z.infer<typeof storeSchema>;

export const storeBlobSchema = z
  .object({
    /** The blob's digest, or the name that the store knows it by. */
    blob: z.string(),
    diskBytes: bytes,
    /** open: a device reads it. pinned: an image cache keeps it. idle: it may be evicted. */
    use: z.enum(['open', 'pinned', 'idle']),
  })
  .openapi('StoreBlob');
export type StoreBlob = z.infer<typeof storeBlobSchema>;

export const evictionSchema = z
  .object({ freedBytes: bytes, evictedBlobs: count, usedBytes: bytes.openapi({ description: 'on disk afterwards' }) })
  .openapi('Eviction');
export type Eviction = z.infer<typeof evictionSchema>;

export const trafficSchema = z
  .object({
    /** Reads that the kernel asked for, and their bytes, since blockd started; so are all counts here. */
    readCount: count,
    readBytes: bytes,
    /** Reads that found something missing. */
    missCount: count,
    /** Reads that wait for a registry now. */
    waitingCount: count,
    /** Range requests sent, retries included. */
    requestCount: count,
    retryCount: count,
    /** Reads that were given up. */
    failureCount: count,
    /** Bytes received, by what they were asked for: a read, a stream's read-ahead, the background fill. */
    fetchedBytes: z.object({ demand: bytes, prefetch: bytes, fill: bytes }),
  })
  .openapi('Traffic');
export type Traffic = z.infer<typeof trafficSchema>;

export const eventSchema = z
  .object({
    at,
    source: z.enum(['blockd', 'sidecar']),
    severity: z.enum(['info', 'warning', 'error']),
    /** A stable name: `device.read-failed`, `image-resolved`. */
    kind: z.string(),
    /** What it is about: a device, digest, snapshot key or reference. */
    subject: z.string(),
    message: z.string(),
  })
  .openapi('Event');
export type EventRow = z.infer<typeof eventSchema>;

export const materializeResultSchema = z
  .object({
    reference: z.string(),
    manifestDigest: z.string(),
    layerCount: count,
    totalBytes: bytes,
    /** Fetched by this call; the rest was local. */
    fetchedBytes: bytes,
  })
  .openapi('MaterializeResult');
export type MaterializeResult = z.infer<typeof materializeResultSchema>;

/**
 * Implemented by the wiring. Lists are complete and in a stable order (snapshots by key, devices by id, events oldest first); the API cuts
 * pages. Failures are AppError: `Unavailable` when blockd does not answer.
 */
export interface AdminServices {
  status(signal: AbortSignal): Promise<NodeStatus>;
  snapshots(signal: AbortSignal): Promise<readonly SnapshotRow[]>;
  devices(signal: AbortSignal): Promise<readonly DeviceRow[]>;
  store(signal: AbortSignal): Promise<StoreStatus>;
  /** Of `totalCount` blobs at most `limit`: idle ones least recently used first, then pinned, then open ones. */
  storeBlobs(limit: number, signal: AbortSignal): Promise<{ blobs: StoreBlob[]; totalCount: number }>;
  /** Removes idle blobs, least recently used first, until `freeBytes` are freed or none is left. */
  evict(freeBytes: number, signal: AbortSignal): Promise<Eviction>;
  traffic(signal: AbortSignal): Promise<Traffic>;
  /** Events that both processes still hold and the audit log, merged by time: the newest, at most `limit`. */
  events(limit: number, signal: AbortSignal): Promise<readonly EventRow[]>;
  /** Fetches what is missing of every layer of an image that this node serves lazily, and puts it where containerd finds it. */
  materialize(reference: string, signal: AbortSignal): Promise<MaterializeResult>;
}
