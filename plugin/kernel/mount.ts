/**
 * mount(2) and umount2(2). They can wait for whoever serves the file system: call them only in short-lived helper processes, or for
 * file systems whose mount does not read (FUSE).
 */
import { ERRNO, lastErrno, libc, systemCallError } from './libc.ts';

export const MS_RDONLY = 1;
export const MS_NOSUID = 2;
export const MS_NODEV = 4;
const MNT_DETACH = 2;
const UMOUNT_NOFOLLOW = 8;

export interface MountRequest {
  source: string;
  target: string;
  fsType: string;
  flags: number;
  /** Comma-separated file-system options. */
  options: string;
}

/** Mounts; answers 0 or the errno, so that callers can fall back on particular ones. */
export function tryMount(request: MountRequest): number {
  const { source, target, fsType, flags, options } = request;
  return libc.mount(source, target, fsType, flags, options) < 0 ? lastErrno() : 0;
}

/** Mounts or throws with the errno in `details`. */
export function mount(request: MountRequest): void {
  const errno = tryMount(request);
  if (errno !== 0) throw systemCallError(`mount ${request.fsType} from ${request.source} at`, request.target, errno);
}

/** A path can be covered this often before we stop uncovering it: each crashed start leaves at most one layer. */
const MAX_STACKED_MOUNTS = 16;

/** Detaches every mount at `target`; the kernel frees them when their last user goes. Not mounted or not there: no error. */
export function detachMounts(target: string): void {
  for (let i = 0; i < MAX_STACKED_MOUNTS; i += 1) {
    if (libc.umount2(target, MNT_DETACH | UMOUNT_NOFOLLOW) === 0) continue;
    const errno = lastErrno();
    if (errno === ERRNO.EINVAL || errno === ERRNO.ENOENT) return;
    throw systemCallError('unmount', target, errno);
  }
}
