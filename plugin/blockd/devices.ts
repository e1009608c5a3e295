/**
 * The devices of this host. Each attachment has a connection of its own, a file in `devices/` and a mount point under the run directory.
 *
 *   attach ─► opening ─► attached ─► (detach) releasing ─► kernel says gone ─► forgotten
 *
 * A device is in use until the kernel releases its connection: containers and private mount namespaces keep it alive after our unmount,
 * so blobs are given back on release and never before.
 */
import { randomUUID } from 'node:crypto';
import fs from 'node:fs/promises';
import path from 'node:path';
import type { Clock } from '../base/clock.ts';
import { AppError, describeError, errnoOf } from '../base/errors.ts';
import type { DeviceSpec } from '../file/device-spec.ts';
import type { FromWorker } from '../fuse/messages.ts';
import type { FusePool } from '../fuse/pool.ts';
import type { EventRing } from './events.ts';
import type { KeeperLink } from './keeper-link.ts';
import { MissedReads } from './missed-reads.ts';
import { type DeviceParts, OpenDevice } from './open-device.ts';
import type { SpecFiles } from './spec-files.ts';

/** A device that was attached before a restart is opened again until this has passed; its readers wait meanwhile. */
const RESTORE_PATIENCE_MS = 10 * 60_000;
const RESTORE_RETRY_MS = 2000;

/** Paths that one helper gets as an argument, which may have 128 KiB. */
const UNMOUNT_BATCH = 200;
const UNMOUNT_LIMIT_MS = 30_000;

/** Devices whose layers are local open in far less; the others must not keep the control plane waiting. */
const RESTORE_GRACE_MS = 500;

export type DeviceState = 'opening' | 'attached' | 'releasing' | 'failed';

/** One attachment, as the control plane sees it. */
export interface DeviceStatus {
  id: string;
  instance: string;
  image: string;
  state: DeviceState;
  detail: string | null;
  devicePath: string;
  /** Names the connection behind the path; what is mounted from an earlier one is dead. */
  connection: string;
  sizeBytes: number;
  layerCount: number;
  waiting: number;
  /** Reads that the kernel asked for, and their bytes; `misses` of them found something missing. */
  reads: number;
  readBytes: number;
  misses: number;
  stalls: number;
  failures: number;
  presentBytes: number;
  accessedBytes: number;
  blobBytes: number;
}

interface Attachment {
  instance: string;
  spec: DeviceSpec;
  devicePath: string;
  connection: string;
  state: DeviceState;
  detail: string | null;
  opening: Promise<void>;
  /** A predecessor served it: containers may read it, so only the kernel's release or lost patience ends it. */
  isTakenOver: boolean;
  /** Its file is no longer mounted: who reads it goes on, and new users get another attachment. */
  isDetached: boolean;
  /** Calls that wait for the opening; when the last one gives up, so does the opening. */
  waiters: number;
  abort: AbortController;
  device?: OpenDevice;
  slot?: number;
}

export interface DevicesOptions extends DeviceParts {
  pool: FusePool;
  keeper: KeeperLink;
  specFiles: SpecFiles;
  /** Mount points of the connections: `<deviceDir>/<instance>`. */
  deviceDir: string;
  /** Paths of all mounts that this process sees. */
  mountPoints(): Promise<string[]>;
  /** Detaches a mount, in a process of its own. */
  unmount(targets: string[], signal: AbortSignal): Promise<void>;
  /** A device can be read: background fill may be planned. */
  onAttached(device: OpenDevice): void;
  events: EventRing;
}

export class Devices {
  private readonly options: DevicesOptions;
  private readonly attachments = new Map<string, Attachment>();
  private readonly bySlot = new Map<number, Attachment>();
  /** Names of connections that are being ended, whose paths are not free yet. */
  private readonly orphans = new Set<string>();
  private readonly missed: MissedReads;
  private hasWarnedOfKernel = false;

  constructor(options: DevicesOptions) {
    this.options = options;
    this.missed = new MissedReads({
      answer: (slot, unique, errno, answer, lengthBytes) => options.pool.answer(slot, unique, errno, answer, lengthBytes),
      onReadFailed: (device, miss, error) => this.readFailed(device, miss.offsetBytes, error),
    });
  }

  /** Reads that wait for bytes now. */
  get waitingReads(): number {
    return this.missed.waiting;
  }

