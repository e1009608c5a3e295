/**
 * The snapshotter: containerd's ten calls, free of gRPC. Source of the contract: containerd's public package `snapshots`.
 *
 * Order of every change: files first, then one transaction that makes them count (with the rename inside), then the answer. Killed
 * anywhere, what has no row is garbage and what has a row works.
 */
import { randomUUID } from 'node:crypto';
import fs from 'node:fs/promises';
import type { Database } from '../../db/database.ts';
import type { DependencyStore } from '../../db/dependency-store.ts';
import type { EventStore } from '../../db/event-store.ts';
import type { SnapshotKind, SnapshotRow, SnapshotStore } from '../../db/snapshot-store.ts';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { DeviceSpec } from '../file/device-spec.ts';
import { type Accelerated, decodeAccelerated, deviceSpecOf, encodeAccelerated, needsOf } from './accelerated.ts';
import type { DeviceManager } from './device-manager.ts';
import type { SnapshotDirectories, StagedDirectory } from './directories.ts';
import { inspectDownloadedLayer } from './downloaded-layer.ts';
import { parseFilters } from './filters.ts';
import { type Foundation, foundationOf, lowersOf, refusal } from './foundation.ts';
import { hostRootOf } from './id-mapping.ts';
import type { IndexFiles } from './index-files.ts';
import { filterSubjectOf, infoOf, type SnapshotInfo } from './info.ts';
import {
  checkLabels,
  LABEL_BROKEN,
  LABEL_CHAIN_REF,
  LABEL_GID_MAPPING,
  LABEL_REMOTE,
  LABEL_UID_MAPPING,
  LABEL_VOLATILE,
  type PullRequest,
  readPullRequest,
} from './labels.ts';
import { type Mount, mountsOf } from './mount-table.ts';
import type { RemoteLayer } from './remote-layer.ts';
import type { UsageMeter } from './usage-meter.ts';
import { wallTimeUs } from './wall-time.ts';

type Labels = Readonly<Record<string, string>>;

/** One batch of a list: a message of some 100 KiB. */
const LIST_BATCH = 100;

/** Cleanup answers after this at the latest; deleting goes on. */
const CLEANUP_WAIT_MS = 60_000;

export interface SnapshotterParts {
  database: Database;
  snapshots: SnapshotStore;
  dependencies: DependencyStore;
  events: EventStore;
  directories: SnapshotDirectories;
  indexFiles: IndexFiles;
  devices: DeviceManager;
  usage: UsageMeter;
  logger: Logger;
  /** Options of every overlay mount. */
  overlayOptions: readonly string[];
  /** Whether user-namespace mappings become mount options; only when idmapped lowers work on this kernel. */
  remapIds: boolean;
  /** Within this a Prepare, View or Mounts answers, with Unavailable if its image is not there. */
  prepareDeadlineMs: number;
  /** How a layer of a pull is served; see remote-layer.ts. */
  resolveRemote: (pull: PullRequest, below: { depth: number; parent: Accelerated | undefined }) => Promise<RemoteLayer>;
}

function storedLabels(labels: Labels): Record<string, string> {
  return Object.fromEntries(Object.entries(labels).filter(([label, value]) => value !== '' && label !== LABEL_BROKEN));
}

export class Snapshotter {
  private readonly parts: SnapshotterParts;

  constructor(parts: SnapshotterParts) {
    this.parts = parts;
  }

