/** The cases of benchmarks.md as commands: each prints its tables and keeps its samples; `all` runs them and rewrites RESULTS.md. Ours. */
import os from 'node:os';
import { type Command, Option } from 'commander';
import { bytes } from './cases/bytes.ts';
import { cached } from './cases/cached.ts';
import { compression } from './cases/compression.ts';
import { control } from './cases/control.ts';
import { convert } from './cases/convert.ts';
import { device } from './cases/device.ts';
import { footprint } from './cases/footprint.ts';
import { misses } from './cases/misses.ts';
import { start } from './cases/start.ts';
import type { BenchCase } from './harness/bench-case.ts';
import { printTable, record } from './harness/report.ts';
import { saveResult } from './results.ts';

const CASES: readonly BenchCase[] = [start, cached, device, misses, bytes, control, footprint, convert, compression];

async function runCase(bench: BenchCase, options: { rounds?: string; record?: boolean; mode?: string }): Promise<void> {
  const rounds = options.rounds === undefined ? bench.rounds : Number(options.rounds);
  if (!Number.isInteger(rounds) || rounds < 1 || rounds > 100)
    throw new Error(`--rounds ${options.rounds}: not a whole number from 1 to 100`);
  const loadBefore = os.loadavg()[0] ?? 0;
  process.stdout.write(`\n${bench.title}, ${rounds} rounds; load average ${loadBefore.toFixed(1)}\n`);
  const result = await bench.run(rounds, options.mode);
  for (const table of result.tables) printTable(table);
  for (const note of result.notes) process.stdout.write(`  - ${note}\n`);
  process.stdout.write(`  samples: ${await saveResult(bench.name, { loadBefore, ...result })}\n`);
  // A part must not replace the whole.
  if (options.record === true && options.mode === undefined) record(bench.name, bench.title, result, loadBefore);
}

/** Adds a command for each case, and `all`. */
export function addCases(program: Command): void {
  for (const bench of CASES) {
    const command = program
      .command(bench.name)
      .description(bench.title)
      .option('--rounds <n>', `rounds, medians are taken of them (default ${bench.rounds})`)
      .option('--record', "rewrite the case's section of RESULTS.md")
      .action((options: { rounds?: string; record?: boolean; mode?: string }) => runCase(bench, options));
    if (bench.modes !== undefined) command.addOption(new Option('--mode <mode>', 'this part alone').choices(bench.modes));
  }
  program
    .command('all')
    .description('all cases but kill, one after the other; rewrites RESULTS.md')
    .option('--rounds <n>', 'rounds of each case (default: its own)')
    .action(async (options: { rounds?: string }) => {
      for (const bench of CASES) await runCase(bench, { ...options, record: true });
    });
}
