/**
 * Images for the survival tests: a small tree with a program, on EROFS made by our converter, on EROFS made by mkfs.erofs, or on ext4;
 * and any number of copies that hold the same file system in layers of other digests, so that each of them has to be fetched. Ours.
 */
import { createCipheriv } from 'node:crypto';
import { cp, mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeLayerBlob } from '../../plugin/file/layer-blob-writer.ts';
import { ALGORITHM } from '../../plugin/image/zfile/codec.ts';
import { loadCodec } from '../../plugin/kernel/codecs.ts';
import { convertTars } from './converted-image.ts';
import { buildImage, type Image, layerOfOverlaybdBlob } from './oci-image.ts';
import { run } from './process.ts';
import { tarDirectory } from './tar.ts';
import { type KnownFile, knownFilesOf } from './verifying-reader.ts';

export interface SurvivalTree {
  path: string;
  files: KnownFile[];
  /** Reads one of the large files with a program of the tree. */
  exec: { argv: [string, ...string[]]; stdout: string };
}

/** Pieces of the block image that become one segment each; those of zeros are left out. */
const SEGMENT_BYTES = 64 * 1024;

/** Bytes that do not compress, the same for the same number. */
function incompressible(sizeBytes: number, n: number): Buffer {
  const key = Buffer.alloc(16);
  key.writeUInt32LE(n, 0);
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(sizeBytes));
}

/** Makes a tree of about `sizeBytes`: half in files of 256 KiB, half in odd small ones, and a static busybox. */
export async function makeTree(directory: string, sizeBytes: number): Promise<SurvivalTree> {
  await mkdir(join(directory, 'bin'), { recursive: true });
  await cp('/bin/busybox', join(directory, 'bin/busybox'));
  let made = 0;
  for (let n = 0; made < sizeBytes; n += 1) {
    const size = n % 8 === 0 ? 256 * 1024 : 1 + ((n * 7919) % 70_000);
    const folder = join(directory, `d${n % 7}`);
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, `f${n}`), incompressible(size, n));
    made += size;
  }
  const files = await knownFilesOf(directory);
  const large = files.find((file) => file.size === 256 * 1024);
  if (large === undefined) throw new Error('the tree has a large file');
  return {
    path: directory,
    files,
    exec: { argv: ['/bin/busybox', 'sha256sum', `/${large.path}`], stdout: `${large.sha256}  /${large.path}\n` },
  };
}

/** The tree on EROFS, as our own converter makes it. */
export async function convertedTree(tree: SurvivalTree, staging: string): Promise<Image> {
  await mkdir(staging, { recursive: true });
  const tar = join(staging, 'tree.tar');
  await tarDirectory(tree.path, tar, { latestMtimeS: 1_700_000_000 });
  return convertTars([tar], { config: {}, stagingDirectory: join(staging, 'layers') });
}

/** A file-system image of the tree, in memory. */
export async function fileSystemOf(tree: SurvivalTree, kind: 'ext4' | 'erofs', staging: string): Promise<Buffer> {
  await mkdir(staging, { recursive: true });
  const path = join(staging, `${kind}.img`);
  if (kind === 'erofs') await run('mkfs.erofs', ['--quiet', path, tree.path]);
  else {
    const kib = Math.ceil(tree.files.reduce((sum, file) => sum + file.size + 4096, 0) / 1024) + 8192;
    await run('/sbin/mke2fs', ['-q', '-t', 'ext4', '-O', '^has_journal', '-b', '4096', '-d', tree.path, path, `${kib}k`]);
  }
  return readFile(path);
}

/** One overlaybd layer that holds the file system; another `copy` gives another digest. */
export async function imageOfFileSystem(bytes: Buffer, staging: string, copy: number): Promise<Image> {
  const blob = join(staging, `copy-${copy}`);
  const segments: { offsetBytes: number; bytes: Uint8Array }[] = [];
  const zeros = Buffer.alloc(SEGMENT_BYTES);
  for (let offsetBytes = 0; offsetBytes < bytes.length; offsetBytes += SEGMENT_BYTES) {
    const piece = bytes.subarray(offsetBytes, offsetBytes + SEGMENT_BYTES);
    if (!piece.equals(zeros.subarray(0, piece.length))) segments.push({ offsetBytes, bytes: piece });
  }
  await writeLayerBlob(blob, segments, {
    identity: { virtualSizeBytes: bytes.length, uuid: `00000000-0000-4000-8000-${copy.toString(16).padStart(12, '0')}` },
    form: { compression: { algorithm: ALGORITHM.lz4, blockSizeBytes: 4096 }, wrapper: 'pax' },
    codec: loadCodec(),
  });
  return buildImage([await layerOfOverlaybdBlob(blob)]);
}
