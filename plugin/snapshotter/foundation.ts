/** What a snapshot stands on: the ordinary layers above the topmost accelerated snapshot of its chain, and that snapshot's device. */
import type { SnapshotRow, SnapshotStore } from '../../db/snapshot-store.ts';
import { AppError } from '../base/errors.ts';
import { type Accelerated, decodeAccelerated, deviceSpecOf } from './accelerated.ts';
import type { SnapshotDirectories } from './directories.ts';

export interface Foundation {
  /** Directories of the ordinary layers, top first. */
  directories: string[];
  /** What the lowest lower is mounted from; absent: there is no device. */
  accelerated: Accelerated | undefined;
}

/** A refusal that is part of containerd's contract. */
export function refusal(
  code: 'NotFound' | 'FailedPrecondition' | 'InvalidArgument' | 'AlreadyExists',
  op: string,
  subject: string,
  what: string,
): AppError {
  return new AppError(code, { op, subject, what });
}

/**
 * The foundation above `parent` and below. Throws FailedPrecondition when a snapshot that would be used is broken, with its reason;
 * NotFound when one is removed meanwhile.
 */
export function foundationOf(
  op: string,
  key: string,
  parent: SnapshotRow | undefined,
  parts: { snapshots: SnapshotStore; directories: SnapshotDirectories },
): Foundation {
  const found: Foundation = { directories: [], accelerated: undefined };
  for (const link of parent === undefined ? [] : parts.snapshots.chain(parent.id)) {
    if (link.brokenReason !== null) {
      throw refusal('FailedPrecondition', op, key, `snapshot ${link.key} below it is broken: ${link.brokenReason}`);
    }
    if (!link.isAccelerated) {
      found.directories.push(parts.directories.own(link.id));
      continue;
    }
    // A device is complete by itself: what lies below in the chain is not asked.
    const row = parts.snapshots.getById(link.id);
    if (row?.accelerated == null) throw refusal('NotFound', op, key, `snapshot ${link.key} below it was removed meanwhile`);
    found.accelerated = decodeAccelerated(row.accelerated, row.key);
    break;
  }
  return found;
}

/** The directories to mount, top first. */
export function lowersOf(foundation: Foundation | undefined, directories: SnapshotDirectories): string[] {
  if (foundation === undefined) return [];
  if (foundation.accelerated === undefined) return foundation.directories;
  return [...foundation.directories, directories.mountPoint(deviceSpecOf(foundation.accelerated).id)];
}
