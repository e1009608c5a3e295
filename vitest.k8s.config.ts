import { defineConfig } from 'vitest/config';

/**
 * Tests with a real kubelet and API server: `npm run test:k8s`. Apart from vitest.config.ts, since Kubernetes takes minutes to build the
 * first time on a machine.
 */
export default defineConfig({
  test: {
    name: 'k8s',
    include: ['test/k8s/**/*.test.ts'],
    testTimeout: 300_000,
    hookTimeout: 300_000,
    pool: 'forks',
    fileParallelism: false,
  },
});
