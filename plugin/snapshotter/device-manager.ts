/**
 * Keeps exactly the block devices open that snapshots stand on. Who uses a device is read from the database; calls that are under way
 * add a pin. All work on one device runs in order; devices do not wait for each other.
 *
 *   acquire ─► pin ─► attach ─► mount ─► (caller inserts its row) ─► unpin
 *   last row gone ─► after a while, still no row and no pin ─► unmount ─► detach
 *
 * An image stays mounted on the connection that blockd had when it was mounted. When that is lost (the keeper died and nobody kept its
 * descriptors), blockd answers another one, and the image is mounted anew.
 *
 * Killed anywhere, the start-up reconciliation finds mounts and devices without rows and closes them.
 */

import type { DependencyStore } from '../../db/dependency-store.ts';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import type { DeviceSpec } from '../file/device-spec.ts';
import type { SnapshotDirectories } from './directories.ts';
import type { BlockDevices, ImageMounter } from './ports.ts';

/** A restarted container removes its snapshot and prepares a new one; the device stays open in between. */
const CLOSE_DELAY_MS = 5_000;

/** Unmounting and detaching never wait for the network. */
const CLOSE_DEADLINE_MS = 30_000;

/**
 * A device that was found open is not looked at again for this long: of a hundred containers that start at once, one asks blockd. Should its
 * connection be lost meanwhile, they stand on a dead mount, as they would if it had been lost a moment later.
 */
const FRESH_MS = 1_000;

export interface DeviceManagerOptions {
  devices: BlockDevices;
  mounter: ImageMounter;
  directories: SnapshotDirectories;
  dependencies: DependencyStore;
  /** True while the database has a user of the device. */
  isUsed: (deviceId: string) => boolean;
  logger: Logger;
  /** How long attaching and mounting may take. */
  openDeadlineMs: number;
  closeDelayMs?: number;
  freshMs?: number;
}

interface DeviceState {
  pins: number;
  opening: Promise<void> | undefined;
  /** Ends when all work queued so far has ended; never rejects. */
  tail: Promise<void>;
  /** Work queued or running. A state is forgotten only when nothing refers to it, else two queues could serve one device. */
  queued: number;
  closeTimer: NodeJS.Timeout | undefined;
  /** When it was last found open, on the monotonic clock; undefined when it may be closed. */
  openAtMs: number | undefined;
}

/** Rejects when `signal` aborts first; the work goes on. */
function orAbort<T>(work: Promise<T>, signal: AbortSignal, subject: string): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      reject(new AppError('Unavailable', { op: 'open device', subject, what: 'not open within its deadline', cause: signal.reason }));
    };
    if (signal.aborted) onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}

export class DeviceManager {
  private readonly options: DeviceManagerOptions;
  private readonly states = new Map<string, DeviceState>();
  private readonly freshMs: number;
  private isStopped = false;

  constructor(options: DeviceManagerOptions) {
    this.options = options;
    this.freshMs = options.freshMs ?? FRESH_MS;
  }

  /**
   * Opens and mounts the device unless it is, and keeps it so until the returned lease is disposed of; by then a row must name it, or
   * it is closed again. Errors: those of {@link BlockDevices.attach} and {@link ImageMounter.mount}; Unavailable at the deadline.
   */
  async acquire(spec: DeviceSpec, signal: AbortSignal): Promise<Disposable> {
    const state = this.stateOf(spec.id);
    state.pins += 1;
    this.cancelClose(state);
    let isReleased = false;
    const lease = {
      [Symbol.dispose]: (): void => {
        if (isReleased) return;
        isReleased = true;
        state.pins -= 1;
        this.closeIfUnused(spec.id);
      },
    };
    if (state.queued === 0 && state.openAtMs !== undefined && performance.now() - state.openAtMs < this.freshMs) return lease;
    state.opening ??= this.enqueue(state, () => this.open(spec, state)).finally(() => {
      state.opening = undefined;
    });
    try {
      await orAbort(state.opening, signal, `${spec.id} of image ${spec.image}`);
    } catch (error) {
      lease[Symbol.dispose]();
      throw error;
    }
    return lease;
  }

  /** To be called when a row that named the device is gone. Returns at once; closing happens a little later, if still unused. */
  closeIfUnused(deviceId: string): void {
    if (this.isStopped) return;
    const state = this.stateOf(deviceId);
    this.cancelClose(state);
    state.closeTimer = setTimeout(() => {
      state.closeTimer = undefined;
      void this.enqueue(state, () => this.close(deviceId, state));
    }, this.options.closeDelayMs ?? CLOSE_DELAY_MS);
    state.closeTimer.unref();
  }

