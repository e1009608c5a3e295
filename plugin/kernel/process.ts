/** Process-wide settings that only prctl(2) offers. */
import { constants } from 'node:os';
import { libc } from './libc.ts';

const PR_SET_PDEATHSIG = 1;

/**
 * Asks the kernel to kill this process when its parent dies, so that two data planes never serve at once. To be called first thing;
 * answers false when the parent is already gone.
 */
export function dieWithParent(parentPid: number): boolean {
  libc.prctl(PR_SET_PDEATHSIG, constants.signals.SIGKILL, 0, 0, 0);
  return process.ppid === parentPid;
}
