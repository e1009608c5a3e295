/**
 * What a directory tree holds, and where two trees differ: types, permissions, owners, times, sizes, content, link targets, device numbers,
 * extended attributes and which names are one file. The entries have the form of the reference listings (`listing/*.json` of the golden
 * files), so that a mounted device can be compared with them.
 */
import { createHash } from 'node:crypto';
import type { BigIntStats } from 'node:fs';
import { lstat, open, readdir, readFile, readlink } from 'node:fs/promises';
import { readXattrs } from './xattrs.ts';

export interface TreeEntry {
  /** Relative to the root, `.` for the root; a name that is not UTF-8 stands in `path_b64` instead. */
  path?: string;
  path_b64?: string;
  type: 'dir' | 'file' | 'symlink' | 'char' | 'block' | 'fifo' | 'socket';
  /** Octal text of the permission bits with set-uid, set-gid and sticky: `0755`. */
  mode: string;
  uid: number;
  gid: number;
  /** Whole seconds. */
  mtime: number;
  /** The rest of the time; absent in listings that know seconds alone. */
  mtime_ns?: number;
  size?: number;
  nlink?: number;
  /** Equal numbers are one file; numbers mean nothing else. */
  hardlink_group?: number;
  target?: string;
  rdev?: [number, number];
  sha256?: string;
  xattrs_b64?: Record<string, string>;
}

const READ_BYTES = 1024 * 1024;

/** One name for an entry, whatever its encoding: latin1 keeps every byte. */
const keyOf = (entry: TreeEntry): string =>
  Buffer.from(entry.path ?? entry.path_b64 ?? '', entry.path === undefined ? 'base64' : 'utf8').toString('latin1');

function typeOf(stats: BigIntStats): TreeEntry['type'] {
  if (stats.isDirectory()) return 'dir';
  if (stats.isFile()) return 'file';
  if (stats.isSymbolicLink()) return 'symlink';
  if (stats.isCharacterDevice()) return 'char';
  if (stats.isBlockDevice()) return 'block';
  return stats.isFIFO() ? 'fifo' : 'socket';
}

/** Splits a device number as makedev(3) joins it. */
function deviceNumbers(rdev: bigint): [number, number] {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);
  return [Number(major), Number(minor)];
}

async function hashOf(path: Buffer): Promise<string> {
  const hash = createHash('sha256');
  const buffer = Buffer.allocUnsafe(READ_BYTES);
  const file = await open(path, 'r');
  try {
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length);
      if (bytesRead === 0) return hash.digest('hex');
      hash.update(buffer.subarray(0, bytesRead));
    }
  } finally {
    await file.close();
  }
}

/** Every entry of a tree, sorted by the bytes of its path. Other file systems mounted inside are entered like directories. */
export async function listTree(root: string): Promise<TreeEntry[]> {
  const entries: TreeEntry[] = [];
  const groups = new Map<bigint, number>();
  const visit = async (path: Buffer, relative: Buffer): Promise<void> => {
    const stats = await lstat(path, { bigint: true });
    const type = typeOf(stats);
    const text = relative.toString();
    const seconds = stats.mtimeNs / 1_000_000_000n;
    const entry: TreeEntry = {
      ...(Buffer.from(text).equals(relative) ? { path: text } : { path_b64: relative.toString('base64') }),
      type,
      mode: (Number(stats.mode) & 0o7777).toString(8).padStart(4, '0'),
      uid: Number(stats.uid),
      gid: Number(stats.gid),
      mtime: Number(seconds),
      mtime_ns: Number(stats.mtimeNs - seconds * 1_000_000_000n),
    };
    if (type !== 'dir') entry.nlink = Number(stats.nlink);
    if (type !== 'dir' && stats.nlink > 1n) {
      if (!groups.has(stats.ino)) groups.set(stats.ino, groups.size + 1);
      entry.hardlink_group = groups.get(stats.ino)!;
    }
    if (type === 'file' || type === 'symlink') entry.size = Number(stats.size);
    if (type === 'char' || type === 'block') entry.rdev = deviceNumbers(stats.rdev);
    if (type === 'symlink') entry.target = (await readlink(path, { encoding: 'buffer' })).toString('utf8');
    if (type === 'file') entry.sha256 = await hashOf(path);
    const xattrs = Object.entries(readXattrs(path));
    if (xattrs.length > 0) entry.xattrs_b64 = Object.fromEntries(xattrs.map(([name, value]) => [name, value.toString('base64')]));
    entries.push(entry);
    if (type !== 'dir') return;
    const names = (await readdir(path, { encoding: 'buffer' })).sort(Buffer.compare);
    for (const name of names) {
      const isRoot = relative.toString() === '.';
      await visit(Buffer.concat([path, Buffer.from('/'), name]), isRoot ? name : Buffer.concat([relative, Buffer.from('/'), name]));
    }
  };
  await visit(Buffer.from(root), Buffer.from('.'));
  return entries;
}

