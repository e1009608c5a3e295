/**
 * The few file-system calls the chunk store makes, as an interface: tests put a disk behind it that forgets what was not synced. None
 * runs on the event loop. Errors are Node's system errors, with their `code`.
 */
import fs from 'node:fs';

export interface StoreStat {
  isDirectory: boolean;
  isFile: boolean;
  sizeBytes: number;
  /** What `du` counts: st_blocks × 512. */
  diskBytes: number;
  modifiedMs: number;
}

export interface StoreFs {
  /** One directory, mode 0700; EEXIST if it is there. */
  mkdir(path: string): Promise<void>;
  readdir(path: string): Promise<string[]>;
  /** Does not follow symbolic links. */
  lstat(path: string): Promise<StoreStat>;
  fstat(fd: number): Promise<StoreStat>;
  /** `create` fails if the file exists; nothing follows a symbolic link in the last component. */
  open(path: string, mode: 'read' | 'write' | 'create'): Promise<number>;
  close(fd: number): Promise<void>;
  truncate(fd: number, sizeBytes: number): Promise<void>;
  /** At most `target.length` bytes; fewer at the end of the file. */
  read(fd: number, target: Uint8Array, offsetBytes: number): Promise<number>;
  /** All bytes or an error. */
  write(fd: number, bytes: Uint8Array, offsetBytes: number): Promise<void>;
  datasync(fd: number): Promise<void>;
  /** Makes the directory's entries durable. */
  syncDir(path: string): Promise<void>;
  unlink(path: string): Promise<void>;
  rmdir(path: string): Promise<void>;
  /** Sets access and modification time. */
  touch(path: string, timeMs: number): Promise<void>;
}

const OPEN_FLAGS = {
  read: fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW,
  write: fs.constants.O_RDWR | fs.constants.O_NOFOLLOW,
  create: fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_EXCL | fs.constants.O_NOFOLLOW,
} as const;

/** Turns a callback call into a promise without fs.promises' handle objects: half their cost on the write path. */
function call<T>(start: (done: (error: Error | null, value?: T) => void) => void): Promise<T> {
  return new Promise((resolve, reject) => {
    start((error, value) => (error === null ? resolve(value as T) : reject(error)));
  });
}

function toStat(stats: fs.Stats): StoreStat {
  return {
    isDirectory: stats.isDirectory(),
    isFile: stats.isFile(),
    sizeBytes: stats.size,
    diskBytes: stats.blocks * 512,
    modifiedMs: stats.mtimeMs,
  };
}

const writeOnce = (fd: number, bytes: Uint8Array, offset: number): Promise<number> =>
  call((done) => fs.write(fd, bytes, 0, bytes.length, offset, (error, written) => done(error, written)));

/** The machine's own file system. */
export const systemStoreFs: StoreFs = {
  mkdir: (path) => call((done) => fs.mkdir(path, { mode: 0o700 }, done)),
  readdir: (path) => call((done) => fs.readdir(path, done)),
  lstat: async (path) => toStat(await call<fs.Stats>((done) => fs.lstat(path, done))),
  fstat: async (fd) => toStat(await call<fs.Stats>((done) => fs.fstat(fd, done))),
  open: (path, mode) => call((done) => fs.open(path, OPEN_FLAGS[mode], 0o600, done)),
  close: (fd) => call((done) => fs.close(fd, done)),
  truncate: (fd, sizeBytes) => call((done) => fs.ftruncate(fd, sizeBytes, done)),
  read: (fd, target, offset) => call((done) => fs.read(fd, target, 0, target.length, offset, (error, count) => done(error, count))),
  async write(fd, bytes, offset) {
    let written = 0;
    while (written < bytes.length) written += await writeOnce(fd, bytes.subarray(written), offset + written);
  },
  datasync: (fd) => call((done) => fs.fdatasync(fd, done)),
  async syncDir(path) {
    const fd = await call<number>((done) => fs.open(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY, done));
    try {
      await call<void>((done) => fs.fsync(fd, done));
    } finally {
      await call<void>((done) => fs.close(fd, done));
    }
  },
  unlink: (path) => call((done) => fs.unlink(path, done)),
  rmdir: (path) => call((done) => fs.rmdir(path, done)),
  touch: (path, timeMs) => call((done) => fs.utimes(path, timeMs / 1000, timeMs / 1000, done)),
};
