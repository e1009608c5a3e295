/** A lock that one process holds until its last thread is gone: flock(2). The kernel lets it go when the process ends, however it ends. */
import fs from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { AppError } from '../base/errors.ts';
import { ERRNO, lastErrno, libc, systemCallError } from './libc.ts';

const LOCK_EX = 2;
const LOCK_NB = 4;

/** A predecessor that was killed is gone within milliseconds, unless the disk holds one of its threads. */
const LOOK_MS = 5;

/**
 * Takes the lock on `path` (made if missing) for the rest of this process's life, waiting for another holder at most until `signal` aborts.
 * Errors: Unavailable (another process holds it), Internal (errno in the text).
 */
export async function lockForLife(path: string, signal: AbortSignal): Promise<void> {
  // Never closed: that would let the lock go. Not inherited by children.
  const fd = fs.openSync(path, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o600);
  while (libc.flock(fd, LOCK_EX | LOCK_NB) !== 0) {
    const errno = lastErrno();
    if (errno !== ERRNO.EAGAIN && errno !== ERRNO.EINTR) throw systemCallError('lock', path, errno);
    if (signal.aborted) {
      fs.closeSync(fd);
      throw new AppError('Unavailable', { op: 'lock', subject: path, what: 'another process still holds it', cause: signal.reason });
    }
    await delay(LOOK_MS);
  }
}
