/** Errors reach containerd with the code and the ending that its errdefs package reads. */
import { expect, test } from 'vitest';
import { AppError, type ErrorCode } from '../../../../plugin/base/errors.ts';
import { type Logger, silentLogger } from '../../../../plugin/base/log.ts';
import { Snapshots } from '../../../../plugin/snapshotter/gen/containerd/services/snapshots/v1/snapshots_pb.ts';
import { serviceDefinitionOf, statusOf } from '../../../../plugin/snapshotter/grpc-adapter.ts';
import { snapshotsService } from '../../../../plugin/snapshotter/grpc-service.ts';
import type { Snapshotter } from '../../../../plugin/snapshotter/snapshotter.ts';

test.each<[ErrorCode, number, string]>([
  ['NotFound', 5, ': not found'],
  ['AlreadyExists', 6, ': already exists'],
  ['FailedPrecondition', 9, ': failed precondition'],
  ['InvalidArgument', 3, ': invalid argument'],
  ['Unavailable', 14, ': unavailable'],
  ['Unimplemented', 12, ': not implemented'],
  ['DeadlineExceeded', 4, ': context deadline exceeded'],
  ['Canceled', 1, ': context canceled'],
])('%s is status %i and ends "%s"', (code, grpc, ending) => {
  const status = statusOf(new AppError(code, { op: 'stat', subject: 'k', what: 'w' }));
  expect(status).toMatchObject({ code: grpc, details: `stat k: w${ending}` });
});

test('the text of an unexpected error stays inside, and long texts are cut', () => {
  expect(statusOf(new Error('secret path')).details).not.toContain('secret');
  expect(statusOf(new AppError('Internal', { op: 'o', subject: 'x'.repeat(100_000), what: 'w' })).details.length).toBeLessThan(5000);
});

test('all ten calls are served under the names that containerd dials', () => {
  const paths = Object.values(serviceDefinitionOf(Snapshots)).map(({ path }) =>
    path.replace('/containerd.services.snapshots.v1.Snapshots/', ''),
  );
  expect(paths.sort()).toEqual(['Cleanup', 'Commit', 'List', 'Mounts', 'Prepare', 'Remove', 'Stat', 'Update', 'Usage', 'View']);
});

test('a call that fails again and again is one line a minute, each method by itself', async () => {
  const lines: string[] = [];
  const logger = Object.create(silentLogger, { error: { value: (_facts: object, message: string) => lines.push(message) } }) as Logger;
  const fail = async (): Promise<never> => {
    throw new AppError('Internal', { op: 'measure', subject: 'a', what: 'broken' });
  };
  const service = snapshotsService({ usageOf: fail, mounts: fail } as unknown as Snapshotter, logger);
  const answers: unknown[] = [];
  const call = { request: { key: 'a' }, cancelled: false, on: () => undefined };
  for (let i = 0; i < 50; i += 1) {
    for (const method of ['usage', 'mounts'] as const) {
      await (service[method] as (call: unknown, callback: (status: unknown) => void) => Promise<void>)(call, (status) =>
        answers.push(status),
      );
    }
  }
  expect(answers).toHaveLength(100);
  expect(lines).toEqual(['Usage failed', 'Mounts failed']);
});