  /** Closes every device and mount that nobody uses; those that cannot be closed are logged and tried again at the next call. */
  async reconcile(): Promise<void> {
    const { devices, directories, dependencies, isUsed, logger } = this.options;
    const known = new Set(await directories.mountPoints());
    try {
      const before = dependencies.devices();
      const served = new Set((await devices.list(AbortSignal.timeout(CLOSE_DEADLINE_MS))).map(({ id }) => id));
      for (const id of served) known.add(id);
      // What blockd has let go and no container names is made of nothing any more. A call under way has a state.
      for (const id of before) if (!served.has(id) && !isUsed(id) && !this.states.has(id)) dependencies.removeDevice(id);
    } catch (error) {
      if (!isAppError(error)) throw error;
      logger.warn({ reason: describeError(error) }, 'blockd cannot be asked for its devices; unused ones stay open until it can');
    }
    await Promise.all(
      [...known].map((id) => {
        const state = this.stateOf(id);
        return this.enqueue(state, () => this.close(id, state));
      }),
    );
  }

  /** Unmounts every image, used or not: for taking the product off a node. Failures are logged. */
  async unmountAll(): Promise<void> {
    const { mounter, directories, logger } = this.options;
    // What is being opened may have no mount point yet.
    const ids = new Set([...(await directories.mountPoints()), ...this.states.keys()]);
    await Promise.all(
      [...ids].map((id) =>
        this.enqueue(this.stateOf(id), async () => {
          this.stateOf(id).openAtMs = undefined;
          try {
            await mounter.unmount(directories.mountPoint(id), AbortSignal.timeout(CLOSE_DEADLINE_MS));
          } catch (error) {
            logger.warn({ device: id, reason: describeError(error) }, 'image could not be unmounted');
          }
        }),
      ),
    );
  }

  /** Ends timers and waits for the work under way; mounts stay. */
  async stop(): Promise<void> {
    this.isStopped = true;
    for (const state of this.states.values()) this.cancelClose(state);
    await Promise.all([...this.states.values()].map((state) => state.tail));
  }

  private cancelClose(state: DeviceState): void {
    clearTimeout(state.closeTimer);
    state.closeTimer = undefined;
  }

  private stateOf(deviceId: string): DeviceState {
    let state = this.states.get(deviceId);
    if (state === undefined) {
      state = { pins: 0, opening: undefined, tail: Promise.resolve(), queued: 0, closeTimer: undefined, openAtMs: undefined };
      this.states.set(deviceId, state);
    }
    return state;
  }

  private enqueue(state: DeviceState, work: () => Promise<void>): Promise<void> {
    state.queued += 1;
    const result = state.tail.then(work);
    const done = (): void => {
      state.queued -= 1;
    };
    state.tail = result.then(done, done);
    return result;
  }

  private async open(spec: DeviceSpec, state: DeviceState): Promise<void> {
    await this.ensureOpen(spec);
    state.openAtMs = performance.now();
  }

  private async ensureOpen(spec: DeviceSpec): Promise<void> {
    const { devices, mounter, directories, dependencies, logger } = this.options;
    const signal = AbortSignal.timeout(this.options.openDeadlineMs);
    const target = directories.mountPoint(spec.id);
    const isMounted = await mounter.isMounted(target);
    let devicePath: string;
    let connection: string;
    try {
      ({ devicePath, connection } = await devices.attach(spec, signal));
    } catch (error) {
      // The keeper holds the device while blockd is being replaced: what is mounted works.
      if (!isMounted || !isAppError(error, 'Unavailable', 'DeadlineExceeded')) throw error;
      logger.warn({ device: spec.id, reason: describeError(error) }, 'blockd is away; the mounted device is used as it is');
      return;
    }
    const before = dependencies.mountOf(spec.id);
    if (isMounted && before === connection) return;
    if (isMounted) logger.warn({ device: spec.id, image: spec.image }, 'the mounted device lost its connection; mounting it anew');
    dependencies.setMount(spec.id, undefined);
    const { fsType, loopDevice } = await mounter.mount({ devicePath, target }, signal);
    dependencies.setMount(spec.id, connection);
    logger.info({ device: spec.id, image: spec.image, fsType, loopDevice }, 'device mounted');
  }

  private async close(deviceId: string, state: DeviceState): Promise<void> {
    const { devices, mounter, directories, isUsed, logger } = this.options;
    if (state.pins > 0 || isUsed(deviceId)) return;
    state.openAtMs = undefined;
    try {
      const signal = AbortSignal.timeout(CLOSE_DEADLINE_MS);
      await mounter.unmount(directories.mountPoint(deviceId), signal);
      await directories.removeMountPoint(deviceId);
      await devices.detach(deviceId, signal);
      logger.info({ device: deviceId }, 'device closed');
    } catch (error) {
      logger.warn({ device: deviceId, reason: describeError(error) }, 'unused device stays open; tried again at the next cleanup');
    }
    if (state.pins === 0 && state.queued === 1 && state.closeTimer === undefined) this.states.delete(deviceId);
  }
}
