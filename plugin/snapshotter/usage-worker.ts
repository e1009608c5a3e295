/** Worker thread that adds up what directory trees take, as containerd does: allocated blocks, each inode once. */
import fs from 'node:fs';
import path from 'node:path';
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

/** Walks one tree. What vanishes meanwhile (a running container deletes files) does not count. */
function measure(root: string): UsageAnswer {
  const seen = new Set<bigint>();
  const pending = [root];
  let bytes = 0;
  for (let current = pending.pop(); current !== undefined; current = pending.pop()) {
    try {
      const stat = fs.lstatSync(current, { bigint: true });
      // One tree lies on one file system, so the inode number alone tells inodes apart.
      if (seen.has(stat.ino)) continue;
      seen.add(stat.ino);
      bytes += Number(stat.blocks) * 512;
      if (stat.isDirectory()) for (const name of fs.readdirSync(current)) pending.push(path.join(current, name));
    } catch (error) {
      if (current === root || !errnoIs(error, 'ENOENT', 'ENOTDIR')) throw error;
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
