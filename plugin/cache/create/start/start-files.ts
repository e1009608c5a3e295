/**
 * Reads what the start of a container reads, so that it is local before the image is used: the program of the image's configuration and all
 * that its command line names, what scripts among them call, interpreters and libraries, the files by which names of users are looked up;
 * then every inode. A guess that costs a bounded number of bytes and that nothing depends on: what it misses comes when it is read. Sources:
 * OCI image-spec (config.md), execve(2) (`#!`), ld.so(8).
 */
import fs from 'node:fs';
import path from 'node:path';
import { MIB } from '../../../base/units.ts';
import type { ImageProcess } from '../../../image/oci/config.ts';
import { type ElfNeeds, readElf } from './elf.ts';
import type { FoundFile, ImageTree } from './image-tree.ts';

export interface StartLimits {
  readonly maxBytes: number;
  readonly maxFiles: number;
  /** Names that are looked for: each word, in each directory of PATH; each library, in each of its places. */
  readonly maxLookups: number;
  /** Inodes that are looked at. */
  readonly maxEntries: number;
  /** Milliseconds for all inodes. */
  readonly maxWalkMs: number;
}

/** The large interpreters (node, java) are 100 MiB with their libraries. Inodes come at a few MB/s over a slow line, and no start needs them all. */
const LIMITS: StartLimits = { maxBytes: 256 * MIB, maxFiles: 2_000, maxLookups: 200_000, maxEntries: 100_000, maxWalkMs: 20_000 };
/** Words that are looked for; a start script has some hundred. */
const MAX_WORDS = 5_000;
/** Of a script, what is looked through for the commands that it calls. */
const MAX_SCRIPT_BYTES = 64 * 1024;
/** A script that calls a script that calls a script. */
const MAX_DEPTH = 3;
/** Of a directory of which all names are wanted. */
const MAX_LISTED = 1_000;
const READ_BYTES = MIB;

const DEFAULT_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** What container runtimes and libc read before and while a program starts. */
const ALWAYS = ['/etc/passwd', '/etc/group', '/etc/nsswitch.conf', '/etc/ld.so.preload', '/etc/ld.so.cache', '/etc/localtime'];

const ARCHITECTURE = process.arch === 'arm64' ? 'aarch64' : 'x86_64';
const LIBRARY_DIRECTORIES = ['/lib', '/usr/lib', '/usr/local/lib', '/lib64', '/usr/lib64'].flatMap((directory) => [
  `${directory}/${ARCHITECTURE}-linux-gnu`,
  directory,
]);

export interface StartRead {
  /** Files that were read whole, as the image names them. */
  readonly names: readonly string[];
  readonly bytes: number;
  /** Inodes that were looked at. */
  readonly entries: number;
  /** False: there was more than is read at once, and it comes when it is wanted. */
  readonly isComplete: boolean;
}

/** Reads through `tree`. Rejects with system errors of its files (EIO: the registry does not give them). */
export function readStart(tree: ImageTree, process: ImageProcess, limits: Partial<StartLimits> = {}): StartRead {
  return new StartReader(tree, process, { ...LIMITS, ...limits }).run();
}

class StartReader {
  private readonly tree: ImageTree;
  private readonly process: ImageProcess;
  private readonly limits: StartLimits;
  private readonly directories: readonly string[];
  private readonly workingDir: string;
  private readonly seen = new Set<string>();
  private readonly words = new Set<string>();
  private libraryDirectories: readonly string[] | undefined;
  private readonly buffer = Buffer.allocUnsafe(READ_BYTES);
  private bytes = 0;
  private lookups = 0;
  private isCut = false;

  constructor(tree: ImageTree, process: ImageProcess, limits: StartLimits) {
    this.tree = tree;
    this.process = process;
    this.limits = limits;
    this.workingDir = path.posix.join('/', process.workingDir ?? '');
    const search = this.variable('PATH') ?? DEFAULT_PATH;
    this.directories = search.split(':').filter((directory) => directory.startsWith('/'));
  }

  run(): StartRead {
    for (const name of ALWAYS) this.read(name, MAX_DEPTH);
    this.tree.list(this.workingDir, MAX_LISTED);
    for (const argument of [...(this.process.entrypoint ?? []), ...(this.process.cmd ?? [])]) this.command(argument, 0);
    const entries = this.walk();
    return { names: [...this.seen], bytes: this.bytes, entries, isComplete: !this.isCut };
  }

  private find(name: string): FoundFile | undefined {
    this.lookups += 1;
    if (this.lookups <= this.limits.maxLookups) return this.tree.find(name);
    this.isCut = true;
    return undefined;
  }

  private variable(name: string): string | undefined {
    return this.process.env?.find((entry) => entry.startsWith(`${name}=`))?.slice(name.length + 1);
  }

