/**
 * Idmapped mounts: files appear with the owners that a user namespace maps them to. Whether overlayfs takes such mounts as lowers depends
 * on the kernel (5.19) and on the file system, so it is tried. Only in the mount helper: it starts a process and mounts. Sources:
 * mount_setattr(2), open_tree(2), user_namespaces(7).
 */
import { type ChildProcess, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { AppError } from '../base/errors.ts';
import { errnoName, lastErrno, libc } from './libc.ts';
import { detachMounts, MS_RDONLY, tryMount } from './mount.ts';

const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
const OPEN_TREE_CLONE = 1;
const OPEN_TREE_CLOEXEC = 0o2000000;
const MOVE_MOUNT_F_EMPTY_PATH = 4;
const MOUNT_ATTR_IDMAP = 0x0010_0000n;
const SYS_OPEN_TREE = 428;
const SYS_MOVE_MOUNT = 429;
const SYS_MOUNT_SETATTR = 442;

/** Any range that is not the host's own. */
const PROBE_MAP = '0 100000 65536\n';

/** The namespace's process exists within milliseconds; a machine under load gets more. */
const START_LIMIT_MS = 5_000;

function refuse(what: string): AppError {
  return new AppError('FailedPrecondition', { op: 'use idmapped lowers', subject: 'snapshotter.remap_ids', what });
}

/** struct mount_attr: attr_set, attr_clr, propagation, userns_fd; 8 bytes each. */
function idmapAttributes(namespaceFd: number): Uint8Array {
  const bytes = Buffer.alloc(32);
  bytes.writeBigUInt64LE(MOUNT_ATTR_IDMAP, 0);
  bytes.writeBigUInt64LE(BigInt(namespaceFd), 24);
  return bytes;
}

/** Mounts a copy of `source` at `target`, with owners as the namespace maps them. Throws FailedPrecondition naming the step. */
export function mountIdmapped(source: string, target: string, namespaceFd: number): void {
  const tree = libc.openTree(SYS_OPEN_TREE, AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
  if (tree < 0) throw refuse(`open_tree of ${source}: ${errnoName(lastErrno())}`);
  try {
    const attributes = idmapAttributes(namespaceFd);
    if (libc.mountSetattr(SYS_MOUNT_SETATTR, tree, '', AT_EMPTY_PATH, attributes, attributes.length) < 0) {
      throw refuse(`mount_setattr of ${source}: ${errnoName(lastErrno())} (its file system or this kernel has no idmapped mounts)`);
    }
    if (libc.moveMount(SYS_MOVE_MOUNT, tree, '', AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH) < 0) {
      throw refuse(`move_mount to ${target}: ${errnoName(lastErrno())}`);
    }
  } finally {
    fs.closeSync(tree);
  }
}

/** A user namespace with a map of its own, as long as its process lives. Throws FailedPrecondition. */
async function openNamespace(holder: ChildProcess): Promise<number> {
  const own = fs.readlinkSync('/proc/self/ns/user');
  const end = performance.now() + START_LIMIT_MS;
  const { pid } = holder;
  while (pid !== undefined && holder.exitCode === null && performance.now() < end) {
    const file = `/proc/${pid}/ns/user`;
    if (fs.readlinkSync(file) !== own) {
      for (const map of ['uid_map', 'gid_map']) fs.writeFileSync(`/proc/${pid}/${map}`, PROBE_MAP);
      return fs.openSync(file, 'r');
    }
    await sleep(5);
  }
  throw refuse('no user namespace can be made (unshare --user, of util-linux)');
}

/** Tries it with a directory of its own. Throws FailedPrecondition naming the step that the kernel refused. */
export async function probeIdmappedLowers(directory: string): Promise<void> {
  const at = (name: string): string => path.join(directory, name);
  const mountPoints = [at('merged'), at('mapped')];
  // What a killed probe left.
  for (const mountPoint of mountPoints) detachMounts(mountPoint);
  fs.rmSync(directory, { recursive: true, force: true });
  fs.mkdirSync(directory, { mode: 0o700 });
  const holder = spawn('unshare', ['--user', 'sleep', '30'], { stdio: 'ignore' });
  // Without the program there is no pid, which openNamespace tells.
  holder.on('error', () => holder.kill());
  try {
    for (const name of ['lower', 'other', 'mapped', 'merged']) fs.mkdirSync(at(name));
    const namespaceFd = await openNamespace(holder);
    try {
      mountIdmapped(at('lower'), at('mapped'), namespaceFd);
    } finally {
      fs.closeSync(namespaceFd);
    }
    const options = `lowerdir=${at('mapped')}:${at('other')}`;
    const errno = tryMount({ source: 'overlay', target: at('merged'), fsType: 'overlay', flags: MS_RDONLY, options });
    if (errno !== 0) throw refuse(`overlayfs over an idmapped lower: ${errnoName(errno)} (needs kernel 5.19)`);
    if (fs.statSync(at('merged')).uid !== 100_000) throw refuse('an idmapped lower keeps its owners');
  } finally {
    holder.kill('SIGKILL');
    for (const mountPoint of mountPoints) detachMounts(mountPoint);
    fs.rmSync(directory, { recursive: true, force: true });
  }
}
