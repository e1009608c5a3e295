import { availableParallelism } from 'node:os';
import { defineConfig } from 'vitest/config';

/**
 * One project a kind of test. Kinds that touch the kernel or start daemons run one file at a time, so that two cores are enough and
 * a failing test's clean-up cannot disturb its neighbour.
 */
const quick = (name: string) => ({
  test: { name, include: [`test/${name}/**/*.test.ts`], testTimeout: 180_000, hookTimeout: 180_000, pool: 'forks' as const },
});
const heavy = (name: string) => ({
  test: {
    name,
    include: [`test/${name}/**/*.test.ts`],
    testTimeout: 600_000,
    hookTimeout: 600_000,
    pool: 'forks' as const,
    fileParallelism: false,
    // A machine that runs something else for a moment fails deadlines of daemons that are not ours; what is broken fails twice.
    retry: 1,
  },
});

export default defineConfig({
  test: {
    // Two at least: quick tests wait as often as they compute.
    maxWorkers: Math.max(2, availableParallelism() - 1),
    projects: [
      quick('unit'),
      quick('golden'),
      quick('property'),
      quick('regression'),
      heavy('kernel'),
      heavy('conformance'),
      heavy('fault'),
      heavy('e2e'),
    ],
  },
});
