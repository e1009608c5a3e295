/**
 * A short-lived process that mounts or unmounts one image. Mounting reads the file system's first blocks, which may wait for the
 * network, so it happens here and never on an event loop or in the process that serves the reads.
 * Takes one JSON argument; answers one JSON line on standard output.
 */
import fs from 'node:fs';
import { AppError, describeError } from '../base/errors.ts';
import { probeIdmappedLowers } from './idmap.ts';
import { ERRNO, systemCallError } from './libc.ts';
import { attachLoop } from './loop.ts';
import { detachMounts, MS_NODEV, MS_RDONLY, mount, tryMount } from './mount.ts';

const EROFS_MAGIC = 0xe0f5e1e2;
const EXT4_MAGIC = 0xef53;
const SUPERBLOCK_OFFSET = 1024;

export interface HelperMountRequest {
  action: 'mount';
  devicePath: string;
  target: string;
  /** Kernel read-ahead of the device and of what is mounted on it, KiB. */
  readAheadKib: number;
}
export interface HelperUnmountRequest {
  action: 'unmount';
  targets: string[];
}

export interface HelperProbeRequest {
  action: 'probe idmap';
  /** Where to try it; made and removed again. */
  directory: string;
}

function sniffFsType(devicePath: string): 'erofs' | 'ext4' {
  const block = Buffer.alloc(4096);
  const fd = fs.openSync(devicePath, fs.constants.O_RDONLY);
  try {
    fs.readSync(fd, block, 0, block.length, 0);
  } finally {
    fs.closeSync(fd);
  }
  if (block.readUInt32LE(SUPERBLOCK_OFFSET) === EROFS_MAGIC) return 'erofs';
  if (block.readUInt16LE(SUPERBLOCK_OFFSET + 56) === EXT4_MAGIC) return 'ext4';
  throw new AppError('InvalidArgument', {
    op: 'mount',
    subject: devicePath,
    what: 'neither an EROFS nor an ext4 superblock at byte 1024 of the device; other file systems are not mounted',
  });
}

const BDI_DIRECTORY = '/sys/class/bdi';

/** Read-ahead of the FUSE file, found by its device number. An absent file means a kernel without the knob. */
function setDeviceReadAhead(devicePath: string, readAheadKib: number): void {
  const dev = fs.statSync(devicePath).dev;
  setReadAhead(`${(dev >> 8) & 0xfff}:${(dev & 0xff) | ((dev >> 12) & 0xfff00)}`, readAheadKib);
}

function setReadAhead(bdi: string, readAheadKib: number): void {
  const file = `${BDI_DIRECTORY}/${bdi}/read_ahead_kb`;
  if (fs.existsSync(file)) fs.writeFileSync(file, String(readAheadKib));
}

/** EROFS on a file names its bdi by a running number (`erofs-7`), so a new one is told from those before. */
function erofsBdis(): string[] {
  return fs.readdirSync(BDI_DIRECTORY).filter((name) => name.startsWith('erofs-'));
}

function mountImage(request: HelperMountRequest): { fsType: string; loopDevice?: string } {
  const { devicePath, target, readAheadKib } = request;
  setDeviceReadAhead(devicePath, readAheadKib);
  const fsType = sniffFsType(devicePath);
  fs.mkdirSync(target, { recursive: true, mode: 0o755 });
  detachMounts(target);
  const flags = MS_RDONLY | MS_NODEV;
  if (fsType === 'erofs') {
    const before = new Set(erofsBdis());
    const errno = tryMount({ source: devicePath, target, fsType, flags, options: '' });
    if (errno === 0) {
      // Another helper may have mounted meanwhile: it sets the same value.
      for (const bdi of erofsBdis()) if (!before.has(bdi)) setReadAhead(bdi, readAheadKib);
      return { fsType };
    }
    if (errno !== ERRNO.ENOTBLK) throw systemCallError(`mount ${fsType} from ${devicePath} at`, target, errno);
  }
  const loop = attachLoop(devicePath);
  try {
    fs.writeFileSync(`/sys/block/${loop.path.slice('/dev/'.length)}/queue/read_ahead_kb`, String(readAheadKib));
    mount({ source: loop.path, target, fsType, flags, options: fsType === 'ext4' ? 'noload' : '' });
  } finally {
    fs.closeSync(loop.fd);
  }
  return { fsType, loopDevice: loop.path };
}

async function main(): Promise<void> {
  try {
    const request = JSON.parse(process.argv[2] ?? '{}') as HelperMountRequest | HelperUnmountRequest | HelperProbeRequest;
    if (request.action === 'probe idmap') {
      await probeIdmappedLowers(request.directory);
      process.stdout.write(`${JSON.stringify({ result: {} })}\n`);
      return;
    }
    if (request.action === 'mount') {
      process.stdout.write(`${JSON.stringify({ result: mountImage(request) })}\n`);
      return;
    }
    for (const target of request.targets) detachMounts(target);
    process.stdout.write(`${JSON.stringify({ result: {} })}\n`);
  } catch (error) {
    const body = error instanceof AppError ? error.toJSON() : { code: 'Internal', message: describeError(error) };
    process.stdout.write(`${JSON.stringify({ error: body })}\n`);
  }
}

await main();