  /** Serves again what a predecessor served; resolves when each device is taken over, or on its way for half a second. */
  async restore(): Promise<void> {
    const { keeper, specFiles, mountPoints, clock, log } = this.options;
    const held = new Set(await keeper.list());
    const mounted = new Set(await mountPoints());
    const openings: Promise<void>[] = [];
    for (const { instance, spec, connection } of await specFiles.load(log)) {
      // Without a connection (a reboot) nobody can read the device: it is attached anew when a container needs it.
      if (!held.delete(instance)) await specFiles.remove(instance);
      else {
        const isDetached = !mounted.has(this.pathOf(instance));
        openings.push(this.begin(instance, spec, { isTakenOver: true, isDetached, connection }).opening);
      }
    }
    for (const orphan of held) void this.closeOrphan(orphan);
    const graceEnded = new AbortController();
    await Promise.race([Promise.allSettled(openings).finally(() => graceEnded.abort()), pause(clock, RESTORE_GRACE_MS, graceEnded.signal)]);
  }

  /** Detaches every connection's mount, also of those that nobody serves any more: for taking the product off a node. */
  async unmountAll(): Promise<void> {
    const { deviceDir, unmount, log } = this.options;
    try {
      const targets = (await fs.readdir(deviceDir)).map((name) => path.join(deviceDir, name));
      for (let at = 0; at < targets.length; at += UNMOUNT_BATCH)
        await unmount(targets.slice(at, at + UNMOUNT_BATCH), AbortSignal.timeout(UNMOUNT_LIMIT_MS));
      for (const target of targets) await fs.rm(target, { force: true });
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') log.error({ reason: describeError(error) }, 'a device stays mounted');
    }
  }

  /** Attaches, or answers the attachment that exists. Resolves when the device can be read. */
  async attach(spec: DeviceSpec, signal: AbortSignal): Promise<DeviceStatus> {
    const existing = this.live(spec.id);
    const attachment = existing ?? this.begin(this.freeInstance(spec.id), spec, { isTakenOver: false, isDetached: false });
    attachment.waiters += 1;
    try {
      await raceSignal(attachment.opening, signal, spec.image);
    } finally {
      attachment.waiters -= 1;
      const isUnwanted = signal.aborted && attachment.waiters === 0 && !attachment.isTakenOver;
      if (isUnwanted && attachment.state === 'opening') attachment.abort.abort(signal.reason);
    }
    return this.statusOf(attachment);
  }

  /** Opens all layers without making a device, and answers its size. Rejects as {@link attach} does. */
  async check(spec: DeviceSpec, signal: AbortSignal): Promise<{ deviceSizeBytes: number }> {
    const attachment = this.live(spec.id);
    if (attachment?.device !== undefined) return { deviceSizeBytes: attachment.device.sizeBytes };
    const device = await OpenDevice.open(`check-${spec.id}`, spec, this.options, signal);
    device.close();
    return { deviceSizeBytes: device.sizeBytes };
  }

  /** Detaches the device's file; it goes when its last user does. An unknown one is no error. */
  async detach(id: string): Promise<void> {
    for (const attachment of this.present(id)) await this.detachOne(attachment);
  }

  private async detachOne(attachment: Attachment): Promise<void> {
    if (attachment.state === 'opening' && !attachment.isTakenOver) {
      attachment.abort.abort(
        new AppError('Canceled', { op: 'attach device', subject: attachment.spec.id, what: 'it was detached meanwhile' }),
      );
      await attachment.opening.catch((error: unknown) => this.options.log.debug({ reason: describeError(error) }, 'opening given up'));
      if (attachment.state === 'opening' || attachment.state === 'failed') return;
    }
    attachment.isDetached = true;
    if (attachment.state === 'attached') attachment.state = 'releasing';
    try {
      await this.options.unmount([attachment.devicePath], AbortSignal.timeout(UNMOUNT_LIMIT_MS));
    } catch (error) {
      // Still there, so that the next detach tries again; unless the kernel has released it all the same.
      if (attachment.slot !== undefined && !this.bySlot.has(attachment.slot)) return;
      attachment.isDetached = false;
      if (attachment.state === 'releasing') attachment.state = 'attached';
      throw error;
    }
  }

  list(): DeviceStatus[] {
    return [...this.attachments.values()].map((attachment) => this.statusOf(attachment));
  }

