/** Worker thread: the SHA-256 of a file by descriptor, so that hashing gigabytes takes nothing from the event loop. One job, then it ends. */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';

const { fd, sizeBytes } = workerData as { fd: number; sizeBytes: number };
const hash = createHash('sha256');
const buffer = new Uint8Array(1024 * 1024);
let at = 0;
while (at < sizeBytes) {
  const count = fs.readSync(fd, buffer, 0, Math.min(buffer.length, sizeBytes - at), at);
  if (count === 0) break;
  hash.update(buffer.subarray(0, count));
  at += count;
}
parentPort?.postMessage({ hex: hash.digest('hex'), bytes: at });
