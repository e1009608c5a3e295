/** Where the cases leave their raw samples. */
import { mkdir, writeFile } from 'node:fs/promises';
import os from 'node:os';
import { join } from 'node:path';

const RESULTS_DIR = join(import.meta.dirname, 'results');

/** Writes `results/<name>-<time>.json` with what was measured and the machine it was measured on; returns the path. */
export async function saveResult(name: string, content: unknown): Promise<string> {
  await mkdir(RESULTS_DIR, { recursive: true });
  const at = new Date().toISOString();
  const machine = { kernel: os.release(), cpus: os.cpus().map((cpu) => cpu.model), memoryBytes: os.totalmem(), node: process.version };
  const path = join(RESULTS_DIR, `${name}-${at.replaceAll(/[:.]/g, '-')}.json`);
  await writeFile(path, `${JSON.stringify({ name, at, machine, ...(content as object) }, undefined, 1)}\n`);
  return path;
}
