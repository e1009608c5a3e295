/** What the admin API shows, gathered from the parts of the control plane and from blockd. */
import { auditEvent } from '../../admin/audit.ts';
import type {
  AdminServices,
  DeviceRow,
  EventRow,
  Eviction,
  MaterializeResult,
  NodeStatus,
  SnapshotRow,
  StoreBlob,
  StoreStatus,
  Traffic,
} from '../../admin/services.ts';
import { AuditStore } from '../../db/audit-store.ts';
import { SnapshotStore, type SnapshotRow as StoredSnapshot } from '../../db/snapshot-store.ts';
import type { Config } from '../base/config/config.ts';
import { describeError, isAppError } from '../base/errors.ts';
import type { BlockdClient } from '../blockd/client.ts';
import type { DataPlaneEvent } from '../blockd/events.ts';
import type { CacheService } from '../cache/service.ts';
import type { ConvertService } from '../convert/service.ts';
import { decodeAccelerated } from '../snapshotter/accelerated.ts';
import { pulledImageOf } from '../snapshotter/labels.ts';
import type { SnapshotterService } from '../snapshotter/service.ts';

/** Rows that one answer holds; the API cuts pages from them. */
const MAX_ROWS = 10_000;

/** Types of the control plane's own events that are not mere news. */
const SEVERITIES: Readonly<Record<string, EventRow['severity']>> = {
  'snapshot-broken': 'error',
  'device-not-open': 'error',
  'layer-not-lazy': 'warning',
  'api-refused': 'warning',
  'blob-lost': 'error',
  'pod-annotation-ignored': 'warning',
  'pod-pin-refused': 'warning',
  'pod-rights-refused': 'warning',
  'pod-cache-not-used': 'warning',
  'pod-cache-not-created': 'warning',
  'pod-match-failed': 'warning',
  'pod-pulls-always': 'warning',
  'secret-ignored': 'warning',
  'credential-can-write': 'warning',
  'credential-source-failed': 'warning',
  'credential-not-renewed': 'error',
  'credential-not-stored': 'error',
  'credential-rules-refused': 'error',
  'convert-over-budget': 'warning',
};

const isoOfUs = (us: number): string => new Date(us / 1000).toISOString();

export interface AdminParts {
  config: Config;
  version: string;
  snapshotter: SnapshotterService;
  blockd: BlockdClient;
  convert: Pick<ConvertService, 'complaint'>;
  caches: Pick<CacheService, 'complaint'>;
  materialize(reference: string, signal: AbortSignal): Promise<MaterializeResult>;
}

export class GatheredAdminServices implements AdminServices {
  private readonly parts: AdminParts;
  private readonly rows: SnapshotStore;
  private readonly audit: AuditStore;
  private readonly startedAt = new Date().toISOString();

  constructor(parts: AdminParts) {
    this.parts = parts;
    this.rows = new SnapshotStore(parts.snapshotter.database);
    this.audit = new AuditStore(parts.snapshotter.database);
  }

  async status(signal: AbortSignal): Promise<NodeStatus> {
    const { config, version, blockd, snapshotter, convert, caches } = this.parts;
    const degraded = [convert.complaint, caches.complaint].filter((complaint) => complaint !== undefined);
    let blockdPid: number | null = null;
    let devices = 0;
    try {
      const stats = await blockd.stats(signal);
      blockdPid = stats.pid;
      devices = (await blockd.devices(signal)).length;
      const { degradedBy } = stats.store;
      if (degradedBy !== undefined) degraded.push(`The store keeps no fetched bytes (${degradedBy}); reads go on from the network.`);
    } catch (error) {
      if (!isAppError(error)) throw error;
      degraded.push(`Blockd does not answer, so no further image can be opened: ${describeError(error)}.`);
    }
    const rows = this.allRows();
    return {
      version,
      startedAt: this.startedAt,
      isReady: degraded.length === 0,
      degraded,
      processes: [
        { name: 'keeper', pid: process.ppid, state: 'running' },
        { name: 'blockd', pid: blockdPid, state: blockdPid === null ? 'down' : 'running' },
        { name: 'sidecar', pid: process.pid, state: 'running' },
      ],
      rootDirectory: config.paths.root,
      snapshotterSocket: config.snapshotter.socket,
      counts: {
        snapshots: rows.length,
        brokenSnapshots: rows.filter((row) => row.brokenReason !== null).length,
        devices,
        images: new Set(snapshotter.resolutions(MAX_ROWS).map((row) => row.image)).size,
      },
    };
  }

  async snapshots(): Promise<readonly SnapshotRow[]> {
    const decisions = new Map(this.parts.snapshotter.resolutions(MAX_ROWS).map((row) => [row.subject, row.reason]));
    return this.allRows()
      .map((row) => showSnapshot(row, decisions))
      .sort((a, b) => (a.key < b.key ? -1 : 1));
  }