  /**
   * Makes an active snapshot. For a pull whose layer needs no download it makes the committed one instead and throws AlreadyExists, as
   * containerd's protocol for remote snapshots wants it.
   */
  async prepare(key: string, parentKey: string, labels: Labels, signal: AbortSignal): Promise<Mount[]> {
    checkLabels(labels);
    const pull = readPullRequest(labels);
    if (pull === undefined) return this.create('active', key, parentKey, labels, signal, false);
    const parent = this.parentRow('prepare', key, parentKey);
    if (pull.layer !== undefined && this.findPulled(pull, parent) !== undefined) throw this.pulledError(pull);
    const chain = parent === undefined ? [] : this.parts.snapshots.chain(parent.id);
    const below = { depth: chain.length, parent: parent === undefined ? undefined : this.acceleratedOf(parent) };
    const remote = await this.parts.resolveRemote(pull, below);
    if ('accelerated' in remote) {
      this.insertPulled(pull, parentKey, labels, remote.accelerated);
      throw this.pulledError(pull);
    }
    const isOrdinary = 'ordinary' in remote;
    const reason = isOrdinary ? remote.reason : remote.refusedReason;
    if (reason !== undefined) {
      const message = `layer ${below.depth} (${pull.layerDigest}): ${reason}`;
      this.parts.events.append({ atUs: wallTimeUs(), type: 'layer-not-lazy', subject: pull.image ?? key, message });
    }
    return this.create('active', key, parentKey, labels, signal, !isOrdinary);
  }

  /** Makes a read-only snapshot of a committed one. */
  async view(key: string, parentKey: string, labels: Labels, signal: AbortSignal): Promise<Mount[]> {
    checkLabels(labels);
    return this.create('view', key, parentKey, labels, signal, false);
  }

  /** The mounts of an active snapshot or view; opens its device again if a restart closed it. */
  async mounts(key: string, signal: AbortSignal): Promise<Mount[]> {
    const row = this.row('mounts', key);
    if (row.kind === 'committed') throw refusal('FailedPrecondition', 'mounts', key, 'it is committed, neither active nor a view');
    if (row.brokenReason !== null) throw refusal('FailedPrecondition', 'mounts', key, `it is broken: ${row.brokenReason}`);
    const parent = row.parentId === null ? undefined : this.parts.snapshots.getById(row.parentId);
    const foundation = row.isolated ? undefined : foundationOf('mounts', key, parent, this.parts);
    using _lease = foundation?.accelerated && (await this.openDevice('mounts', key, foundation.accelerated, signal));
    const now = this.row('mounts', key);
    if (now.id !== row.id || now.kind !== row.kind) throw refusal('NotFound', 'mounts', key, 'it was removed or committed meanwhile');
    return this.mountsFor(now, foundation);
  }

  /** Turns an active snapshot into a committed one named `name`. */
  async commit(name: string, key: string, labels: Labels, signal: AbortSignal): Promise<void> {
    checkLabels(labels);
    const { database, snapshots, dependencies, directories, usage, devices, events } = this.parts;
    const before = this.activeRow(name, key);
    const taken = await usage.measure(directories.own(before.id), signal);
    const downloaded = before.isolated ? await this.inspect(before, labels) : undefined;
    const accelerated = downloaded !== undefined && 'accelerated' in downloaded ? downloaded.accelerated : undefined;
    const brokenReason = downloaded !== undefined && 'brokenReason' in downloaded ? downloaded.brokenReason : null;
    database.transaction(() => {
      const row = this.activeRow(name, key);
      if (row.id !== before.id) throw refusal('FailedPrecondition', 'commit', key, 'it was removed and made again meanwhile');
      snapshots.commit(row.id, {
        key: name,
        labels: storedLabels(labels),
        chainRef: labels[LABEL_CHAIN_REF] ?? null,
        nowUs: wallTimeUs(),
        usageInodes: taken.inodes,
        usageBytes: taken.bytes,
        accelerated: accelerated === undefined ? null : encodeAccelerated(accelerated),
        artifactDigest: accelerated?.artifact ?? null,
        baseDigest: accelerated?.base ?? null,
        brokenReason,
      });
      if (accelerated !== undefined) dependencies.addSnapshotNeeds(row.id, needsOf(accelerated));
      if (brokenReason !== null) events.append({ atUs: wallTimeUs(), type: 'snapshot-broken', subject: name, message: brokenReason });
    });
    if (before.deviceId !== null) devices.closeIfUnused(before.deviceId);
  }

  /** Forgets a snapshot; its files are deleted by {@link cleanup}. */
  remove(key: string): void {
    const { database, snapshots, devices } = this.parts;
    const row = database.transaction(() => {
      const found = this.row('remove', key);
      if (snapshots.hasChildren(found.id)) throw refusal('FailedPrecondition', 'remove', key, 'other snapshots stand on it');
      snapshots.remove(found.id);
      return found;
    });
    if (row.deviceId !== null) devices.closeIfUnused(row.deviceId);
  }

