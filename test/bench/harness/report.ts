/**
 * What a bench case gives back, and where it goes: a table on the terminal and the case's section in RESULTS.md. Ours.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

export interface Table {
  title: string;
  columns: string[];
  rows: (string | number)[][];
}

export interface CaseResult {
  tables: Table[];
  /** Sentences under the tables: what was compared with what. */
  notes: string[];
  /** Raw figures, kept as JSON. */
  samples: unknown;
}

const SUMMARY = path.join(import.meta.dirname, '..', 'RESULTS.md');

/** The machine in one line. */
export function machine(): string {
  const gib = Math.round(os.totalmem() / 1024 ** 3);
  return `${os.cpus().length} × ${os.cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${gib} GiB, Linux ${os.release()}, Node ${process.version}`;
}

function markdown(table: Table): string {
  const line = (cells: readonly (string | number)[]): string => `| ${cells.join(' | ')} |`;
  const rule = table.columns.map((_, i) => (i === 0 ? '---' : '---:'));
  return [`**${table.title}**`, '', line(table.columns), line(rule), ...table.rows.map(line)].join('\n');
}

/** Prints a table with aligned columns. */
export function printTable(table: Table): void {
  const rows = [table.columns, ...table.rows].map((row) => row.map(String));
  const widths = table.columns.map((_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)));
  const text = rows.map((row) => row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  '));
  process.stdout.write(`\n${table.title}\n${text.map((line) => `  ${line}`).join('\n')}\n`);
}

/** Replaces the case's section of RESULTS.md, or adds it at the end. */
export function record(name: string, title: string, result: CaseResult, loadBefore: number): void {
  const begin = `<!-- begin ${name} -->`;
  const end = `<!-- end ${name} -->`;
  const when = new Date().toISOString().slice(0, 16).replace('T', ' ');
  const head = `## ${title}\n\n${when} UTC; ${machine()}; load average before: ${loadBefore.toFixed(1)}`;
  const section = [begin, head, ...result.tables.map(markdown), ...result.notes.map((note) => `- ${note}`), end].join('\n\n');
  const before = fs.existsSync(SUMMARY) ? fs.readFileSync(SUMMARY, 'utf8') : '# Benchmark results\n';
  const [from, to] = [before.indexOf(begin), before.indexOf(end)];
  const after =
    from < 0 || to < from ? `${before.trimEnd()}\n\n${section}\n` : before.slice(0, from) + section + before.slice(to + end.length);
  fs.writeFileSync(SUMMARY, after);
}
