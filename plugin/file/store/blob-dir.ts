/**
 * One blob's directory on disk: `data` (sparse, exactly the blob's size) and `map` (see blob-map.ts). Creating and removing are ordered
 * so that a process killed, or a machine switched off, at any line leaves either a whole blob or something that start-up removes:
 * a directory without a map is a leftover; a map is removed, durably, before the data it vouches for.
 */
import { randomBytes } from 'node:crypto';
import type { Digest } from '../../base/digest.ts';
import { errnoOf } from '../../base/errors.ts';
import { MAX_BLOB_BYTES } from '../../base/limits.ts';
import {
  decodeMap,
  encodeHeader,
  headerBlobBytes,
  headerDamage,
  MAP_LIFE_BYTES,
  MAP_SECTOR_BYTES,
  MAP_WHOLE_SECTOR,
  mapBytesOf,
} from './blob-map.ts';
import { type Presence, UNIT_DURABLE, UNIT_PRESENT, unitCountOf } from './presence.ts';
import type { StoreFs } from './store-fs.ts';

export const dataPath = (dir: string): string => `${dir}/data`;
export const mapPath = (dir: string): string => `${dir}/map`;

export interface OpenBlobDir {
  dataFd: number;
  life: Uint8Array;
  isWhole: boolean;
  presentUnits: number;
}

/** What `du` counts for a blob directory. */
export async function blobDirBytes(fs: StoreFs, dir: string): Promise<number> {
  const stats = await Promise.all([fs.lstat(dir), fs.lstat(dataPath(dir)), fs.lstat(mapPath(dir))]);
  return stats.reduce((sum, stat) => sum + stat.diskBytes, 0);
}

/** Makes an empty blob; leftovers of the same name go first. Throws system errors, after removing what was begun. */
export async function createBlobDir(fs: StoreFs, dir: string, digest: Digest, sizeBytes: number): Promise<OpenBlobDir> {
  await removeBlobDir(fs, dir);
  await fs.mkdir(dir);
  let dataFd = -1;
  try {
    dataFd = await fs.open(dataPath(dir), 'create');
    await fs.truncate(dataFd, sizeBytes);
    const life = randomBytes(MAP_LIFE_BYTES);
    await withFile(fs, mapPath(dir), 'create', async (fd) => {
      await fs.truncate(fd, mapBytesOf(sizeBytes));
      await fs.write(fd, encodeHeader(digest, sizeBytes, life), 0);
    });
    return { dataFd, life, isWhole: false, presentUnits: 0 };
  } catch (error) {
    if (dataFd >= 0) await fs.close(dataFd);
    await removeBlobDir(fs, dir);
    throw error;
  }
}

/**
 * Opens a blob and fills `presence` with its durable units. A sentence instead means that what is there cannot be believed (presence
 * is then to be thrown away). Throws system errors.
 */
export async function openBlobDir(
  fs: StoreFs,
  dir: string,
  digest: Digest,
  sizeBytes: number,
  presence: Presence,
): Promise<OpenBlobDir | string> {
  const expected = mapBytesOf(sizeBytes);
  const bytes = new Uint8Array(expected);
  const mapBytes = await withFile(fs, mapPath(dir), 'read', async (fd) => {
    const stat = await fs.fstat(fd);
    return stat.sizeBytes === expected ? readAll(fs, fd, bytes) : stat.sizeBytes;
  });
  if (mapBytes !== expected) return `the map has ${mapBytes} bytes instead of ${expected}`;
  let presentUnits = 0;
  const map = decodeMap(bytes, digest, sizeBytes, (unit) => {
    presence.set(unit, UNIT_PRESENT | UNIT_DURABLE);
    presentUnits += 1;
  });
  if (typeof map === 'string') return map;
  const isWhole = map.isWhole && presentUnits === presence.unitCount;
  // A drop that a power cut tore: left there, the mark would count for what is fetched next.
  if (map.isWhole && !isWhole) await clearWhole(fs, dir);
  const dataFd = await fs.open(dataPath(dir), 'write');
  const stat = await fs.fstat(dataFd);
  if (stat.isFile && stat.sizeBytes === sizeBytes) {
    return { dataFd, life: map.life, isWhole, presentUnits };
  }
  await fs.close(dataFd);
  return `the data has ${stat.sizeBytes} bytes instead of ${sizeBytes}`;
}

