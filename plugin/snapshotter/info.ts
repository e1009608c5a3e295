/** What callers see of a snapshot. */
import type { SnapshotKind, SnapshotRow } from '../../db/snapshot-store.ts';
import type { FilterSubject } from './filters.ts';
import { LABEL_BROKEN } from './labels.ts';

export interface SnapshotInfo {
  name: string;
  /** Empty: none. */
  parent: string;
  kind: SnapshotKind;
  labels: Readonly<Record<string, string>>;
  createdUs: number;
  updatedUs: number;
}

/** A broken snapshot shows its reason as a label, so that every client's list tells it. */
function labelsOf(row: SnapshotRow): Readonly<Record<string, string>> {
  return row.brokenReason === null ? row.labels : { ...row.labels, [LABEL_BROKEN]: row.brokenReason };
}

export function infoOf(row: SnapshotRow): SnapshotInfo {
  return {
    name: row.key,
    parent: row.parentKey ?? '',
    kind: row.kind,
    labels: labelsOf(row),
    createdUs: row.createdUs,
    updatedUs: row.updatedUs,
  };
}

export function filterSubjectOf(row: SnapshotRow): FilterSubject {
  return { name: row.key, parent: row.parentKey ?? '', kind: row.kind, labels: labelsOf(row) };
}