  /** An argument may be a program, a file, or a line for a shell with both. */
  private command(text: string, depth: number): void {
    for (const word of new Set([text, ...text.split(/[\s;|&()<>"'`$={},]+/)])) {
      if (word === '' || word.length > 4096 || this.words.has(word)) continue;
      if (this.words.size >= MAX_WORDS) {
        this.isCut = true;
        return;
      }
      this.words.add(word);
      this.read(path.posix.resolve(this.workingDir, word), depth);
      if (word.includes('/')) continue;
      const directory = this.directories.find((one) => this.find(`${one}/${word}`)?.stats.isFile() === true);
      if (directory !== undefined) this.read(`${directory}/${word}`, depth);
    }
  }

  /** Reads a file whole, and what it needs to run. Anything else than a file is passed over. */
  private read(name: string, depth: number): void {
    const found = this.find(name);
    if (found === undefined || !found.stats.isFile() || this.seen.has(found.name)) return;
    if (this.seen.size >= this.limits.maxFiles || this.bytes + found.stats.size > this.limits.maxBytes) {
      this.isCut = true;
      return;
    }
    this.seen.add(found.name);
    const { head, elf } = this.readFile(found);
    if (elf !== undefined) this.libraries(found, elf, depth);
    else if (head.startsWith('#!') && depth < MAX_DEPTH) {
      const end = head.indexOf('\n');
      this.command(head.slice(2, end === -1 ? undefined : end), depth + 1);
      this.command(head, depth + 1);
    }
  }

  private readFile({ path: file, stats }: FoundFile): { head: string; elf: ElfNeeds | undefined } {
    const descriptor = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK);
    try {
      let head = '';
      for (let offset = 0; offset < stats.size; ) {
        const count = fs.readSync(descriptor, this.buffer, 0, this.buffer.length, offset);
        if (count === 0) break;
        if (offset === 0) head = this.buffer.toString('latin1', 0, Math.min(count, MAX_SCRIPT_BYTES));
        offset += count;
        this.bytes += count;
      }
      const readAt = (offset: number, length: number): Buffer => {
        if (!Number.isSafeInteger(offset + length) || offset >= stats.size) return Buffer.alloc(0);
        const bytes = Buffer.alloc(Math.min(length, stats.size - offset));
        return bytes.subarray(0, fs.readSync(descriptor, bytes, 0, bytes.length, offset));
      };
      return { head, elf: readElf(readAt) };
    } finally {
      fs.closeSync(descriptor);
    }
  }

  private libraries({ name }: FoundFile, { interpreter, libraries, searchPath }: ElfNeeds, depth: number): void {
    if (interpreter !== undefined) this.read(interpreter, depth);
    const own = searchPath.map((directory) => directory.replaceAll(/\$ORIGIN|\$\{ORIGIN\}/g, path.posix.dirname(name)));
    this.libraryDirectories ??= [...(this.variable('LD_LIBRARY_PATH')?.split(':') ?? []), ...this.configured(), ...LIBRARY_DIRECTORIES];
    const directories = [...own, ...this.libraryDirectories].filter((directory) => directory.startsWith('/'));
    for (const library of libraries) {
      const places = library.includes('/') ? [library] : directories.map((directory) => `${directory}/${library}`);
      const place = places.find((one) => this.find(one)?.stats.isFile() === true);
      if (place !== undefined) this.read(place, depth);
    }
  }

  /** Directories of ld.so.conf and of what it includes, or of musl's list. */
  private configured(): string[] {
    const files = [
      `/etc/ld-musl-${ARCHITECTURE}.path`,
      '/etc/ld.so.conf',
      ...this.tree.list('/etc/ld.so.conf.d', MAX_LISTED).map((name) => `/etc/ld.so.conf.d/${name}`),
    ];
    return files.flatMap((name) => {
      const found = this.find(name);
      if (found === undefined || !found.stats.isFile() || found.stats.size > MAX_SCRIPT_BYTES) return [];
      return this.readFile(found)
        .head.split(/[\s:,]+/)
        .filter((directory) => directory.startsWith('/'));
    });
  }

  /** Looks at every inode. Links are not followed: what they name is found where it is. */
  private walk(): number {
    const waiting = ['/'];
    const { maxEntries, maxWalkMs } = this.limits;
    const endMs = performance.now() + maxWalkMs;
    let entries = 0;
    for (let directory = waiting.pop(); directory !== undefined; directory = waiting.pop()) {
      for (const name of this.tree.list(directory, maxEntries - entries + 1)) {
        if (entries >= maxEntries || performance.now() >= endMs) {
          this.isCut = true;
          return entries;
        }
        entries += 1;
        const child = path.posix.join(directory, name);
        if (this.tree.at(child)?.stats.isDirectory() === true) waiting.push(child);
      }
    }
    return entries;
  }
}
