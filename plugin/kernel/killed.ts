/** What /proc tells of threads. Source: proc_pid_status(5), SigPnd and ShdPnd; proc_pid_stat(5), state. */
import fs from 'node:fs';
import { constants } from 'node:os';
import { errnoOf } from '../base/errors.ts';

const KILL_BIT = 1n << BigInt(constants.signals.SIGKILL - 1);

/** True for a thread that is being killed or is gone; `tid` as in the initial pid namespace. */
export function isBeingKilled(tid: number): boolean {
  let status: string;
  try {
    status = fs.readFileSync(`/proc/${tid}/status`, 'latin1');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ESRCH') return true;
    throw error;
  }
  const pending = [...status.matchAll(/^(?:SigPnd|ShdPnd):\s*([0-9a-f]+)$/gm)].map((match) => BigInt(`0x${match[1]}`));
  return pending.some((mask) => (mask & KILL_BIT) !== 0n);
}

/** True for a thread of this process that waits for a disk or the kernel and cannot be interrupted (state D). */
export function isInDiskSleep(tid: number): boolean {
  try {
    const stat = fs.readFileSync(`/proc/self/task/${tid}/stat`, 'latin1');
    return stat.slice(stat.lastIndexOf(')') + 2).startsWith('D');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ESRCH') return false;
    throw error;
  }
}
