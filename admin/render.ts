/** Answers of the admin API as text for people: tables with padded columns. Control characters from outside are made visible. */
import { formatBytes } from '../plugin/base/units.ts';
import type { AuditEntryView } from './audit-routes.ts';
import type {
  DeviceRow,
  EventRow,
  Eviction,
  MaterializeResult,
  NodeStatus,
  SnapshotRow,
  StoreBlob,
  StoreStatus,
  Traffic,
} from './services.ts';

/** Names and messages may come from a registry: what could steer a terminal is escaped. */
export function printable(text: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

/** Left-aligned columns, two spaces between; a table without rows says so. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [header, ...(rows.length === 0 ? [['(none)']] : rows)].map((row) => row.map(printable));
  const widths = header.map((_, column) => Math.max(...lines.map((row) => row[column]?.length ?? 0)));
  return lines
    .map(
      (row) =>
        `${row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}

const short = (text: string | null, chars: number): string =>
  text === null ? '-' : text.length > chars ? `${text.slice(0, chars - 1)}…` : text;

export function renderStatus(status: NodeStatus): string {
  const { counts } = status;
  const lines = [
    `overlaybd-sidecar ${status.version}: ${status.isReady ? 'ready' : 'DEGRADED'}, since ${status.startedAt}`,
    ...status.degraded.map((reason) => `  ! ${printable(reason)}`),
    `root ${status.rootDirectory}, snapshotter ${status.snapshotterSocket}`,
    `${counts.images} images, ${counts.snapshots} snapshots (${counts.brokenSnapshots} broken), ${counts.devices} devices`,
    '',
  ];
  const rows = status.processes.map((p) => [p.name, p.state, p.pid === null ? '-' : String(p.pid)]);
  return `${lines.join('\n')}\n${table(['PROCESS', 'STATE', 'PID'], rows)}`;
}

export function renderSnapshots(rows: readonly SnapshotRow[]): string {
  const lines = rows.map((s) => [
    short(s.key, 72),
    s.kind,
    s.layer,
    s.decision === null ? '-' : s.decision.isLazy ? 'lazy' : s.layer === 'remote' ? 'partly' : 'ordinary',
    short(s.image, 60),
    s.broken !== null ? `broken: ${s.broken.reason}` : s.decision !== null && !s.decision.isLazy ? s.decision.reason : '',
  ]);
  return table(['KEY', 'KIND', 'LAYER', 'IMAGE IS', 'IMAGE', 'REASON'], lines);
}

export function renderDevices(rows: readonly DeviceRow[]): string {
  const lines = rows.map((d) => [
    short(d.id, 12),
    d.state,
    formatBytes(d.layerBytes),
    formatBytes(d.presentBytes),
    formatBytes(d.readBytes),
    d.readCount === 0 ? '-' : `${Math.floor((100 * d.hitCount) / d.readCount)} %`,
    String(d.missCount),
    String(d.stallCount),
    String(d.waitingCount),
    String(d.failureCount),
    short(d.image, 60),
    d.detail ?? '',
  ]);
  return table(['DEVICE', 'STATE', 'LAYERS', 'LOCAL', 'READ', 'HITS', 'MISSES', 'STALLS', 'WAITING', 'FAILED', 'IMAGE', 'DETAIL'], lines);
}

export function renderStore(store: StoreStatus): string {
  const share = (100 * store.usedBytes) / Math.max(1, store.budgetBytes);
  return table(
    ['STORE', ''],
    [
      ['used', `${formatBytes(store.usedBytes)} of ${formatBytes(store.budgetBytes)} (${share.toFixed(1)} %)`],
      ['reserved', formatBytes(store.reservedBytes)],
      ['blobs', String(store.blobCount)],
      [
        'disk',
        store.degradedBy === null
          ? 'keeps what is fetched'
          : `DEGRADED (${store.degradedBy}); ${formatBytes(store.memoryBytes)} held in memory`,
      ],
    ],
  );
}

export function renderBlobs(blobs: readonly StoreBlob[], totalCount: number): string {
  const rows = blobs.map(({ blob, diskBytes, use }) => [blob, formatBytes(diskBytes), use]);
  const more = totalCount > blobs.length ? `${totalCount - blobs.length} more\n` : '';
  return table(['BLOB', 'ON DISK', 'USE'], rows) + more;
}

export function renderEviction({ evictedBlobs, freedBytes, usedBytes }: Eviction): string {
  return `${evictedBlobs} blobs with ${formatBytes(freedBytes)} removed; ${formatBytes(usedBytes)} in use\n`;
}

export function renderTraffic(t: Traffic): string {
  const { demand, prefetch, fill } = t.fetchedBytes;
  return table(
    ['TRAFFIC', ''],
    [
      ['read', `${formatBytes(t.readBytes)} in ${t.readCount} reads`],
      ['misses', `${t.missCount} (${t.waitingCount} wait now, ${t.failureCount} given up)`],
      ['fetched', `${formatBytes(demand)} for reads, ${formatBytes(prefetch)} ahead of them, ${formatBytes(fill)} in the background`],
      ['requests', `${t.requestCount} (${t.retryCount} retries)`],
    ],
  );
}

export function renderEvents(rows: readonly EventRow[]): string {
  return table(
    ['TIME', 'SOURCE', 'SEVERITY', 'KIND', 'SUBJECT', 'MESSAGE'],
    rows.map((e) => [e.at, e.source, e.severity, e.kind, short(e.subject, 72), e.message]),
  );
}

export function renderAudit(rows: readonly AuditEntryView[]): string {
  return table(
    ['TIME', 'KIND', 'BY', 'ACTION', 'PATH', 'STATUS', 'REQUEST'],
    rows.map((row) => [row.at, row.kind, row.caller, row.action, short(row.path, 72), String(row.status), row.requestId]),
  );
}

/** After a removal that answers nothing. */
export function printRemoved(print: (answer: unknown, text: () => string) => void, removed: readonly string[]): void {
  print({ removed }, () => removed.map((one) => `removed ${printable(one)}\n`).join(''));
}

export function renderMaterialized(result: MaterializeResult): string {
  const local = formatBytes(result.totalBytes - result.fetchedBytes);
  const text = `${result.reference}: ${result.layerCount} layers, ${formatBytes(result.totalBytes)} complete (${formatBytes(result.fetchedBytes)} fetched, ${local} were local)`;
  return `${printable(text)}\n`;
}