  async devices(signal: AbortSignal): Promise<readonly DeviceRow[]> {
    const devices = await this.parts.blockd.devices(signal);
    return devices
      .map(({ id, image, state, detail, devicePath, sizeBytes, layerCount, presentBytes, accessedBytes, ...device }) => ({
        ...{ id, image, state, detail, devicePath, sizeBytes, layerCount, presentBytes, accessedBytes },
        layerBytes: device.blobBytes,
        readCount: device.reads,
        readBytes: device.readBytes,
        hitCount: Math.max(0, device.reads - device.misses),
        missCount: device.misses,
        stallCount: device.stalls,
        waitingCount: device.waiting,
        failureCount: device.failures,
      }))
      .sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  async store(signal: AbortSignal): Promise<StoreStatus> {
    const { store } = await this.parts.blockd.stats(signal);
    return {
      budgetBytes: store.budgetBytes,
      usedBytes: store.bytes,
      reservedBytes: store.reservedBytes,
      memoryBytes: store.memoryBytes,
      blobCount: store.blobs,
      degradedBy: store.degradedBy ?? null,
    };
  }

  async storeBlobs(limit: number, signal: AbortSignal): Promise<{ blobs: StoreBlob[]; totalCount: number }> {
    const { store } = await this.parts.blockd.stats(signal);
    const blobs = await this.parts.blockd.blobs(limit, signal);
    return { blobs: blobs.map(({ key, diskBytes, use }) => ({ blob: key, diskBytes, use })), totalCount: store.blobs };
  }

  async evict(freeBytes: number, signal: AbortSignal): Promise<Eviction> {
    const { blobs, bytes } = await this.parts.blockd.evict(freeBytes, signal);
    const { store } = await this.parts.blockd.stats(signal);
    return { freedBytes: bytes, evictedBlobs: blobs, usedBytes: store.bytes };
  }

  async traffic(signal: AbortSignal): Promise<Traffic> {
    const { fuse, fetch, waitingReads } = await this.parts.blockd.stats(signal);
    return {
      readCount: fuse.reads,
      readBytes: fuse.bytes,
      missCount: fuse.misses,
      waitingCount: waitingReads,
      requestCount: fetch.requests,
      retryCount: fetch.retries,
      failureCount: fetch.failures,
      fetchedBytes: { demand: fetch.bytesFetchedDemand, prefetch: fetch.bytesFetchedPrefetch, fill: fetch.bytesFetchedFill },
    };
  }

  async events(limit: number, signal: AbortSignal): Promise<readonly EventRow[]> {
    const audited = this.audit.list({ limit }).map((record) => ({ ...auditEvent(record), atUs: record.atUs }));
    const own = [...this.parts.snapshotter.events(limit), ...audited].map(
      (event): EventRow => ({
        at: isoOfUs(event.atUs),
        source: 'sidecar',
        severity: SEVERITIES[event.type] ?? 'info',
        kind: event.type,
        subject: event.subject,
        message: event.message,
      }),
    );
    const blockd = await this.dataPlaneEvents(signal);
    return [...own, ...blockd].sort((a, b) => (a.at < b.at ? -1 : a.at > b.at ? 1 : 0)).slice(-limit);
  }

  materialize(reference: string, signal: AbortSignal): Promise<MaterializeResult> {
    return this.parts.materialize(reference, signal);
  }

  /** What blockd still remembers; nothing while it is being replaced. */
  private async dataPlaneEvents(signal: AbortSignal): Promise<EventRow[]> {
    let events: DataPlaneEvent[];
    try {
      events = await this.parts.blockd.events(0, signal);
    } catch (error) {
      if (isAppError(error, 'Unavailable')) return [];
      throw error;
    }
    return events.map(({ atMs, severity, kind, subject, message }) => ({
      at: new Date(atMs).toISOString(),
      source: 'blockd',
      severity,
      kind,
      subject,
      message,
    }));
  }

  private allRows(): StoredSnapshot[] {
    return this.rows.page(0, MAX_ROWS);
  }
}

function showSnapshot(row: StoredSnapshot, decisions: ReadonlyMap<string, string | null>): SnapshotRow {
  const accelerated = row.accelerated === null ? undefined : decodeAccelerated(row.accelerated, row.key);
  const top = accelerated?.layers.at(-1);
  const pulled = pulledImageOf(row.labels);
  const subject = [row.artifactDigest, pulled.manifestDigest, pulled.image].find((one) => one != null && decisions.has(one));
  return {
    key: row.key,
    kind: row.kind,
    parent: row.parentKey,
    layer: top === undefined ? 'ordinary' : top.kind === 'full' && top.blob.localPath !== undefined ? 'downloaded' : 'remote',
    image: accelerated?.image ?? pulled.image ?? null,
    layerDigest: top === undefined ? null : top.kind === 'full' ? top.blob.digest : top.target.digest,
    createdAt: isoOfUs(row.createdUs),
    updatedAt: isoOfUs(row.updatedUs),
    deviceId: row.deviceId,
    decision: subject == null ? null : showDecision(decisions.get(subject) ?? null),
    broken: row.brokenReason === null ? null : { reason: row.brokenReason, since: isoOfUs(row.updatedUs) },
  };
}

function showDecision(refusal: string | null): { isLazy: boolean; reason: string } {
  return { isLazy: refusal === null, reason: refusal ?? 'every layer of the image can be served lazily' };
}
