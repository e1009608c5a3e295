/** Mounting images without ever waiting on the caller's event loop: each call runs in a helper process of its own with a deadline. */
import { spawn } from 'node:child_process';
import fs from 'node:fs/promises';
import path from 'node:path';
import { AppError } from '../base/errors.ts';
import type { HelperMountRequest, HelperProbeRequest, HelperUnmountRequest } from './mount-helper.ts';

const HELPER = path.join(import.meta.dirname, `mount-helper${path.extname(import.meta.filename)}`);

/** The helper answers one line; more is a bug. */
const MAX_ANSWER_BYTES = 64 * 1024;

/** Small heap: the helper holds nothing. */
const NODE_FLAGS = ['--max-semi-space-size=1', '--max-old-space-size=32', '--disable-warning=ExperimentalWarning'];

function runHelper(
  request: HelperMountRequest | HelperUnmountRequest | HelperProbeRequest,
  subject: string,
  signal: AbortSignal,
): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [...NODE_FLAGS, HELPER, JSON.stringify(request)], { stdio: ['ignore', 'pipe', 'inherit'] });
    let answer = '';
    const giveUp = (): void => {
      // The kernel may hold the helper in an uninterruptible wait; it dies when that ends, and nobody waits for it here.
      child.kill('SIGKILL');
      child.unref();
      reject(new AppError('Unavailable', { op: request.action, subject, what: 'not done within its deadline', cause: signal.reason }));
    };
    if (signal.aborted) {
      giveUp();
      return;
    }
    signal.addEventListener('abort', giveUp, { once: true });
    child.stdout.setEncoding('utf8');
    child.stdout.on('data', (text: string) => {
      answer = (answer + text).slice(0, MAX_ANSWER_BYTES);
    });
    child.on('error', reject);
    child.on('close', (code, killedBy) => {
      signal.removeEventListener('abort', giveUp);
      let parsed: { result?: unknown; error?: unknown } = {};
      try {
        parsed = JSON.parse(answer) as typeof parsed;
      } catch (cause) {
        reject(
          new AppError('Internal', {
            op: request.action,
            subject,
            what: `mount helper ended (${killedBy ?? code}) without an answer`,
            cause,
          }),
        );
        return;
      }
      if (parsed.error === undefined) resolve(parsed.result);
      else reject(AppError.fromJSON(parsed.error, { op: request.action, subject }));
    });
  });
}

export interface MountedImage {
  fsType: string;
  /** Set when the kernel needed a block device under the file system. */
  loopDevice?: string;
}

/**
 * Mounts the file system on a device file read-only at `target` (made if missing; whatever was mounted there before is detached).
 * Errors: InvalidArgument (no known file system), Unavailable (aborted), Internal (errno in the text).
 */
export async function mountDevice(
  request: { devicePath: string; target: string; readAheadKib: number },
  signal: AbortSignal,
): Promise<MountedImage> {
  return (await runHelper({ action: 'mount', ...request }, request.target, signal)) as MountedImage;
}

/** Detaches the mounts at `targets`; those not mounted are no error. The file systems go when their last user does. */
export async function unmountDevice(targets: string[], signal: AbortSignal): Promise<void> {
  await runHelper({ action: 'unmount', targets }, targets.join(' '), signal);
}

/**
 * Finds out whether overlayfs takes idmapped lowers from the file system that `directory` is to be made in. Errors: FailedPrecondition
 * (it does not, with the step that failed), Unavailable (aborted).
 */
export async function checkIdmappedLowers(directory: string, signal: AbortSignal): Promise<void> {
  await runHelper({ action: 'probe idmap', directory }, directory, signal);
}

/** The mounted paths of this process's mount namespace, decoded (`\040` is a blank). Source: proc_pid_mountinfo(5). */
export async function listMountPoints(): Promise<string[]> {
  const text = await fs.readFile('/proc/self/mountinfo', 'utf8');
  const points: string[] = [];
  for (const line of text.split('\n')) {
    const field = line.split(' ', 5)[4];
    if (field !== undefined)
      points.push(field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8))));
  }
  return points;
}