  /** A message of a worker thread. */
  receive(message: FromWorker): void {
    const attachment = this.bySlot.get(message.slot);
    if (attachment?.device === undefined) return;
    const { device } = attachment;
    if (message.type === 'miss') {
      device.misses += 1;
      void this.missed.serve(message, device);
    } else if (message.type === 'interrupt') this.missed.interrupt(message.slot, message.uniqueLow, message.uniqueHigh);
    else if (message.type === 'cannotResend') this.warnOfKernel();
    else if (message.type === 'readAhead') device.readAhead(message.blobId, message.offsetBytes);
    else if (message.type === 'gone') void this.release(attachment, message.slot);
  }

  private begin(instance: string, spec: DeviceSpec, how: { isTakenOver: boolean; isDetached: boolean; connection?: string }): Attachment {
    const attachment: Attachment = {
      instance,
      spec,
      devicePath: this.pathOf(instance),
      connection: how.connection ?? randomUUID(),
      state: 'opening',
      detail: null,
      opening: Promise.resolve(),
      isTakenOver: how.isTakenOver,
      isDetached: how.isDetached,
      waiters: 0,
      abort: new AbortController(),
    };
    this.attachments.set(instance, attachment);
    attachment.opening = how.isTakenOver ? this.takeOver(attachment) : this.openNew(attachment);
    // Whoever waits sees the failure; without a waiter the state and the event tell it.
    attachment.opening.catch((error: unknown) => {
      attachment.detail = describeError(error);
    });
    return attachment;
  }

  private async openNew(attachment: Attachment): Promise<void> {
    const { instance, spec, abort } = attachment;
    const { specFiles, keeper } = this.options;
    try {
      const device = await OpenDevice.open(instance, spec, this.options, abort.signal);
      attachment.device = device;
      await specFiles.save({ instance, spec, connection: attachment.connection });
      abort.signal.throwIfAborted();
      this.serve(attachment, device, await keeper.open(instance, attachment.devicePath), { isTakenOver: false });
    } catch (error) {
      attachment.device?.close();
      attachment.state = 'failed';
      // The name is free again only when its file is gone: a new attachment writes one of the same name.
      await specFiles.remove(instance).finally(() => this.attachments.delete(instance));
      throw error;
    }
  }

  /** Readers of this device wait in the kernel, so it is tried for as long as a read would wait. */
  private async takeOver(attachment: Attachment): Promise<void> {
    const { clock, keeper, specFiles, events, log } = this.options;
    const { instance, spec, abort } = attachment;
    const giveUpAtMs = clock.monotonicMs() + RESTORE_PATIENCE_MS;
    for (;;) {
      try {
        const device = await OpenDevice.open(instance, spec, this.options, abort.signal);
        attachment.device = device;
        this.serve(attachment, device, await keeper.take(instance, attachment.devicePath), { isTakenOver: true });
        return;
      } catch (error) {
        attachment.device?.close();
        delete attachment.device;
        attachment.detail = describeError(error);
        log.error({ device: instance, image: spec.image, reason: attachment.detail }, 'device of a running container not open yet');
        if (clock.monotonicMs() < giveUpAtMs) {
          await clock.sleep(RESTORE_RETRY_MS);
          continue;
        }
        // Errors are better than waiting for ever: closing the connection ends the reads.
        attachment.state = 'failed';
        events.add({ severity: 'error', kind: 'device.lost', subject: instance, message: attachment.detail });
        await this.close(instance)
          .then(() => specFiles.remove(instance))
          .finally(() => this.attachments.delete(instance));
        throw error;
      }
    }
  }

  private serve(attachment: Attachment, device: OpenDevice, fd: number, how: { isTakenOver: boolean }): void {
    attachment.slot = this.options.pool.add(fd, device.tables, device.sharedBlobs(), how);
    attachment.state = attachment.isDetached ? 'releasing' : 'attached';
    attachment.detail = null;
    this.bySlot.set(attachment.slot, attachment);
    this.options.onAttached(device);
    this.options.log.info({ device: attachment.instance, image: attachment.spec.image, ...how }, 'device attached');
  }

  private async release(attachment: Attachment, slot: number): Promise<void> {
    const { pool, keeper, specFiles, log } = this.options;
    const { instance, device } = attachment;
    this.bySlot.delete(slot);
    attachment.state = 'releasing';
    try {
      await pool.remove(slot);
      device?.close();
      await keeper.close(instance);
      await specFiles.remove(instance);
      await this.removeMountPoint(attachment.devicePath);
    } catch (error) {
      log.error({ device: instance, reason: describeError(error) }, 'device released, but something of it is left');
    }
    this.attachments.delete(instance);
    log.info({ device: instance }, 'device released');
  }

