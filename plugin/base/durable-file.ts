/** Small files that must be whole after a power cut: temp file, fsync, rename, fsync of the directory. */
import fs from 'node:fs/promises';
import path from 'node:path';

/** Makes the names in a directory durable. */
export async function syncDirectory(directory: string): Promise<void> {
  const handle = await fs.open(directory, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/** Replaces `filePath` with `content` atomically and durably. A crash leaves the old file, and perhaps a `.tmp` beside it. */
export async function writeDurably(filePath: string, content: string | Uint8Array, mode = 0o600): Promise<void> {
  const temporary = `${filePath}.tmp`;
  const handle = await fs.open(temporary, 'w', mode);
  try {
    await handle.writeFile(content);
    await handle.sync();
  } finally {
    await handle.close();
  }
  await fs.rename(temporary, filePath);
  await syncDirectory(path.dirname(filePath));
}

/** Removes `filePath` durably; one that is not there is no error. */
export async function removeDurably(filePath: string): Promise<void> {
  await fs.rm(filePath, { force: true });
  await syncDirectory(path.dirname(filePath));
}
