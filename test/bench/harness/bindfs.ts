/**
 * The C server on libfuse that our FUSE path is compared with: bindfs (GPL-2+, from Debian), a plain pass-through to another directory. Its
 * package is unpacked into the test cache; nothing is installed. It runs with its multi-threaded loop, its default.
 */
import { globSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { downloadPackages, unpackPackages } from '../../support/debian-packages.ts';
import { listMounts } from '../../support/mounts.ts';
import { Daemon, run } from '../../support/process.ts';
import { cached } from '../../support/test-cache.ts';
import { waitFor } from '../../support/wait.ts';

/** The directory of the unpacked packages. */
async function unpacked(): Promise<string> {
  return join(
    await cached('bench-bindfs-bookworm', async (made) => {
      const debs = await downloadPackages(join(made, 'apt'), 'bookworm', ['bindfs']);
      const wanted = debs.filter((deb) => /\/(bindfs|libfuse2)_/.test(deb));
      await unpackPackages(wanted, join(made, 'root'));
    }),
    'root',
  );
}

export interface Passthrough extends AsyncDisposable {
  pid: number;
}

/** Shows `source` at `target` through bindfs. */
export async function startBindfs(source: string, target: string, logPath: string): Promise<Passthrough> {
  const root = await unpacked();
  const library = globSync(join(root, '**/libfuse.so.2'))[0];
  if (library === undefined) throw new Error(`${root} holds no libfuse.so.2`);
  const daemon = await Daemon.start({
    name: 'bindfs',
    command: join(root, 'usr/bin/bindfs'),
    args: ['-f', '-r', source, target],
    env: { ...process.env, LD_LIBRARY_PATH: dirname(library) },
    logPath,
  });
  await daemon.waitReady('its mount', async () => listMounts().some((mount) => mount.mountPoint === target));
  return {
    pid: daemon.pid,
    async [Symbol.asyncDispose]() {
      await run('umount', [target]);
      await waitFor(() => daemon.endedHow !== undefined, { what: 'bindfs to end' });
    },
  };
}