  stat(key: string): SnapshotInfo {
    return infoOf(this.row('stat', key));
  }

  /** Changes labels. `paths` are `labels` or `labels.<key>`; none: all labels are replaced. An empty value removes a label. */
  update(key: string, labels: Labels, paths: readonly string[]): SnapshotInfo {
    const { database, snapshots } = this.parts;
    return database.transaction(() => {
      const row = this.row('update', key);
      let next: Record<string, string> = paths.length === 0 ? { ...labels } : { ...row.labels };
      for (const path of paths) {
        if (path === 'labels') next = { ...labels };
        else if (path.startsWith('labels.')) next[path.slice('labels.'.length)] = labels[path.slice('labels.'.length)] ?? '';
        else throw refusal('InvalidArgument', 'update', key, `field ${JSON.stringify(path)} cannot be changed, only labels`);
      }
      checkLabels(next);
      const stored = storedLabels(next);
      snapshots.setLabels(row.id, stored, stored[LABEL_CHAIN_REF] ?? null, wallTimeUs());
      return infoOf(this.row('update', key));
    });
  }

  /** Snapshots that match any of the filters, in batches. */
  *list(filters: readonly string[]): Generator<SnapshotInfo[]> {
    const filter = parseFilters(filters);
    const { snapshots } = this.parts;
    const select = (rows: SnapshotRow[]): SnapshotInfo[] => rows.filter((row) => filter.matches(filterSubjectOf(row))).map(infoOf);
    if (filter.chainRef !== undefined) {
      yield select(snapshots.byChainRef(filter.chainRef));
      return;
    }
    for (let rows = snapshots.page(0, LIST_BATCH); rows.length > 0; rows = snapshots.page(rows.at(-1)!.id, LIST_BATCH)) yield select(rows);
  }

  /** What a snapshot itself takes: from the database when committed, walked (a few seconds old at most) when active. */
  async usageOf(key: string): Promise<{ inodes: number; bytes: number }> {
    const row = this.row('usage', key);
    if (row.kind !== 'active') return { inodes: row.usageInodes, bytes: row.usageBytes };
    return this.parts.usage.recent(this.parts.directories.own(row.id));
  }

  /** Deletes the files of removed snapshots and closes devices that nobody uses. Survives being killed; the next call goes on. */
  async cleanup(): Promise<void> {
    const { directories, snapshots, devices } = this.parts;
    await directories.collect((id) => snapshots.exists(id));
    const deleted = directories.emptyTrash();
    await Promise.race([deleted, new Promise((resolve) => setTimeout(resolve, CLEANUP_WAIT_MS).unref())]);
    await devices.reconcile();
    await this.parts.indexFiles.sweep();
  }

  /** The devices that containers and views stand on. A broken one is left out. */
  devicesInUse(): DeviceSpec[] {
    const { snapshots } = this.parts;
    return snapshots.usedDevices().flatMap((deviceId) => {
      const row = snapshots.userOf(deviceId);
      const parent = row?.parentId == null ? undefined : snapshots.getById(row.parentId);
      try {
        const found = foundationOf('watch', row?.key ?? deviceId, parent, this.parts).accelerated;
        return found === undefined ? [] : [deviceSpecOf(found)];
      } catch (error) {
        if (!isAppError(error)) throw error;
        this.parts.logger.debug({ device: deviceId, reason: describeError(error) }, 'device is not watched');
        return [];
      }
    });
  }

