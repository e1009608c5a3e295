/**
 * Readers that prove, while processes are killed around them, that every byte of a mounted tree stays right: each is a process of the Go
 * program in go/verifyread that reads in one way and hashes what it gets. Ours.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { goBinary } from './go-build.ts';
import { processInfo } from './process.ts';
import { Scratch } from './scratch.ts';
import { listTree, type TreeEntry } from './tree-compare.ts';
import { waitFor } from './wait.ts';

export type ReadMode = 'read' | 'mmap' | 'direct' | 'exec';

export const READ_MODES: readonly ReadMode[] = ['read', 'mmap', 'direct', 'exec'];

export interface KnownFile {
  /** Relative to the root. */
  path: string;
  size: number;
  sha256: string;
}

export interface VerifyingReaderOptions {
  root: string;
  mode: ReadMode;
  /** For all modes but exec. */
  files?: readonly KnownFile[];
  /** For mode exec: a program of the tree, run with the tree as its root, and all that it prints. */
  exec?: { argv: readonly [string, ...string[]]; stdout: string };
  /** Order of files and chunks; print it when a run fails. */
  seed: number;
  /** Milliseconds between two files; default none. */
  pauseMs?: number;
}

export interface ReaderSummary {
  mode: ReadMode;
  passes: number;
  files: number;
  bytes: number;
  errorCount: number;
  /** The first twenty. */
  errors: string[];
  wrongCount: number;
  wrong: string[];
  /** Longest single open, 64 KiB read, 64 KiB of page faults, or (exec) run of the program. */
  longestStallMs: number;
  longestStallAt: string;
  elapsedMs: number;
}

/** Regular files of a listing that a reader can check. */
export function knownFiles(entries: readonly TreeEntry[]): KnownFile[] {
  return entries.flatMap((e) =>
    e.type === 'file' && e.path !== undefined && e.sha256 !== undefined ? [{ path: e.path, size: e.size ?? 0, sha256: e.sha256 }] : [],
  );
}

/** Regular files of a tree that is known to be right, such as the directory an image was built from. */
export async function knownFilesOf(root: string): Promise<KnownFile[]> {
  return knownFiles(await listTree(root));
}

/** The longest step since the last mark. */
export interface Stall {
  stallMs: number;
  at: string;
}

/** A mark is answered at once, whatever the reader waits for. */
const MARK_LIMIT_MS = 60_000;

export class VerifyingReader implements AsyncDisposable {
  readonly mode: ReadMode;
  readonly pid: number;
  private readonly scratch: Scratch;
  private readonly child: ChildProcessWithoutNullStreams;
  private readonly closed: Promise<void>;
  private readonly marks: ((stall: Stall) => void)[] = [];
  private passCount = 0;
  private summary: ReaderSummary | undefined;
  private complaints = '';

  private constructor(scratch: Scratch, child: ChildProcessWithoutNullStreams, mode: ReadMode) {
    this.scratch = scratch;
    this.child = child;
    this.mode = mode;
    this.pid = child.pid ?? -1;
    createInterface({ input: child.stdout }).on('line', (line) => {
      const message = JSON.parse(line) as { pass?: number; mark?: Stall; summary?: ReaderSummary };
      if (message.mark !== undefined) this.marks.shift()?.(message.mark);
      this.passCount = message.pass ?? this.passCount;
      this.summary = message.summary ?? this.summary;
    });
    child.stderr.on('data', (chunk: Buffer) => {
      this.complaints = (this.complaints + chunk.toString()).slice(-4000);
    });
    this.closed = new Promise((resolve, reject) => {
      child.once('close', () => resolve());
      child.once('error', reject);
    });
    // A reader that has died shows in its missing summary; a write to it is not a second failure.
    child.stdin.on('error', (error) => {
      this.complaints += error.message;
    });
  }

  static async start(options: VerifyingReaderOptions): Promise<VerifyingReader> {
    const binary = await goBinary('verifyread');
    const scratch = await Scratch.create('reader');
    const plan = scratch.join('plan.json');
    const { root, mode, seed, pauseMs = 0, files = [], exec = { argv: [], stdout: '' } } = options;
    await writeFile(plan, JSON.stringify({ root, mode, seed, pauseMs, files, exec }));
    return new VerifyingReader(scratch, spawn(binary, ['-plan', plan], { stdio: 'pipe' }), mode);
  }

  /** Passes over all files so far. */
  get passes(): number {
    return this.passCount;
  }

  /** Waits until `count` more passes are done. */
  async waitPasses(count: number, timeoutMs = 60_000): Promise<void> {
    const goal = this.passCount + count;
    await waitFor(
      () => {
        if (processInfo(this.pid) === undefined) throw new Error(`the ${this.mode} reader has ended: ${this.complaints}`);
        return this.passCount >= goal;
      },
      { what: `${count} passes of the ${this.mode} reader`, timeoutMs, details: () => this.complaints },
    );
  }

  /** The longest step since the last call (or the start), the one under way included. */
  mark(): Promise<Stall> {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        reject(new Error(`the ${this.mode} reader does not answer: ${this.complaints}`));
      }, MARK_LIMIT_MS);
      this.marks.push((stall) => {
        clearTimeout(timer);
        resolve(stall);
      });
      this.child.stdin.write('mark\n');
    });
  }

  /** Ends the reading and tells what it saw. A read that does not come back within 30 s counts as an error. */
  async stop(): Promise<ReaderSummary> {
    if (this.child.exitCode === null && this.child.signalCode === null) this.child.stdin.end();
    const timer = setTimeout(() => this.child.kill('SIGKILL'), 40_000);
    await this.closed;
    clearTimeout(timer);
    if (this.summary === undefined) {
      throw new Error(
        `the ${this.mode} reader ended (${this.child.signalCode ?? this.child.exitCode}) without a summary: ${this.complaints}`,
      );
    }
    return this.summary;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill('SIGKILL');
    await this.closed;
    await this.scratch[Symbol.asyncDispose]();
  }
}

/** Writes what is dirty and forgets every clean page, name and inode of the machine, so that the next reads are cold. */
export async function dropCaches(): Promise<void> {
  await writeFile('/proc/sys/vm/drop_caches', '3\n');
}

/** Drops caches every `everyMs` until disposed. */
export class CacheDropper implements AsyncDisposable {
  private readonly timer: NodeJS.Timeout;
  private under: Promise<void> = Promise.resolve();
  private failure: unknown;

  constructor(everyMs: number) {
    this.timer = setInterval(() => {
      this.under = dropCaches().catch((error: unknown) => {
        this.failure = error;
      });
    }, everyMs);
  }

  /** Fails when a drop failed. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.timer);
    await this.under;
    if (this.failure !== undefined) throw this.failure;
  }
}
