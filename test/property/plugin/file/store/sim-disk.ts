/**
 * A disk that loses power. It passes the store's calls on to a real directory (so that descriptors work) and remembers beside it what
 * would have reached the platter: per file the sectors synced and the writes since, per directory the entries synced and the changes
 * since. At a crash any subset of what was not synced survives, sector by sector and name by name, and a new directory is made of it.
 */
import fs from 'node:fs';
import path from 'node:path';
import { type StoreFs, systemStoreFs } from '../../../../../plugin/file/store/store-fs.ts';

const SECTOR = 512;

type Change = { kind: 'size'; sizeBytes: number } | { kind: 'sector'; index: number; bytes: Uint8Array };

interface SimFile {
  kind: 'file';
  sizeBytes: number;
  sectors: Map<number, Uint8Array>;
  pending: Change[];
}

interface SimDir {
  kind: 'dir';
  entries: Map<string, SimNode>;
  pending: { name: string; node: SimNode | undefined }[];
}

type SimNode = SimFile | SimDir;

const newDir = (): SimDir => ({ kind: 'dir', entries: new Map(), pending: [] });
const newFile = (): SimFile => ({ kind: 'file', sizeBytes: 0, sectors: new Map(), pending: [] });

/** Random numbers in [0, 1) that repeat for a seed (mulberry32). */
export function randomOf(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4_294_967_296;
  };
}

export class SimDisk {
  readonly rootDir: string;
  /** Resolves when the disk dies. */
  readonly died: Promise<void>;
  private readonly root: SimDir;
  private readonly openFiles = new Map<number, SimFile>();
  private callsLeft = Number.POSITIVE_INFINITY;
  private die: () => void = () => {};
  private isDead = false;
  private readonly underWay = new Set<Promise<unknown>>();

  constructor(rootDir: string, root: SimDir = newDir()) {
    fs.mkdirSync(rootDir, { recursive: true });
    this.rootDir = rootDir;
    this.root = root;
    this.died = new Promise((resolve) => {
      this.die = resolve;
    });
  }

  /** The disk dies during the call after the next `calls` ones; whether that call still has its effect is left to chance. */
  dieAfter(calls: number): void {
    this.callsLeft = calls;
  }

  /** What the store sees. After death its calls never return. */
  readonly fs: StoreFs = {
    mkdir: (dir) =>
      this.change(
        () => systemStoreFs.mkdir(dir),
        () => this.setEntry(dir, newDir()),
      ),
    readdir: (dir) => this.look(() => systemStoreFs.readdir(dir)),
    lstat: (file) => this.look(() => systemStoreFs.lstat(file)),
    fstat: (fd) => this.look(() => systemStoreFs.fstat(fd)),
    open: async (file, mode) => {
      let made: SimFile | undefined;
      const fd = await this.change(
        () => systemStoreFs.open(file, mode),
        () => {
          if (mode === 'create') this.setEntry(file, (made = newFile()));
        },
      );
      const node = made ?? this.nodeAt(file);
      if (node.kind === 'file') this.openFiles.set(fd, node);
      return fd;
    },
    close: (fd) =>
      this.look(async () => {
        this.openFiles.delete(fd);
        await systemStoreFs.close(fd);
      }),
    truncate: (fd, sizeBytes) =>
      this.change(
        () => systemStoreFs.truncate(fd, sizeBytes),
        () => this.openFiles.get(fd)!.pending.push({ kind: 'size', sizeBytes }),
      ),
    read: (fd, target, offset) => this.look(() => systemStoreFs.read(fd, target, offset)),
    write: (fd, bytes, offset) =>
      this.change(
        () => systemStoreFs.write(fd, bytes, offset),
        () => this.recordWrite(this.openFiles.get(fd)!, bytes, offset),
      ),
    datasync: (fd) => {
      if (this.isDead) return forever();
      const file = this.openFiles.get(fd)!;
      const covered = file.pending.length;
      return this.change(
        // Really, too: it gives the file its final blocks, which the ledger counts.
        () => systemStoreFs.datasync(fd),
        () => {
          for (const change of file.pending.splice(0, covered)) apply(file, change);
        },
      );
    },
    syncDir: (dir) => {
      if (this.isDead) return forever();
      const node = this.nodeAt(dir) as SimDir;
      const covered = node.pending.length;
      return this.change(
        async () => {},
        () => {
          for (const { name, node: entry } of node.pending.splice(0, covered)) setOrDelete(node.entries, name, entry);
        },
      );
    },
    unlink: (file) =>
      this.change(
        () => systemStoreFs.unlink(file),
        () => this.setEntry(file, undefined),
      ),
    rmdir: (dir) =>
      this.change(
        () => systemStoreFs.rmdir(dir),
        () => this.setEntry(dir, undefined),
      ),
    touch: (file, timeMs) => this.look(() => systemStoreFs.touch(file, timeMs)),
  };

  private look<T>(work: () => Promise<T>): Promise<T> {
    return this.isDead ? forever() : this.track(work());
  }