  /** Ends a connection that nobody serves: its readers get errors, and its mount goes. */
  private async close(instance: string): Promise<void> {
    const { keeper, unmount } = this.options;
    await keeper.close(instance);
    await unmount([this.pathOf(instance)], AbortSignal.timeout(UNMOUNT_LIMIT_MS));
    await fs.rm(this.pathOf(instance), { force: true });
  }

  private async closeOrphan(instance: string): Promise<void> {
    this.orphans.add(instance);
    try {
      await this.close(instance);
      this.orphans.delete(instance);
    } catch (error) {
      this.options.log.error({ device: instance, reason: describeError(error) }, 'a connection without a device leaves its mount behind');
    }
  }

  private pathOf(instance: string): string {
    return path.join(this.options.deviceDir, instance);
  }

  /** A connection that was aborted, not unmounted, leaves its mount behind. */
  private async removeMountPoint(devicePath: string): Promise<void> {
    try {
      await fs.rm(devicePath, { force: true });
    } catch (error) {
      if (errnoOf(error) !== 'EBUSY') throw error;
      await this.options.unmount([devicePath], AbortSignal.timeout(UNMOUNT_LIMIT_MS));
      await fs.rm(devicePath, { force: true });
    }
  }

  /** Said once: it holds for every device of this kernel. */
  private warnOfKernel(): void {
    if (this.hasWarnedOfKernel) return;
    this.hasWarnedOfKernel = true;
    const message = 'this kernel cannot repeat requests (before 6.9): reads under way when blockd is killed or replaced will hang';
    this.options.log.warn(message);
    this.options.events.add({ severity: 'warning', kind: 'kernel.cannot-resend', subject: 'fuse', message });
  }

  private readFailed(device: OpenDevice, offsetBytes: number, error: unknown): void {
    device.failures += 1;
    const message = `read at ${offsetBytes} of ${device.spec.image} failed: ${describeError(error)}`;
    device.log.write('error', { device: device.instance }, message);
    this.options.events.add({ severity: 'error', kind: 'device.read-failed', subject: device.spec.id, message });
  }

  /** The attachments of a device that are not detached. */
  private present(id: string): Attachment[] {
    return [...this.attachments.values()].filter(
      ({ spec, isDetached, state }) => spec.id === id && !isDetached && (state === 'opening' || state === 'attached'),
    );
  }

  /** The attachment that new users may join: none whose opening is being given up. */
  private live(id: string): Attachment | undefined {
    return this.present(id).find(({ state, abort }) => state === 'attached' || !abort.signal.aborted);
  }

  private freeInstance(id: string): string {
    for (let n = 0; ; n += 1) {
      const instance = n === 0 ? id : `${id}.${n}`;
      if (!this.attachments.has(instance) && !this.orphans.has(instance)) return instance;
    }
  }

  private statusOf(attachment: Attachment): DeviceStatus {
    const { instance, spec, state, detail, devicePath, connection, device } = attachment;
    const counts = attachment.slot === undefined ? { reads: 0, bytes: 0 } : this.options.pool.countsOf(attachment.slot);
    const totals = { presentBytes: 0, accessedBytes: 0, blobBytes: 0 };
    for (const handle of device === undefined || device.closed.aborted ? [] : device.handles) {
      const counts = handle.counts();
      totals.presentBytes += counts.presentBytes;
      totals.accessedBytes += counts.accessedBytes;
      totals.blobBytes += handle.sizeBytes;
    }
    return {
      id: spec.id,
      instance,
      image: spec.image,
      state,
      detail,
      devicePath,
      connection,
      sizeBytes: device?.sizeBytes ?? 0,
      layerCount: spec.layers.length,
      waiting: device?.waiting ?? 0,
      reads: counts.reads,
      readBytes: counts.bytes,
      misses: device?.misses ?? 0,
      stalls: device?.stalls ?? 0,
      failures: device?.failures ?? 0,
      ...totals,
    };
  }
}

/** Waits, at most until `signal` is aborted. */
async function pause(clock: Clock, delayMs: number, signal: AbortSignal): Promise<void> {
  try {
    await clock.sleep(delayMs, signal);
  } catch (error) {
    if (!signal.aborted) throw error;
  }
}

function raceSignal(opening: Promise<void>, signal: AbortSignal, image: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      reject(new AppError('Unavailable', { op: 'open image', subject: image, what: 'not open within the deadline', cause: signal.reason }));
    };
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    opening.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
