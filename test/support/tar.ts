/** Tar files for image layers: from a list of entries, or from a directory with everything that a layer keeps. Ours. */
import { createHash } from 'node:crypto';
import { createReadStream, createWriteStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import * as tarStream from 'tar-stream';
import type { Digest } from '../../plugin/base/digest.ts';
import { run } from './process.ts';

export interface TarEntry {
  /** Without a leading slash. */
  name: string;
  /** Default: `file` when `content` or nothing is given, `directory` when the name ends in a slash. */
  type?: 'file' | 'directory' | 'symlink' | 'link' | 'character-device' | 'block-device' | 'fifo';
  content?: string | Uint8Array;
  /** Permission bits; default 0644, directories 0755. */
  mode?: number;
  uid?: number;
  gid?: number;
  /** Seconds since the epoch; default 1700000000. */
  mtimeS?: number;
  /** Target of a symlink or hard link. */
  target?: string;
  device?: { major: number; minor: number };
  xattrs?: Readonly<Record<string, string>>;
}

const DEFAULT_MTIME_S = 1_700_000_000;

/** A tar of the entries, in the order given. */
export async function tarOf(entries: readonly TarEntry[]): Promise<Buffer> {
  const pack = tarStream.pack();
  const chunks: Buffer[] = [];
  pack.on('data', (chunk) => chunks.push(chunk as Buffer));
  const ended = new Promise<void>((resolve, reject) => {
    pack.once('end', resolve);
    pack.once('error', reject);
  });
  for (const entry of entries) {
    const type = entry.type ?? (entry.name.endsWith('/') ? 'directory' : entry.target === undefined ? 'file' : 'symlink');
    const content = Buffer.from(entry.content ?? '');
    const header: Partial<tarStream.Header> & { name: string } = {
      name: entry.name,
      type,
      mode: entry.mode ?? (type === 'directory' ? 0o755 : 0o644),
      uid: entry.uid ?? 0,
      gid: entry.gid ?? 0,
      mtime: new Date((entry.mtimeS ?? DEFAULT_MTIME_S) * 1000),
      size: type === 'file' ? content.length : 0,
    };
    if (entry.target !== undefined) header.linkname = entry.target;
    if (entry.device !== undefined) Object.assign(header, { devmajor: entry.device.major, devminor: entry.device.minor });
    if (entry.xattrs !== undefined) {
      header.pax = Object.fromEntries(Object.entries(entry.xattrs).map(([name, value]) => [`SCHILY.xattr.${name}`, value]));
    }
    await new Promise<void>((resolve, reject) => {
      const done = (error?: Error | null): void => (error ? reject(error) : resolve());
      if (type === 'file') pack.entry(header, content, done);
      else pack.entry(header, done);
    });
  }
  pack.finalize();
  await ended;
  return Buffer.concat(chunks);
}

/**
 * Writes a directory as a layer tar: names sorted, numeric owners, xattrs kept, no access or change times, so that equal trees give equal
 * bytes. Times later than `latestMtimeS` become that one.
 */
export async function tarDirectory(directory: string, tarPath: string, options: { latestMtimeS?: number } = {}): Promise<void> {
  await run(
    'tar',
    [
      '--create',
      '--file',
      tarPath,
      '--directory',
      directory,
      '--format=pax',
      '--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime',
      '--sort=name',
      '--numeric-owner',
      '--xattrs',
      ...(options.latestMtimeS === undefined ? [] : [`--mtime=@${options.latestMtimeS}`, '--clamp-mtime']),
      '.',
    ],
    { timeoutMs: 600_000 },
  );
}

/** SHA-256 and size of a file. */
export async function digestOfFile(path: string): Promise<{ digest: Digest; sizeBytes: number }> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return { digest: `sha256:${hash.digest('hex')}`, sizeBytes: (await stat(path)).size };
}

/** Compresses a file with gzip; no name or time in the header, so that equal input gives equal bytes. */
export async function gzipFile(from: string, to: string, level = 6): Promise<void> {
  await pipeline(createReadStream(from), createGzip({ level }), createWriteStream(to));
}