  private track<T>(real: Promise<T>): Promise<T> {
    this.underWay.add(real);
    return real.finally(() => this.underWay.delete(real));
  }

  /** Does the real thing, then books it. The model lags the real directory never by more than the calls under way. */
  private async change<T>(work: () => Promise<T>, book: () => void): Promise<T> {
    if (this.isDead) return forever();
    if (this.callsLeft <= 0) {
      this.isDead = true;
      this.die();
      return forever();
    }
    this.callsLeft -= 1;
    const result = await this.track(work());
    if (this.isDead) return forever();
    book();
    return result;
  }

  private recordWrite(file: SimFile, bytes: Uint8Array, offset: number): void {
    let at = 0;
    while (at < bytes.length) {
      const index = Math.floor((offset + at) / SECTOR);
      const within = (offset + at) % SECTOR;
      const piece = bytes.subarray(at, at + SECTOR - within);
      // The store writes whole sectors but for the last one of a file.
      if (within !== 0) throw new Error('a write begins inside a sector');
      const sector = new Uint8Array(SECTOR);
      sector.set(piece);
      file.pending.push({ kind: 'sector', index, bytes: sector });
      at += piece.length;
    }
  }

  private setEntry(file: string, node: SimNode | undefined): void {
    (this.nodeAt(path.dirname(file)) as SimDir).pending.push({ name: path.basename(file), node });
  }

  /** The node as the running system sees it: synced or not. */
  private nodeAt(file: string): SimNode {
    let node: SimNode = this.root;
    for (const name of path.relative(this.rootDir, file).split('/')) {
      if (name === '') continue;
      const dir = node as SimDir;
      const change = dir.pending.findLast((pending) => pending.name === name);
      const next: SimNode | undefined = change === undefined ? dir.entries.get(name) : change.node;
      if (next === undefined) throw new Error(`the simulated disk has no ${file}`);
      node = next;
    }
    return node;
  }

  /** Ends this disk and gives the one the next start finds. `kill`: the process died, the system did not, so nothing is lost. */
  async restart(kind: 'power' | 'kill', newRootDir: string, random: () => number): Promise<SimDisk> {
    this.isDead = true;
    await Promise.allSettled(this.underWay);
    for (const fd of this.openFiles.keys()) fs.closeSync(fd);
    this.openFiles.clear();
    const keep = kind === 'kill' ? () => true : () => random() < 0.5;
    const root = survivorOf(this.root, keep, random, kind) as SimDir;
    fs.rmSync(this.rootDir, { recursive: true, force: true });
    writeOut(root, newRootDir);
    return new SimDisk(newRootDir, root);
  }
}

function forever<T>(): Promise<T> {
  return new Promise(() => {});
}

function apply(file: SimFile, change: Change): void {
  if (change.kind === 'size') {
    file.sizeBytes = change.sizeBytes;
    for (const index of file.sectors.keys()) if (index * SECTOR >= change.sizeBytes) file.sectors.delete(index);
  } else {
    file.sectors.set(change.index, change.bytes);
    file.sizeBytes = Math.max(file.sizeBytes, change.index * SECTOR + 1);
  }
}

function setOrDelete(entries: Map<string, SimNode>, name: string, node: SimNode | undefined): void {
  if (node === undefined) entries.delete(name);
  else entries.set(name, node);
}

/** What remains of a node: its synced state and the changes since that `keep` lets through; of one name's changes, a first part. */
function survivorOf(node: SimNode, keep: () => boolean, random: () => number, kind: 'power' | 'kill'): SimNode {
  if (node.kind === 'file') {
    const file: SimFile = { ...newFile(), sizeBytes: node.sizeBytes, sectors: new Map(node.sectors) };
    for (const change of node.pending) if (keep()) apply(file, change);
    return file;
  }
  const dir = newDir();
  const entries = new Map(node.entries);
  const names = new Map<string, (SimNode | undefined)[]>();
  for (const { name, node: entry } of node.pending) names.set(name, [...(names.get(name) ?? []), entry]);
  for (const [name, changes] of names) {
    const kept = kind === 'kill' ? changes.length : Math.floor(random() * (changes.length + 1));
    if (kept > 0) setOrDelete(entries, name, changes[kept - 1]);
  }
  for (const [name, entry] of entries) dir.entries.set(name, survivorOf(entry, keep, random, kind));
  return dir;
}

function writeOut(node: SimNode, file: string): void {
  if (node.kind === 'dir') {
    fs.mkdirSync(file, { recursive: true });
    for (const [name, entry] of node.entries) writeOut(entry, `${file}/${name}`);
    return;
  }
  const fd = fs.openSync(file, 'w');
  for (const [index, bytes] of node.sectors) {
    if (index * SECTOR < node.sizeBytes) fs.writeSync(fd, bytes, 0, Math.min(SECTOR, node.sizeBytes - index * SECTOR), index * SECTOR);
  }
  fs.ftruncateSync(fd, node.sizeBytes);
  // The real file system is to have given it its final blocks before anyone counts them.
  fs.fsyncSync(fd);
  fs.closeSync(fd);
}