/** A listing of the golden files. */
export async function readListing(path: string): Promise<TreeEntry[]> {
  return JSON.parse(await readFile(path, 'utf8')) as TreeEntry[];
}

export interface CompareOptions {
  /** Paths left out with all below them, in both trees: `lost+found`. */
  ignorePaths?: readonly string[];
  /** Fields not compared: `mtime_ns`, `nlink`. */
  ignoreFields?: readonly (keyof TreeEntry)[];
}

/** Each group's number becomes the path of its first name, so that two listings can be compared. */
function withGroupNames(entries: readonly TreeEntry[]): Map<string, Record<string, unknown>> {
  const first = new Map<number, string>();
  const named = new Map<string, Record<string, unknown>>();
  const byKey = entries.map((entry) => ({ key: keyOf(entry), entry })).sort((a, b) => (a.key < b.key ? -1 : 1));
  for (const { key, entry } of byKey) {
    const fields: Record<string, unknown> = { ...entry };
    delete fields.path;
    delete fields.path_b64;
    if (entry.hardlink_group !== undefined) {
      if (!first.has(entry.hardlink_group)) first.set(entry.hardlink_group, key);
      fields.hardlink_group = first.get(entry.hardlink_group);
    }
    if (entry.xattrs_b64 !== undefined) fields.xattrs_b64 = Object.fromEntries(Object.entries(entry.xattrs_b64).sort());
    named.set(key, fields);
  }
  return named;
}

/** One line for each difference, none when the trees are equal. Where one side knows no nanoseconds, they are not compared. */
export function treeDifferences(expected: readonly TreeEntry[], actual: readonly TreeEntry[], options: CompareOptions = {}): string[] {
  const { ignorePaths = [], ignoreFields = [] } = options;
  const isIgnored = (key: string): boolean => ignorePaths.some((path) => key === path || key.startsWith(`${path}/`));
  const left = withGroupNames(expected.filter((entry) => !isIgnored(keyOf(entry))));
  const right = withGroupNames(actual.filter((entry) => !isIgnored(keyOf(entry))));
  const lines: string[] = [];
  for (const [key, want] of left) {
    const have = right.get(key);
    if (have === undefined) {
      lines.push(`${key}: missing`);
      continue;
    }
    for (const field of new Set([...Object.keys(want), ...Object.keys(have)])) {
      if ((ignoreFields as readonly string[]).includes(field)) continue;
      if (field === 'mtime_ns' && (want[field] === undefined || have[field] === undefined)) continue;
      const [a, b] = [JSON.stringify(want[field]), JSON.stringify(have[field])];
      if (a !== b) lines.push(`${key}: ${field} is ${b?.slice(0, 200)}, expected ${a?.slice(0, 200)}`);
    }
  }
  for (const key of right.keys()) if (!left.has(key)) lines.push(`${key}: not expected`);
  return lines;
}

/** Lists both trees and compares them. */
export async function compareTrees(expectedRoot: string, actualRoot: string, options: CompareOptions = {}): Promise<string[]> {
  return treeDifferences(await listTree(expectedRoot), await listTree(actualRoot), options);
}
