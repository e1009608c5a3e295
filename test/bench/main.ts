/** `npm run bench -- CASE [options]`: each case is a module beside this file that adds its command. Ours. */
import { Command } from 'commander';
import { addCases } from './cases.ts';
import { addKillCase } from './kill.ts';

const program = new Command('bench').description('Measures the product on this machine; raw samples go to test/bench/results/.');
for (const addCase of [addCases, addKillCase]) addCase(program);
await program.parseAsync();
