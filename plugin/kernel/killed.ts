/** Whether a thread is being killed: SIGKILL pends for it or its process. Source: proc_pid_status(5), SigPnd and ShdPnd. */
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
