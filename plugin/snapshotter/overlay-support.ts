/** Which overlayfs options this kernel and this process need. Source: kernel Documentation/filesystems/overlayfs.rst. */
import fs from 'node:fs/promises';
import { errnoOf } from '../base/errors.ts';

async function readOptional(path: string): Promise<string | undefined> {
  try {
    return await fs.readFile(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}

/**
 * `index=off` where the kernel knows it: two mounts may share lowers, and an index would refuse an upper that was mounted before.
 * `userxattr` when running in a user namespace, where trusted.* attributes are not ours to write.
 */
export async function overlayOptions(): Promise<string[]> {
  const options: string[] = [];
  if ((await readOptional('/sys/module/overlay/parameters/index')) !== undefined) options.push('index=off');
  const mapping = await readOptional('/proc/self/uid_map');
  const isWholeRange = mapping === undefined || /^\s*0\s+0\s+4294967295\s*$/.test(mapping);
  if (!isWholeRange) options.push('userxattr');
  return options;
}
