/**
 * Loop devices, for file systems that need a block device under them (ext4) and for kernels that cannot mount EROFS from a file.
 * Source: linux/loop.h (LOOP_CTL_GET_FREE, LOOP_CONFIGURE, struct loop_config, struct loop_info64).
 */
import fs from 'node:fs';
import { ERRNO, lastErrno, libc, systemCallError } from './libc.ts';

const LOOP_CTL_GET_FREE = 0x4c82;
const LOOP_CONFIGURE = 0x4c0a;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
const LO_FLAGS_DIRECT_IO = 16;

/** struct loop_config: fd u32, block_size u32, info (232 bytes: five u64, then number, …, flags u32 at 52, name at 56), 8 reserved u64. */
const CONFIG_BYTES = 304;
const FLAGS_OFFSET = 8 + 52;
const NAME_OFFSET = 8 + 56;
const NAME_BYTES = 63;

/** Others take free devices too; each failed try means that somebody else got one. */
const MAX_TRIES = 64;

export interface LoopDevice {
  path: string;
  /** Keeps the device alive: with autoclear it goes when the last user closes it, so mount before closing. */
  fd: number;
}

/** Binds `filePath` to a free loop device: read-only, direct I/O (no second copy in the page cache), gone with its last user. */
export function attachLoop(filePath: string): LoopDevice {
  const backing = fs.openSync(filePath, fs.constants.O_RDONLY);
  const control = fs.openSync('/dev/loop-control', fs.constants.O_RDWR);
  try {
    const config = Buffer.alloc(CONFIG_BYTES);
    config.writeUInt32LE(backing, 0);
    config.writeUInt32LE(512, 4);
    config.writeUInt32LE(LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO, FLAGS_OFFSET);
    config.write(filePath.slice(-NAME_BYTES), NAME_OFFSET, NAME_BYTES);
    for (let i = 0; i < MAX_TRIES; i += 1) {
      const number = libc.ioctlValue(control, LOOP_CTL_GET_FREE, 'unsigned long', 0);
      if (number < 0) throw systemCallError('find free loop device for', filePath, lastErrno());
      const path = `/dev/loop${number}`;
      const fd = fs.openSync(path, fs.constants.O_RDONLY);
      if (libc.ioctlBuffer(fd, LOOP_CONFIGURE, 'void *', config) === 0) return { path, fd };
      const errno = lastErrno();
      fs.closeSync(fd);
      if (errno !== ERRNO.EBUSY) throw systemCallError(`bind loop device ${path} to`, filePath, errno);
    }
    throw systemCallError('find free loop device for', filePath, ERRNO.EBUSY, 'ResourceExhausted');
  } finally {
    fs.closeSync(control);
    fs.closeSync(backing);
  }
}
