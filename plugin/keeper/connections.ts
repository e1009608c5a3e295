/**
 * The FUSE connections that the keeper holds: one a device, so that losing one disturbs one image. Each descriptor also lies in
 * systemd's store under the device's name, from which a restarted keeper takes it back (sd_listen_fds(3)).
 */
import fs from 'node:fs';
import path from 'node:path';
import { AppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { closeOnExec, notifyServiceManager, sendDescriptor } from '../kernel/fd-passing.ts';
import { detachMounts, MS_NODEV, MS_NOSUID, MS_RDONLY, mount } from '../kernel/mount.ts';

const LISTEN_FDS_START = 3;

/** Agreed with FileDescriptorStoreMax= of the unit. */
const MAX_CONNECTIONS = 4096;

/** A service manager that takes no message now (its queue is full, it hangs) is tried again this often. */
const STORE_AGAIN_MS = 1000;

export class Connections {
  private readonly fds = new Map<string, number>();
  private readonly mountPaths = new Map<string, string>();
  private readonly notifySocket: string | undefined;
  private readonly log: Logger;
  /** Devices whose descriptors the service manager has not taken yet: without it, killing the keeper loses them. */
  private readonly unstored = new Set<string>();
  private storing: NodeJS.Timeout | undefined;

  /** Takes over what the service manager kept for a keeper that ended. */
  constructor(env: NodeJS.ProcessEnv, pid: number, log: Logger) {
    this.notifySocket = env.NOTIFY_SOCKET;
    this.log = log;
    if (env.LISTEN_PID !== String(pid)) return;
    const names = (env.LISTEN_FDNAMES ?? '').split(':');
    const count = Math.min(Number(env.LISTEN_FDS ?? 0), MAX_CONNECTIONS);
    for (let i = 0; i < count; i += 1) {
      const fd = LISTEN_FDS_START + i;
      closeOnExec(fd);
      const name = names[i];
      if (name === undefined || name === '' || this.fds.has(name)) fs.closeSync(fd);
      else this.fds.set(name, fd);
    }
  }

  list(): string[] {
    return [...this.fds.keys()];
  }

  /** Makes and mounts a new connection; one that exists under this name is answered as it is. */
  open(device: string, mountPath: string): number {
    const existing = this.fds.get(device);
    if (existing !== undefined) return existing;
    if (this.fds.size >= MAX_CONNECTIONS)
      throw new AppError('ResourceExhausted', {
        op: 'open device',
        subject: device,
        what: `${MAX_CONNECTIONS} connections are open already`,
      });
    fs.mkdirSync(path.dirname(mountPath), { recursive: true, mode: 0o700 });
    detachMounts(mountPath);
    fs.closeSync(fs.openSync(mountPath, 'a', 0o400));
    const fd = fs.openSync('/dev/fuse', fs.constants.O_RDWR | fs.constants.O_NONBLOCK);
    try {
      mount({
        source: 'overlaybd',
        target: mountPath,
        fsType: 'fuse.overlaybd',
        flags: MS_RDONLY | MS_NOSUID | MS_NODEV,
        options: `fd=${fd},rootmode=100400,user_id=0,group_id=0,allow_other,max_read=1048576`,
      });
    } catch (error) {
      fs.closeSync(fd);
      throw error;
    }
    this.fds.set(device, fd);
    this.store(device, fd);
    return fd;
  }

  private store(device: string, fd: number): void {
    if (this.notifySocket === undefined || notifyServiceManager(this.notifySocket, `FDSTORE=1\nFDNAME=${device}`, [fd])) {
      this.unstored.delete(device);
      return;
    }
    if (!this.unstored.has(device)) this.log.warn({ device }, 'the service manager does not take the descriptor now; tried again');
    this.unstored.add(device);
    this.storing ??= setInterval(() => this.storeAgain(), STORE_AGAIN_MS).unref();
  }

  private storeAgain(): void {
    for (const device of [...this.unstored]) this.store(device, this.fds.get(device)!);
    if (this.unstored.size > 0) return;
    clearInterval(this.storing);
    this.storing = undefined;
  }

  /** Sends a connection's descriptor to the data plane. */
  send(device: string, mountPath: string, socketFd: number): void {
    const fd = this.fds.get(device);
    if (fd === undefined)
      throw new AppError('NotFound', { op: 'take device', subject: device, what: 'the keeper holds no such connection' });
    this.mountPaths.set(device, mountPath);
    sendDescriptor(socketFd, device, fd);
  }

  /** Forgets a connection; unknown ones are no error. */
  close(device: string): void {
    const fd = this.fds.get(device);
    if (fd === undefined) return;
    notifyServiceManager(this.notifySocket, `FDSTOREREMOVE=1\nFDNAME=${device}`);
    this.unstored.delete(device);
    this.fds.delete(device);
    this.mountPaths.delete(device);
    fs.closeSync(fd);
  }

  /** Detaches and forgets every connection: what still reads from one of them gets errors from here on. */
  closeAll(): void {
    for (const [device, mountPath] of [...this.mountPaths]) {
      detachMounts(mountPath);
      this.close(device);
    }
    for (const device of this.list()) this.close(device);
  }
}
