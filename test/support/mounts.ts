/** What the kernel has mounted and which loop devices are taken, and undoing both below a directory. Source: proc_pid_mountinfo(5). */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describeError, errnoOf } from '../../plugin/base/errors.ts';
import { run } from './process.ts';
import { waitFor } from './wait.ts';

export interface MountEntry {
  id: number;
  /** `major:minor` of the superblock's device. */
  device: string;
  mountPoint: string;
  fsType: string;
  source: string;
  options: string;
  superOptions: string;
}

const unescapeOctal = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));

/** All mounts of this process's namespace, in the order they were made. */
export function listMounts(): MountEntry[] {
  const entries: MountEntry[] = [];
  for (const line of readFileSync('/proc/self/mountinfo', 'utf8').split('\n')) {
    if (line === '') continue;
    const [before = '', after = ''] = line.split(' - ');
    const left = before.split(' ');
    const right = after.split(' ');
    entries.push({
      id: Number(left[0]),
      device: left[2] ?? '',
      mountPoint: unescapeOctal(left[4] ?? ''),
      options: left[5] ?? '',
      fsType: right[0] ?? '',
      source: unescapeOctal(right[1] ?? ''),
      superOptions: right[2] ?? '',
    });
  }
  return entries;
}

/** The mounts at or below a directory, latest first: the order in which they can be undone. */
export function mountsUnder(directory: string): MountEntry[] {
  return listMounts()
    .filter((m) => m.mountPoint === directory || m.mountPoint.startsWith(`${directory}/`))
    .reverse();
}

export interface LoopEntry {
  /** `/dev/loop3` */
  path: string;
  backingFile: string;
}

/** Loop devices whose backing file lies (or lay) below a directory. */
export function loopsUnder(directory: string): LoopEntry[] {
  const found: LoopEntry[] = [];
  for (const name of readdirSync('/sys/block')) {
    if (!name.startsWith('loop')) continue;
    try {
      const backingFile = readFileSync(join('/sys/block', name, 'loop/backing_file'), 'utf8').trim();
      if (backingFile.startsWith(`${directory}/`)) found.push({ path: `/dev/${name}`, backingFile });
    } catch (error) {
      // Free loop devices have no `loop` directory; one that is let go meanwhile answers ENXIO.
      if (!['ENOENT', 'ENXIO'].includes(errnoOf(error) ?? '')) throw error;
    }
  }
  return found;
}

/**
 * Unmounts all that is mounted at or below a directory and detaches the loop devices over its files. A mount that stays busy for
 * `patienceMs` is detached lazily. Returns a line for each thing that did not go in the ordinary way.
 */
export async function unmountUnder(directory: string, patienceMs = 5_000): Promise<string[]> {
  const complaints: string[] = [];
  for (const mount of mountsUnder(directory)) {
    const gone = (): boolean => !listMounts().some((m) => m.id === mount.id);
    try {
      await waitFor(
        async () => {
          if (!gone()) await run('umount', [mount.mountPoint], { timeoutMs: 20_000 });
          return gone();
        },
        { what: `unmounting ${mount.mountPoint}`, timeoutMs: patienceMs, everyMs: 100 },
      );
    } catch (error) {
      complaints.push(`${mount.mountPoint} (${mount.fsType}) detached lazily: ${describeError(error)}`);
      await run('umount', ['-l', mount.mountPoint], { okCodes: [0, 32] });
    }
  }
  for (const loop of loopsUnder(directory)) {
    complaints.push(`${loop.path} was still attached to ${loop.backingFile}`);
    await run('losetup', ['-d', loop.path], { okCodes: [0, 1] });
  }
  return complaints;
}
