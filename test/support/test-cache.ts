/**
 * What tests download or build once and keep between runs, outside the checkout: `/var/cache/overlaybd-sidecar-test`, or the directory in
 * OVERLAYBD_TEST_CACHE. Entries are named by their content's inputs and appear whole or not at all (made beside, then renamed). Ours.
 */
import { createHash, randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '../../plugin/base/errors.ts';

export const TEST_CACHE = process.env.OVERLAYBD_TEST_CACHE ?? '/var/cache/overlaybd-sidecar-test';

/** A short name for a set of inputs. */
export function keyOf(...inputs: (string | Uint8Array)[]): string {
  const hash = createHash('sha256');
  for (const input of inputs) hash.update(`${input.length}:`).update(input);
  return hash.digest('hex').slice(0, 16);
}

/** The directory `name` of the cache; `make` fills a new one when it is not there. A failing `make` leaves nothing. */
export async function cached(name: string, make: (directory: string) => Promise<void>): Promise<string> {
  const target = join(TEST_CACHE, name);
  if (existsSync(target)) return target;
  const beside = `${target}.new-${randomBytes(4).toString('hex')}`;
  await mkdir(beside, { recursive: true });
  try {
    await make(beside);
    await rename(beside, target);
  } catch (error) {
    await rm(beside, { recursive: true, force: true });
    // Another test run made it first: its copy is as good.
    if (!['ENOTEMPTY', 'EEXIST'].includes(errnoOf(error) ?? '')) throw error;
  }
  return target;
}
