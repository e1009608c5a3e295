/**
 * Survival, measured: kills of blockd, the sidecar and the keeper at random moments, under readers that verify every byte over EROFS on
 * FUSE and ext4 on a loop device, and under containers that start over a slow link. Goal: 1,000 kills, 0 errors, 0 wrong bytes, every stall
 * below 2 s.
 */
import os from 'node:os';
import { setTimeout as delay } from 'node:timers/promises';
import type { Command } from 'commander';
import type { SidecarProcess } from '../support/sidecar.ts';
import { SurvivalLoad } from '../support/survival-load.ts';
import { judge, type KillRound, killRound, randomSource, spread } from '../support/survival-run.ts';
import { CacheDropper, READ_MODES } from '../support/verifying-reader.ts';
import { printTable, record, type Table } from './harness/report.ts';
import { saveResult } from './results.ts';

const PROCESSES: readonly SidecarProcess[] = ['blockd', 'sidecar', 'keeper'];

/** The goal of benchmarks.md. */
const STALL_LIMIT_MS = 2000;

const MAX_GAP_MS = 300;

const TITLE = 'Survival: kill -9 of each process at random moments under verifying readers';

interface KillOptions {
  count: string;
  seed: string;
  record?: boolean;
}

async function run(options: KillOptions): Promise<boolean> {
  const count = Number(options.count);
  const seed = Number(options.seed);
  const random = randomSource(seed);
  const loadBefore = os.loadavg()[0] ?? 0;
  const rounds: KillRound[] = [];
  await using load = await SurvivalLoad.start();
  {
    await using _dropper = new CacheDropper(5000);
    for (let n = 0; n < count; n += 1) {
      await delay(random(MAX_GAP_MS));
      rounds.push(await killRound(load.host.sidecar, [PROCESSES[random(PROCESSES.length)]!], load.readers));
      if (n % 3 === 2) await load.waitControlPlane();
      if (n % 50 === 49) console.log(`${n + 1} of ${count} kills`);
    }
    await load.waitControlPlane();
  }
  const summaries = await load.stop();
  const seen = judge(summaries);
  const ms = (value: number): number => Math.round(value);
  const rows: (string | number)[][] = [];
  for (const process of PROCESSES) {
    const own = rounds.filter((round) => round.processes[0] === process);
    const back = spread(own.map((round) => round.recoveryMs));
    for (const device of ['erofs', 'ext4']) {
      for (const mode of READ_MODES) {
        const stalls = own.flatMap((round) => round.stalls.filter((s) => s.device === device && s.mode === mode).map((s) => s.stallMs));
        const { median, p99, longest } = spread(stalls);
        rows.push([process, own.length, device, mode, ms(median), ms(p99), ms(longest), ms(back.median), ms(back.longest)]);
      }
    }
  }
  const longest = Math.max(0, ...rounds.flatMap((round) => round.stalls.map((s) => s.stallMs)));
  const found =
    `${count} kills (seed ${seed}): ${seen.errors.length} errors, ${seen.wrong.length} wrong, longest stall ${ms(longest)} ms; ` +
    `${seen.files} files, ${ms(seen.bytes / 1e6)} MB checked; ${load.churn?.containers} containers came and went`;
  const stalls: Table = {
    title: 'Stalls of readers, and how soon each process was back',
    columns: ['process', 'kills', 'device', 'mode', 'stall median ms', 'p99 ms', 'longest ms', 'back median ms', 'back longest ms'],
    rows,
  };
  printTable(stalls);
  console.log(`\n${found}`);
  for (const line of [...seen.errors, ...seen.wrong].slice(0, 20)) console.log(line);
  console.log(`samples: ${await saveResult('kill', { count, seed, rounds, summaries })}`);
  if (options.record === true) record('kill', TITLE, { tables: [stalls], notes: [found], samples: undefined }, loadBefore);
  return seen.errors.length === 0 && seen.wrong.length === 0 && longest < STALL_LIMIT_MS;
}

/** Adds `kill`. Exits with 1 when a read failed, a byte was wrong or a stall was too long. */
export function addKillCase(program: Command): void {
  program
    .command('kill')
    .description(TITLE)
    .option('--count <n>', 'kills in all', '1000')
    .option('--seed <n>', 'order and moments of the kills', '1')
    .option('--record', "rewrite the case's section of RESULTS.md")
    .action(async (options: KillOptions) => {
      if (!(await run(options))) process.exitCode = 1;
    });
}