  private async create(
    kind: 'active' | 'view',
    key: string,
    parentKey: string,
    labels: Labels,
    signal: AbortSignal,
    isIsolated: boolean,
  ): Promise<Mount[]> {
    const { snapshots, directories } = this.parts;
    const op = kind === 'active' ? 'prepare' : 'view';
    if (key === '') throw refusal('InvalidArgument', op, 'snapshot', 'its key is empty');
    if (snapshots.get(key) !== undefined) throw refusal('AlreadyExists', op, key, 'a snapshot has this key');
    const parent = this.parentRow(op, key, parentKey);
    const foundation = isIsolated ? undefined : foundationOf(op, key, parent, this.parts);
    using _lease = foundation?.accelerated && (await this.openDevice(op, key, foundation.accelerated, signal));
    const owner = await this.ownerOf(labels, foundation);
    const staged = await directories.stage({ withWork: kind === 'active', owner });
    const deviceId = foundation?.accelerated === undefined ? null : deviceSpecOf(foundation.accelerated).id;
    const id = await this.insertWithDirectory(staged, () => {
      if (snapshots.get(key) !== undefined) throw refusal('AlreadyExists', op, key, 'a snapshot has this key');
      const parentNow = this.parentRow(op, key, parentKey);
      if (parentNow?.id !== parent?.id) throw refusal('NotFound', op, key, `its parent ${parentKey} was removed meanwhile`);
      return snapshots.insert({
        key,
        parentId: parent?.id ?? null,
        kind,
        labels: storedLabels(labels),
        chainRef: null,
        nowUs: wallTimeUs(),
        deviceId,
        isolated: isIsolated,
      });
    });
    const row = this.row(op, key);
    if (row.id !== id) throw refusal('NotFound', op, key, 'it was removed while it was made');
    return this.mountsFor(row, foundation);
  }

  private async insertWithDirectory(staged: StagedDirectory, insert: () => number): Promise<number> {
    const { database, directories } = this.parts;
    let placedId: number | undefined;
    try {
      return database.transaction(() => {
        const id = insert();
        staged.place(id);
        placedId = id;
        return id;
      });
    } catch (error) {
      if (placedId === undefined) await staged.discard();
      else await directories.abandon(placedId);
      throw error;
    }
  }

  private insertPulled(pull: PullRequest, parentKey: string, labels: Labels, accelerated: Accelerated): void {
    const { database, snapshots, dependencies } = this.parts;
    database.transaction(() => {
      const parent = this.parentRow('prepare', pull.chainRef, parentKey);
      if (this.findPulled(pull, parent) !== undefined) return;
      // Two namespaces may hold the same base under different keys, and then the same chain stands on both.
      const isTaken = snapshots.get(pull.chainRef) !== undefined;
      const id = snapshots.insert({
        key: isTaken ? `${pull.chainRef}@${randomUUID()}` : pull.chainRef,
        parentId: parent?.id ?? null,
        kind: 'committed',
        labels: { ...storedLabels(labels), [LABEL_REMOTE]: 'remote snapshot' },
        chainRef: pull.chainRef,
        nowUs: wallTimeUs(),
        accelerated: encodeAccelerated(accelerated),
        artifactDigest: accelerated.artifact,
        baseDigest: accelerated.base,
      });
      dependencies.addSnapshotNeeds(id, needsOf(accelerated));
    });
  }

  /** A committed, usable snapshot of the same chain on the same parent. */
  private findPulled(pull: PullRequest, parent: SnapshotRow | undefined): SnapshotRow | undefined {
    return this.parts.snapshots
      .byChainRef(pull.chainRef)
      .find((row) => row.kind === 'committed' && row.parentId === (parent?.id ?? null) && row.brokenReason === null);
  }

  private pulledError(pull: PullRequest): AppError {
    return refusal('AlreadyExists', 'prepare', pull.chainRef, 'the layer is ready without a download');
  }

  private acceleratedOf(row: SnapshotRow): Accelerated | undefined {
    return row.accelerated === null ? undefined : decodeAccelerated(row.accelerated, row.key);
  }

  private async inspect(row: SnapshotRow, labels: Labels) {
    const { snapshots, directories } = this.parts;
    const pull = readPullRequest({ ...row.labels, ...labels });
    if (pull === undefined) return { brokenReason: 'the layer lost its labels between Prepare and Commit' };
    const parent = row.parentId === null ? undefined : snapshots.getById(row.parentId);
    const below = parent === undefined ? undefined : { accelerated: this.acceleratedOf(parent) };
    return inspectDownloadedLayer(directories.own(row.id), pull, below);
  }

