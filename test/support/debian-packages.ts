/**
 * Debian packages of any suite without touching the system: apt works on a scratch `Dir` with its own sources, lists and status file, and
 * only downloads; the packages are verified with the installed archive keyring. Source: apt.conf(5).
 */
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { run } from './process.ts';

const KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg';
const SYSTEM_SOURCES = '/etc/apt/sources.list.d/debian.sources';

/** The mirror that the system itself uses. */
async function mirrorUri(): Promise<string> {
  const text = await readFile(SYSTEM_SOURCES, 'utf8');
  const uri = /^URIs:\s*(\S+)/m.exec(text)?.[1];
  if (uri === undefined) throw new Error(`${SYSTEM_SOURCES} names no mirror (URIs:)`);
  return uri;
}

/**
 * An apt that knows one line of sources and works in `directory` alone; returns the environment that selects it. The signature of the
 * suite is checked; its Valid-Until is not, since a mirror may hold an older snapshot of a suite and tests need no security updates.
 */
async function scratchApt(directory: string, kind: 'deb' | 'deb-src', suite: string): Promise<NodeJS.ProcessEnv> {
  for (const part of ['state/lists/partial', 'cache/archives/partial', 'etc/preferences.d']) {
    await mkdir(join(directory, part), { recursive: true });
  }
  await writeFile(join(directory, 'status'), '');
  await writeFile(join(directory, 'sources.list'), `${kind} [signed-by=${KEYRING}] ${await mirrorUri()} ${suite} main\n`);
  await writeFile(
    join(directory, 'apt.conf'),
    [
      `Dir::State "${directory}/state";`,
      `Dir::State::status "${directory}/status";`,
      `Dir::Cache "${directory}/cache";`,
      `Dir::Etc "${directory}/etc";`,
      `Dir::Etc::SourceList "${directory}/sources.list";`,
      'Dir::Etc::SourceParts "-";',
      'Acquire::Check-Valid-Until "false";',
      'Acquire::Languages "none";',
      'Acquire::Retries "3";',
      'APT::Install-Recommends "false";',
      'APT::Sandbox::User "root";',
      '',
    ].join('\n'),
  );
  const env = { ...process.env, APT_CONFIG: join(directory, 'apt.conf'), DEBIAN_FRONTEND: 'noninteractive' };
  await run('apt-get', ['update', '-qq'], { env, timeoutMs: 300_000 });
  return env;
}

/**
 * Downloads packages with everything they depend on (as if nothing were installed) into `directory/archives`, and returns the paths of
 * the .deb files sorted by name.
 */
export async function downloadPackages(directory: string, suite: string, packages: readonly string[]): Promise<string[]> {
  const env = await scratchApt(directory, 'deb', suite);
  await run('apt-get', ['install', '-d', '-y', '-qq', ...packages], { env, timeoutMs: 600_000 });
  const archives = join(directory, 'cache/archives');
  return (await readdir(archives))
    .filter((name) => name.endsWith('.deb'))
    .sort()
    .map((name) => join(archives, name));
}

/** Downloads a source package and unpacks it, with Debian's patches, into `directory/source`; returns that path. Needs dpkg-dev. */
export async function downloadSource(directory: string, suite: string, sourcePackage: string): Promise<string> {
  const env = await scratchApt(directory, 'deb-src', suite);
  await run('apt-get', ['source', '--download-only', '-qq', sourcePackage], { env, cwd: directory, timeoutMs: 600_000 });
  const dsc = (await readdir(directory)).find((name) => name.endsWith('.dsc'));
  if (dsc === undefined) throw new Error(`apt-get source ${sourcePackage} left no .dsc file in ${directory}`);
  const source = join(directory, 'source');
  // apt has checked the digests that the signed index of the suite names; the maintainer's own signature needs a keyring more.
  await run('dpkg-source', ['--no-check', '-x', dsc, source], { cwd: directory, timeoutMs: 600_000 });
  return source;
}

/** Unpacks packages over each other into a directory, without running their scripts. */
export async function unpackPackages(debs: readonly string[], directory: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  for (const deb of debs) await run('dpkg', ['-x', deb, directory]);
}
