/** Worker thread that adds up what directory trees take, as containerd does: allocated blocks, each inode once. */
import fs from 'node:fs';
import { parentPort } from 'node:worker_threads';

export interface UsageAnswer {
  inodes: number;
  bytes: number;
}

/** What a worker says about the root that it was sent; it takes one at a time. */
export type UsageMessage = { answer: UsageAnswer } | { failure: string };

function errnoIs(error: unknown, ...codes: string[]): boolean {
  return error instanceof Error && 'code' in error && codes.includes(String(error.code));
}

/** Walks one tree. What vanishes meanwhile (a running container deletes files) does not count, nor what lies too deep to be named. */
function measure(rootPath: string): UsageAnswer {
  const seen = new Set<bigint>();
  // Names are bytes, whatever a container writes: kept one character each, since text would lose those that are no UTF-8.
  const root = Buffer.from(rootPath).toString('latin1');
  const pending = [root];
  let bytes = 0;
  for (let current = pending.pop(); current !== undefined; current = pending.pop()) {
    try {
      const file = Buffer.from(current, 'latin1');
      const stat = fs.lstatSync(file, { bigint: true });
      // One tree lies on one file system, so the inode number alone tells inodes apart.
      if (seen.has(stat.ino)) continue;
      seen.add(stat.ino);
      bytes += Number(stat.blocks) * 512;
      if (stat.isDirectory()) for (const name of fs.readdirSync(file, 'latin1')) pending.push(`${current}/${name}`);
    } catch (error) {
      if (current === root || !errnoIs(error, 'ENOENT', 'ENOTDIR', 'ENAMETOOLONG')) throw error;
    }
  }
  return { inodes: seen.size, bytes };
}

parentPort?.on('message', (root: string) => {
  let message: UsageMessage;
  try {
    message = { answer: measure(root) };
  } catch (error) {
    message = { failure: error instanceof Error ? error.message : String(error) };
  }
  parentPort?.postMessage(message);
});