async function clearWhole(fs: StoreFs, dir: string): Promise<void> {
  await withFile(fs, mapPath(dir), 'write', async (fd) => {
    await fs.write(fd, new Uint8Array(MAP_SECTOR_BYTES), MAP_WHOLE_SECTOR * MAP_SECTOR_BYTES);
    await fs.datasync(fd);
  });
}

/** Removes a blob, whole or in part; nothing there is fine. */
export async function removeBlobDir(fs: StoreFs, dir: string): Promise<void> {
  const names = await unlessMissing(fs.readdir(dir));
  if (names === undefined) return;
  if (names.includes('map')) {
    await fs.unlink(mapPath(dir));
    await fs.syncDir(dir);
  }
  for (const name of names) if (name !== 'map') await fs.unlink(`${dir}/${name}`);
  await fs.rmdir(dir);
}

/** The quick look at start-up: undefined when the directory seems a whole blob (bits are checked when it is opened), else what is wrong. */
export async function blobDirDamage(fs: StoreFs, dir: string, digest: Digest): Promise<string | undefined> {
  const names = await fs.readdir(dir);
  if (!names.includes('map')) return 'there is no map';
  if (!names.includes('data')) return 'there is no data';
  if (names.length !== 2) return `there are ${names.length} entries instead of 2`;
  const header = new Uint8Array(MAP_SECTOR_BYTES);
  const mapBytes = await withFile(fs, mapPath(dir), 'read', async (fd) => {
    await readAll(fs, fd, header);
    return (await fs.fstat(fd)).sizeBytes;
  });
  const damage = headerDamage(header, digest);
  if (damage !== undefined) return damage;
  const sizeBytes = headerBlobBytes(header);
  if (mapBytes !== mapBytesOf(sizeBytes)) return `the map has ${mapBytes} bytes instead of ${mapBytesOf(sizeBytes)}`;
  const data = await fs.lstat(dataPath(dir));
  if (!data.isFile || data.sizeBytes !== sizeBytes) return `the data has ${data.sizeBytes} bytes instead of ${sizeBytes}`;
  return undefined;
}

/** True when the directory holds every unit of the blob and says that its digest was checked. Nothing there is no error. */
export async function isWholeBlobDir(fs: StoreFs, dir: string, digest: Digest): Promise<boolean> {
  const bytes = await unlessMissing(
    withFile(fs, mapPath(dir), 'read', async (fd) => {
      const { sizeBytes } = await fs.fstat(fd);
      if (sizeBytes < MAP_SECTOR_BYTES || sizeBytes > mapBytesOf(MAX_BLOB_BYTES)) return new Uint8Array();
      const target = new Uint8Array(sizeBytes);
      await readAll(fs, fd, target);
      return target;
    }),
  );
  if (bytes === undefined || bytes.length === 0 || headerDamage(bytes.subarray(0, MAP_SECTOR_BYTES), digest) !== undefined) return false;
  const sizeBytes = headerBlobBytes(bytes);
  let presentUnits = 0;
  const map = decodeMap(bytes, digest, sizeBytes, () => {
    presentUnits += 1;
  });
  return typeof map !== 'string' && map.isWhole && presentUnits === unitCountOf(sizeBytes);
}

/** Opens, works, closes. */
export async function withFile<T>(
  fs: StoreFs,
  path: string,
  mode: 'read' | 'write' | 'create',
  work: (fd: number) => Promise<T>,
): Promise<T> {
  const fd = await fs.open(path, mode);
  try {
    return await work(fd);
  } finally {
    await fs.close(fd);
  }
}

/** The result, or undefined if the file does not exist. */
export async function unlessMissing<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}

async function readAll(fs: StoreFs, fd: number, target: Uint8Array): Promise<number> {
  let done = 0;
  while (done < target.length) {
    const count = await fs.read(fd, target.subarray(done), done);
    if (count === 0) break;
    done += count;
  }
  return done;
}