  /** Opens the device within the deadline. Every failure names the image. */
  private async openDevice(op: string, key: string, accelerated: Accelerated, signal: AbortSignal): Promise<Disposable> {
    const { devices, prepareDeadlineMs, events } = this.parts;
    const limited = AbortSignal.any([signal, AbortSignal.timeout(prepareDeadlineMs)]);
    try {
      const spec = deviceSpecOf(accelerated);
      this.parts.dependencies.addDeviceNeeds(spec.id, needsOf(accelerated));
      return await devices.acquire(spec, limited);
    } catch (cause) {
      if (!isAppError(cause)) throw cause;
      const { code } = cause;
      const isLate = code === 'DeadlineExceeded' || code === 'Canceled';
      const what = `image ${accelerated.image} cannot be served: ${describeError(cause)}`;
      events.append({ atUs: wallTimeUs(), type: 'device-not-open', subject: accelerated.image, message: what });
      throw new AppError(isLate ? 'Unavailable' : code, { op, subject: key, what, cause });
    }
  }

  /** The owner of a new snapshot's root directory: the mapped root, else the owner of what lies below, as containerd does it. */
  private async ownerOf(labels: Labels, foundation: Foundation | undefined): Promise<{ uid: number; gid: number } | undefined> {
    const uidMapping = labels[LABEL_UID_MAPPING];
    const gidMapping = labels[LABEL_GID_MAPPING];
    if (this.parts.remapIds && uidMapping !== undefined && gidMapping !== undefined) {
      return { uid: hostRootOf(uidMapping, LABEL_UID_MAPPING), gid: hostRootOf(gidMapping, LABEL_GID_MAPPING) };
    }
    const [top] = lowersOf(foundation, this.parts.directories);
    if (top === undefined) return undefined;
    const { uid, gid } = await fs.stat(top);
    return { uid, gid };
  }

  private mountsFor(row: SnapshotRow, foundation: Foundation | undefined): Mount[] {
    const { directories, overlayOptions, remapIds } = this.parts;
    const extraOptions: string[] = [];
    if (row.labels[LABEL_VOLATILE] === 'yes') extraOptions.push('volatile');
    const uidMapping = row.labels[LABEL_UID_MAPPING];
    const gidMapping = row.labels[LABEL_GID_MAPPING];
    if (remapIds && uidMapping !== undefined) extraOptions.push(`uidmap=${uidMapping}`);
    if (remapIds && gidMapping !== undefined) extraOptions.push(`gidmap=${gidMapping}`);
    return mountsOf({
      kind: row.kind === 'view' ? 'view' : 'active',
      ownDir: directories.own(row.id),
      workDir: directories.work(row.id),
      lowers: lowersOf(foundation, directories),
      overlayOptions,
      extraOptions,
      isIsolated: row.isolated,
    });
  }

  private row(op: string, key: string): SnapshotRow {
    const row = this.parts.snapshots.get(key);
    if (row === undefined) throw refusal('NotFound', op, key, 'no such snapshot');
    return row;
  }

  private activeRow(name: string, key: string): SnapshotRow {
    if (name === '') throw refusal('InvalidArgument', 'commit', key, 'the name to commit it under is empty');
    const row = this.row('commit', key);
    if (row.kind !== 'active') throw refusal('FailedPrecondition', 'commit', key, `it is ${row.kind}, not active`);
    if (this.parts.snapshots.get(name) !== undefined) throw refusal('AlreadyExists', 'commit', name, 'a snapshot has this name');
    return row;
  }

  private parentRow(op: string, key: string, parentKey: string): SnapshotRow | undefined {
    if (parentKey === '') return undefined;
    const row = this.parts.snapshots.get(parentKey);
    if (row === undefined) throw refusal('NotFound', op, key, `its parent ${parentKey} does not exist`);
    const kind: SnapshotKind = row.kind;
    if (kind !== 'committed') throw refusal('InvalidArgument', op, key, `its parent ${parentKey} is ${kind}, not committed`);
    return row;
  }
}
