/**
 * What install.sh runs to edit containerd's configuration. Reads the file, writes the new text to standard output; the shell compares,
 * keeps a backup and moves it into place, so that this program changes nothing itself.
 *
 * Usage: containerd-config add FILE CONFIG VERSION CRI|NO-CRI   (CONFIG: our configuration; VERSION of a new file: 2 or 3)
 *        containerd-config remove FILE
 * Exit codes: 0 the text is on standard output; 1 refused, the reason on standard error; 3 nothing is left, the file should go.
 */
import fs from 'node:fs';
import { loadConfig } from '../../plugin/base/config/config.ts';
import { describeError } from '../../plugin/base/errors.ts';
import { MIB } from '../../plugin/base/units.ts';
import { addStanza, removeStanza } from './containerd-stanza.ts';

/** containerd's own default file is 10 KiB. */
const MAX_FILE_BYTES = 4 * MIB;

function readIfThere(file: string): string | undefined {
  if (!fs.existsSync(file)) return undefined;
  const { size } = fs.statSync(file);
  if (size > MAX_FILE_BYTES) throw new Error(`${file}: ${size} bytes are more than ${MAX_FILE_BYTES}`);
  return fs.readFileSync(file, 'utf8');
}

function run([verb, file, config, version, cri]: readonly string[]): number {
  if (verb === 'add' && file !== undefined && config !== undefined) {
    const { paths, snapshotter } = loadConfig(config);
    const { text, notices } = addStanza(readIfThere(file), file, {
      socket: snapshotter.socket,
      root: paths.root,
      isCri: cri === 'CRI',
      mayRemapIds: snapshotter.remapIds,
      newFileVersion: version === '3' ? 3 : 2,
    });
    for (const notice of notices) process.stderr.write(`notice: ${notice}\n`);
    process.stdout.write(text);
    return 0;
  }
  if (verb === 'remove' && file !== undefined) {
    const text = removeStanza(readIfThere(file) ?? '');
    if (text === undefined) return 3;
    process.stdout.write(text);
    return 0;
  }
  process.stderr.write('usage: containerd-config add FILE CONFIG VERSION CRI|NO-CRI | remove FILE\n');
  return 1;
}

try {
  process.exitCode = run(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`${describeError(error)}\n`);
  process.exitCode = 1;
}
