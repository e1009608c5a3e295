/**
 * An image's file system as directories that overlayfs would stack, top first: finds files by the names that a program in it would use.
 * Symbolic links are followed inside the image, never by the kernel, so nothing of the host is reached. Source: the kernel's
 * overlayfs.rst (whiteouts). A directory that hides those below it (opaque) is not looked for: too much is found then, never too little.
 */
import fs from 'node:fs';
import path from 'node:path';
import { errnoOf } from '../../../base/errors.ts';

/** As the kernel's. */
const MAX_LINKS = 40;
const MAX_COMPONENTS = 1024;
/** Directories whose places are remembered. */
const MAX_REMEMBERED = 10_000;

export interface FoundFile {
  /** In the image, without links. */
  readonly name: string;
  /** On the host, without links below its root. */
  readonly path: string;
  readonly stats: fs.Stats;
}

export class ImageTree {
  private readonly roots: readonly string[];
  /** By directory of the image, without links: its places on the host, top first. */
  private readonly places = new Map<string, readonly string[]>();

  constructor(roots: readonly string[]) {
    this.roots = roots;
  }

  /** What an absolute name is in the image, links followed; undefined: nothing. Errors: of the disk. */
  find(name: string): FoundFile | undefined {
    // No file has such a name, and Node refuses to look for it.
    if (name.includes('\0')) return undefined;
    const rest = split(name);
    let at: string[] = [];
    let links = 0;
    while (rest.length > 0) {
      const part = rest.shift()!;
      const next = part === '..' ? at.slice(0, -1) : [...at, part];
      const found = this.lookUp(next);
      if (found === undefined) return undefined;
      if (!found.stats.isSymbolicLink()) {
        at = next;
        continue;
      }
      const target = fs.readlinkSync(found.path);
      links += 1;
      if (links > MAX_LINKS || rest.length > MAX_COMPONENTS) return undefined;
      if (target.startsWith('/')) at = [];
      rest.unshift(...split(target));
    }
    return this.lookUp(at);
  }

  /** Names in a directory of the image, so many at most; none when it is none. */
  list(name: string, atMost: number): string[] {
    const found = this.find(name);
    if (found === undefined || !found.stats.isDirectory()) return [];
    const names = new Set<string>();
    for (const place of this.placesOf(split(found.name))) {
      using directory = fs.opendirSync(place);
      for (let entry = directory.readSync(); entry !== null && names.size < atMost; entry = directory.readSync()) names.add(entry.name);
    }
    return [...names].sort();
  }

  /** What a name without links on its way is itself. */
  at(name: string): FoundFile | undefined {
    return this.lookUp(split(name));
  }

  private lookUp(components: readonly string[]): FoundFile | undefined {
    const name = `/${components.join('/')}`;
    if (components.length === 0) {
      const [top] = this.roots;
      return top === undefined ? undefined : { name, path: top, stats: fs.lstatSync(top) };
    }
    for (const place of this.placesOf(components.slice(0, -1))) {
      const file = path.join(place, components.at(-1)!);
      const stats = lstat(file);
      if (stats !== undefined) return isWhiteout(stats) ? undefined : { name, path: file, stats };
    }
    return undefined;
  }

  private placesOf(components: readonly string[]): readonly string[] {
    if (components.length === 0) return this.roots;
    const name = components.join('/');
    const known = this.places.get(name);
    if (known !== undefined) return known;
    const found: string[] = [];
    for (const place of this.placesOf(components.slice(0, -1))) {
      const file = path.join(place, components.at(-1)!);
      const stats = lstat(file);
      if (stats === undefined) continue;
      if (!stats.isDirectory()) break;
      found.push(file);
    }
    if (this.places.size >= MAX_REMEMBERED) this.places.clear();
    this.places.set(name, found);
    return found;
  }
}

function split(name: string): string[] {
  return name.split('/').filter((part) => part !== '' && part !== '.');
}

function isWhiteout(stats: fs.Stats): boolean {
  return stats.isCharacterDevice() && stats.rdev === 0;
}

function lstat(file: string): fs.Stats | undefined {
  try {
    return fs.lstatSync(file);
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ENAMETOOLONG', 'ELOOP'].includes(errnoOf(error) ?? '')) return undefined;
    throw error;
  }
}
