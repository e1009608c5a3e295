/**
 * What B3 converts: 1 GB of files as systems have them, as one layer and as ten. Taken from the web application's tree (programs, libraries,
 * headers, node_modules) in the order of their names until 900 MB, and one large file of the next 100 MB in a row.
 */
import { createReadStream, createWriteStream } from 'node:fs';
import { appendFile, mkdir, rm, stat, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { run } from '../../support/process.ts';
import { gzipFile, tarOf } from '../../support/tar.ts';
import { cached, keyOf } from '../../support/test-cache.ts';
import { webAppImage } from '../../support/web-app-image.ts';

const FILES_BYTES = 900_000_000;
const LARGE_FILE_BYTES = 100_000_000;
const LAYERS = 10;

export interface ConvertCorpus {
  /** tar.gz files, bottom to top. */
  layers: string[];
  tarGzipBytes: number;
  tarBytes: number;
}

interface Listed {
  path: string;
  sizeBytes: number;
}

/** Files and symbolic links by name; a further name of an inode has no size of its own. */
async function filesOf(tree: string): Promise<Listed[]> {
  const { stdout } = await run('find', ['.', '(', '-type', 'f', '-o', '-type', 'l', ')', '-printf', '%i %s %P\\n'], { cwd: tree });
  const seen = new Set<string>();
  return stdout
    .trim()
    .split('\n')
    .map((line) => /^(\d+) (\d+) (.*)$/.exec(line)!)
    .map(([, inode, size, path]) => ({ inode: inode!, sizeBytes: Number(size), path: path! }))
    .sort((a, b) => (a.path < b.path ? -1 : 1))
    .map(({ inode, sizeBytes, path }) => {
      const isFurtherName = seen.has(inode);
      seen.add(inode);
      return { sizeBytes: isFurtherName ? 0 : sizeBytes, path };
    });
}

async function tarOfFiles(tree: string, large: string, paths: readonly string[], target: string): Promise<void> {
  const options = ['--create', '--file', target, '--format=pax', '--pax-option=delete=atime,delete=ctime', '--numeric-owner', '--null'];
  const input = paths.map((path) => `${path}\0`).join('');
  const limit = { input, timeoutMs: 600_000 };
  await run(
    'tar',
    [...options, '-C', tree, '--verbatim-files-from', '--files-from=-', ...(large === '' ? [] : ['-C', dirname(large), 'large-file'])],
    limit,
  );
}

async function make(made: string): Promise<void> {
  const { tree } = await webAppImage();
  const groups: string[][] = Array.from({ length: LAYERS }, () => []);
  const large = join(made, 'large-file');
  await writeFile(large, '');
  let filesBytes = 0;
  let largeBytes = 0;
  for (const { path, sizeBytes } of await filesOf(tree)) {
    if (filesBytes < FILES_BYTES) groups[Math.floor((filesBytes / FILES_BYTES) * LAYERS)]!.push(path);
    else if (largeBytes < LARGE_FILE_BYTES && sizeBytes > 0) {
      const taken = Math.min(sizeBytes, LARGE_FILE_BYTES - largeBytes);
      await pipeline(createReadStream(join(tree, path), { end: taken - 1 }), createWriteStream(large, { flags: 'a' }));
      largeBytes += taken;
    }
    filesBytes += sizeBytes;
  }
  await mkdir(join(made, 'tars'));
  const tars: [string, string[], string][] = [['one-0', groups.flat(), large]];
  for (const [index, group] of groups.entries()) tars.push([`ten-${index}`, group, index === LAYERS - 1 ? large : '']);
  for (const [name, paths, withLarge] of tars) {
    const tar = join(made, 'tars', name);
    await tarOfFiles(tree, withLarge, paths, tar);
    await gzipFile(tar, join(made, `${name}.tar.gz`));
    await writeFile(join(made, `${name}.size`), '');
    await run('truncate', ['--reference', tar, join(made, `${name}.size`)]);
    await rm(tar);
  }
  await run('rm', ['-r', join(made, 'tars'), large]);
}

/** The corpus in both forms; made at the first call of a machine (some minutes). */
export async function convertCorpus(): Promise<Record<'one' | 'ten', ConvertCorpus>> {
  const directory = await cached(
    `bench-corpus-${keyOf(make.toString(), filesOf.toString(), tarOfFiles.toString(), String([FILES_BYTES, LARGE_FILE_BYTES, LAYERS]))}`,
    make,
  );
  const sum = async (paths: readonly string[]): Promise<number> => {
    const sizes = await Promise.all(paths.map(async (path) => (await stat(path)).size));
    return sizes.reduce((total, size) => total + size, 0);
  };
  const of = async (name: string, count: number): Promise<ConvertCorpus> => {
    const paths = Array.from({ length: count }, (_, index) => join(directory, `${name}-${index}`));
    const layers = paths.map((path) => `${path}.tar.gz`);
    return { layers, tarGzipBytes: await sum(layers), tarBytes: await sum(paths.map((path) => `${path}.size`)) };
  };
  return { one: await of('one', 1), ten: await of('ten', LAYERS) };
}

const MANY_FILES = 1_000_000;
const FILES_A_TIME = 20_000;
const FILES_A_DIRECTORY = 50;
const TAR_END_BYTES = 1024;

async function makeManyFiles(made: string): Promise<void> {
  const tar = join(made, 'many.tar');
  for (let from = 0; from < MANY_FILES; from += FILES_A_TIME) {
    const entries = Array.from({ length: FILES_A_TIME }, (_, i) => {
      const n = from + i;
      const name = `usr/lib/node_modules/package-${Math.floor(n / FILES_A_DIRECTORY)}/lib/some-usual-module-${n}.d.ts`;
      return { name, content: `export declare const value${n}: number;\n` };
    });
    const bytes = await tarOf(entries);
    await appendFile(tar, from + FILES_A_TIME < MANY_FILES ? bytes.subarray(0, -TAR_END_BYTES) : bytes);
  }
  await gzipFile(tar, join(made, 'many.tar.gz'));
  await writeFile(join(made, 'many.size'), '');
  await run('truncate', ['--reference', tar, join(made, 'many.size')]);
  await rm(tar);
}

/** A layer of a million small files: what the memory of a conversion is bounded by. */
export async function manyFiles(): Promise<ConvertCorpus> {
  const directory = await cached(
    `bench-many-files-${keyOf(makeManyFiles.toString(), String([MANY_FILES, FILES_A_DIRECTORY]))}`,
    makeManyFiles,
  );
  const sizeOf = async (name: string): Promise<number> => (await stat(join(directory, name))).size;
  return {
    layers: [join(directory, 'many.tar.gz')],
    tarGzipBytes: await sizeOf('many.tar.gz'),
    tarBytes: await sizeOf('many.size'),
  };
}
