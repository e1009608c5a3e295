/**
 * containerd in several versions: the system's (Debian 12: 1.6), and those of newer Debian suites, unpacked beside the system. Source of
 * the versions: Debian trixie (1.7) and forky (2.x).
 */
import { existsSync } from 'node:fs';
import { cp, mkdir, rm, symlink } from 'node:fs/promises';
import { delimiter, join } from 'node:path';
import { downloadPackages, unpackPackages } from './debian-packages.ts';
import { run } from './process.ts';
import { cached } from './test-cache.ts';

export type ContainerdLine = '1.6' | '1.7' | '2';

export const CONTAINERD_LINES: readonly ContainerdLine[] = ['1.6', '1.7', '2'];

export interface ContainerdBinaries {
  line: ContainerdLine;
  /** As the binary says: `1.6.20`. */
  version: string;
  containerd: string;
  ctr: string;
  /** To be put first on PATH of the daemon, which looks for its shim and runc there; empty for the system's own. */
  binDir: string;
}

const SUITE = { '1.7': 'trixie', '2': 'forky' } as const;

/** The binaries of one line of containerd; downloaded at the first call of a machine. Fails when the line is not what the suite has. */
export async function containerdBinaries(line: ContainerdLine): Promise<ContainerdBinaries> {
  const binDir = line === '1.6' ? '' : join(await unpackedSuite(SUITE[line]), 'bin');
  const of = (name: string): string => (binDir === '' ? name : join(binDir, name));
  const said = (await run(of('containerd'), ['--version'])).stdout;
  const version = /\s(?:v)?(\d+\.\d+\.\d+)/.exec(said)?.[1];
  if (version === undefined || !version.startsWith(`${line}.`)) {
    throw new Error(`containerd ${line} is wanted, but ${of('containerd')} says: ${said.trim()}`);
  }
  return { line, version, containerd: of('containerd'), ctr: of('ctr'), binDir };
}

/** PATH for a daemon that runs these binaries. */
export function pathFor(binaries: ContainerdBinaries): string {
  // Debian keeps runc in /usr/sbin, which PATH of a non-login shell may lack.
  const parts = [binaries.binDir, process.env.PATH ?? '', '/usr/local/sbin', '/usr/sbin', '/usr/bin', '/sbin', '/bin'];
  return parts.filter((part) => part !== '').join(delimiter);
}

/** `bin/` with containerd, ctr, the shim and (when it runs on this system's libc) runc of a suite. */
function unpackedSuite(suite: string): Promise<string> {
  return cached(`containerd-${suite}`, async (directory) => {
    const apt = join(directory, 'apt');
    const debs = await downloadPackages(apt, suite, ['containerd', 'runc']);
    const root = join(directory, 'root');
    await unpackPackages(
      debs.filter((deb) => /\/(containerd|runc)_/.test(deb)),
      root,
    );
    const bin = join(directory, 'bin');
    await mkdir(bin);
    for (const name of ['containerd', 'ctr', 'containerd-shim-runc-v2']) await cp(join(root, 'usr/bin', name), join(bin, name));
    const runc = join(root, 'usr/sbin/runc');
    const runs = existsSync(runc) && (await run(runc, ['--version'], { okCodes: [0, 1, 127] })).code === 0;
    // A runc linked against a newer libc does not start here; every containerd drives the system's runc as well.
    if (runs) await cp(runc, join(bin, 'runc'));
    else await symlink('/usr/sbin/runc', join(bin, 'runc'));
    await rm(apt, { recursive: true });
    await rm(root, { recursive: true });
  });
}
