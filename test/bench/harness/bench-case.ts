/** One case of benchmarks.md, as the command line runs it. */
import type { CaseResult } from './report.ts';

export interface BenchCase {
  name: string;
  /** Heading in RESULTS.md: number and subject. */
  title: string;
  /** Rounds when none are asked for; chosen so that a case takes one to three minutes. */
  rounds: number;
  /** Parts that may be asked for alone, with `--mode`. */
  modes?: readonly string[];
  run(rounds: number, mode?: string): Promise<CaseResult>;
}
