/**
 * Kills of the product's processes under readers that verify every byte, and what the readers felt of each. Used by the tests and by
 * `npm run bench -- kill`. Ours.
 */
import { join } from 'node:path';
import { BlockdClient } from '../../plugin/blockd/client.ts';
import type { PushedImage } from './oci-image.ts';
import type { Sidecar, SidecarProcess } from './sidecar.ts';
import type { SurvivalHost } from './survival-host.ts';
import { fileSystemOf, imageOfFileSystem, type SurvivalTree } from './survival-image.ts';
import { READ_MODES, type ReaderSummary, type ReadMode, type VerifyingReader } from './verifying-reader.ts';
import { waitFor } from './wait.ts';

export interface NamedReader {
  /** `erofs` or `ext4`. */
  device: string;
  reader: VerifyingReader;
}

/** What one kill did to one reader. */
export interface StallSample {
  process: SidecarProcess;
  device: string;
  mode: ReadMode;
  stallMs: number;
  at: string;
}

export interface KillRound {
  processes: readonly SidecarProcess[];
  /** From the kill until blockd's devices were served again and all three processes ran. */
  recoveryMs: number;
  stalls: StallSample[];
}

/** A small repeatable generator (mulberry32); print the seed with a failure. */
export function randomSource(seed: number): (below: number) => number {
  let state = seed | 0;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

/** blockd's process as it says itself; undefined while it does not answer. */
async function servingPid(sidecar: Sidecar): Promise<number | undefined> {
  const client = new BlockdClient(join(sidecar.run, 'blockd.sock'));
  try {
    return (await client.stats(AbortSignal.timeout(5000))).pid;
  } catch {
    // Away, which is what this asks.
    return undefined;
  } finally {
    await client.close();
  }
}

/** Waits until blockd answers and serves every device, in another process than `notPid`. */
export async function waitServing(sidecar: Sidecar, notPid?: number, timeoutMs = 60_000): Promise<number> {
  return waitFor(
    async () => {
      const pid = await servingPid(sidecar);
      return pid !== notPid ? pid : undefined;
    },
    { what: 'blockd to serve again', timeoutMs, everyMs: 10, details: () => sidecar.logTail() },
  );
}

/** Kills the processes at once, waits until all is back, and asks the readers how long their longest step took. */
export async function killRound(
  sidecar: Sidecar,
  processes: readonly SidecarProcess[],
  readers: readonly NamedReader[],
  strike: (name: SidecarProcess) => Promise<unknown> = (name) => sidecar.kill(name),
): Promise<KillRound> {
  await Promise.all(readers.map(({ reader }) => reader.mark()));
  const touchesReads = processes.some((name) => name !== 'sidecar');
  const before = { blockd: await sidecar.waitProcess('blockd'), sidecar: await sidecar.waitProcess('sidecar') };
  const startedMs = performance.now();
  await Promise.all(processes.map((name) => strike(name)));
  if (touchesReads) await waitServing(sidecar, before.blockd);
  else await sidecar.waitProcess('sidecar', before.sidecar);
  const recoveryMs = performance.now() - startedMs;
  // A step that began before the process was back has ended when the next pass has begun; the mark counts the one under way as well.
  const stalls = await Promise.all(
    readers.map(async ({ device, reader }) => {
      const { stallMs, at } = await reader.mark();
      return { process: processes[0]!, device, mode: reader.mode, stallMs, at };
    }),
  );
  return { processes, recoveryMs, stalls };
}

/**
 * Keeps attaching, mounting, reading, unmounting and removing images that nobody has read before, so that whatever is killed has misses in
 * flight and devices on the way. Runs until `stop`.
 */
export class Churn {
  /** Containers that ran and ended. */
  containers = 0;
  readonly summaries: ReaderSummary[] = [];
  private readonly host: SurvivalHost;
  private readonly trees: readonly { tree: SurvivalTree; bytes: Buffer; kind: string }[];
  private readonly ended: Promise<void>;
  private isWanted = true;
  private copies = 0;

  private constructor(host: SurvivalHost, trees: readonly { tree: SurvivalTree; bytes: Buffer; kind: string }[]) {
    this.host = host;
    this.trees = trees;
    this.ended = this.run();
    // Awaited in stop, where a failure shows.
    this.ended.catch(() => {
      this.isWanted = false;
    });
  }

  /** `tree` should be small: every copy of it goes through the slow link. */
  static async start(host: SurvivalHost, tree: SurvivalTree): Promise<Churn> {
    const trees: { tree: SurvivalTree; bytes: Buffer; kind: string }[] = [];
    for (const kind of ['erofs', 'ext4'] as const)
      trees.push({ tree, kind, bytes: await fileSystemOf(tree, kind, host.scratch.join('churn')) });
    return new Churn(host, trees);
  }

  /** Ends after the container under way; fails if one failed. */
  async stop(): Promise<void> {
    this.isWanted = false;
    await this.ended;
  }

  private async run(): Promise<void> {
    while (this.isWanted) {
      const { tree, bytes, kind } = this.trees[this.copies % this.trees.length]!;
      const image = await this.fresh(bytes, kind);
      const modes = READ_MODES.filter((mode) => mode !== 'direct' || kind === 'ext4');
      const mode = modes[Math.floor(this.copies / 2) % modes.length]!;
      const root = await this.host.startContainer(image);
      const reader = await this.host.reader(root, mode, tree, this.copies);
      try {
        await reader.waitPasses(1, 120_000);
        this.summaries.push(await reader.stop());
      } finally {
        await reader[Symbol.asyncDispose]();
      }
      await this.host.removeContainer(root);
      this.containers += 1;
    }
  }

  private async fresh(bytes: Buffer, kind: string): Promise<PushedImage> {
    this.copies += 1;
    return this.host.push(`churn-${kind}-${this.copies}`, await imageOfFileSystem(bytes, this.host.scratch.join('churn'), this.copies));
  }
}

/** What all readers saw together. */
export function judge(summaries: readonly ReaderSummary[]): { files: number; bytes: number; errors: string[]; wrong: string[] } {
  return {
    files: summaries.reduce((sum, s) => sum + s.files, 0),
    bytes: summaries.reduce((sum, s) => sum + s.bytes, 0),
    errors: summaries.flatMap((s) => s.errors.map((error) => `${s.mode}: ${error}`)),
    wrong: summaries.flatMap((s) => s.wrong.map((wrong) => `${s.mode}: ${wrong}`)),
  };
}

/** Median, 99th percentile and longest of a list. */
export function spread(values: readonly number[]): { median: number; p99: number; longest: number } {
  const sorted = [...values].sort((a, b) => a - b);
  const at = (share: number): number => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
  return { median: at(0.5), p99: at(0.99), longest: sorted.at(-1) ?? 0 };
}
