/** Filling an image's blobs: progress never falls, a failure ends the others, and access that was forgotten is said again. */
import { expect, test } from 'vitest';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { silentLogger } from '../../../../../plugin/base/log.ts';
import { fillBlobs, ImageProgress, isPlain } from '../../../../../plugin/cache/create/blob-fill.ts';
import type { BlobKeeper } from '../../../../../plugin/cache/create/ports.ts';
import type { BlobSource } from '../../../../../plugin/file/device-spec.ts';

const blob = (n: number): BlobSource => ({
  digest: `sha256:${String(n).padStart(64, '0')}`,
  sizeBytes: 100,
  repositories: [{ host: 'registry.example', repository: 'app' }],
});

function keeper(fill: BlobKeeper['fillPinned']): BlobKeeper {
  const unused = (): never => {
    throw new Error('not called here');
  };
  return {
    fillPinned: fill,
    filledBytes: async () => ({}),
    ...{ pin: unused, pinned: unused, pinOwners: unused, unpin: unused, wholeOf: unused, grant: unused },
  };
}

const NONE: ReadonlySet<string> = new Set();
const plain = { renew: async () => {} };
const signal = new AbortController().signal;

test('progress never falls and never passes the total', () => {
  const told: number[] = [];
  const progress = new ImageProgress(300, ({ doneBytes }) => told.push(doneBytes));
  progress.set('a', 50);
  progress.set('a', 20);
  progress.set('b', 100);
  progress.set('c', 400);
  progress.finish();
  expect(told).toEqual([50, 150, 300]);
});

test('blobs are filled in any order and answered in theirs', async () => {
  const blobs = [1, 2, 3, 4, 5].map(blob);
  const seen: string[] = [];
  const filled = await fillBlobs(
    keeper(async (_, one) => ({ path: one.digest, fetchedBytes: 7 })),
    { owner: 'imc-a.x', blobs, checkedAgain: NONE, access: plain, signal, onBytes: (digest) => seen.push(digest) },
    silentLogger,
  );
  expect(filled.map(({ path }) => path)).toEqual(blobs.map(({ digest }) => digest));
  expect(new Set(seen).size).toBe(5);
});

test('a failure ends the others, and is what is told', async () => {
  const failure = new AppError('NotFound', { op: 'fetch', subject: 'blob', what: 'gone' });
  const endings: unknown[] = [];
  const work = fillBlobs(
    keeper((_, one, limited) => {
      if (one.digest.endsWith('2')) return Promise.reject(failure);
      return new Promise((_resolve, reject) => {
        limited.addEventListener('abort', () => {
          endings.push(limited.reason);
          reject(limited.reason);
        });
      });
    }),
    { owner: 'imc-a.x', blobs: [1, 2, 3, 4].map(blob), checkedAgain: NONE, access: plain, signal, onBytes: () => {} },
    silentLogger,
  );
  await expect(work).rejects.toBe(failure);
  expect(endings).toEqual([failure, failure]);
});

test('a data plane that was replaced is told again how the registry is reached', async () => {
  let isKnown = false;
  let renewals = 0;
  const access = {
    renew: async () => {
      isKnown = true;
      renewals += 1;
    },
  };
  const filling = keeper(async () => {
    if (!isKnown) throw new AppError('Unauthenticated', { op: 'fetch', subject: 'blob', what: 'no credentials' });
    return { path: '/x', fetchedBytes: 1 };
  });
  await fillBlobs(filling, { owner: 'imc-a.x', blobs: [blob(1)], checkedAgain: NONE, access, signal, onBytes: () => {} }, silentLogger);
  expect(renewals).toBe(1);
});

test('a cancelled fill is cancelled', async () => {
  const stop = new AbortController();
  stop.abort(new Error('enough'));
  const request = { owner: 'imc-a.x', blobs: [blob(1)], checkedAgain: NONE, access: plain, signal: stop.signal, onBytes: () => {} };
  await expect(
    fillBlobs(
      keeper(async () => ({ path: '/x', fetchedBytes: 1 })),
      request,
      silentLogger,
    ),
  ).rejects.toThrow('enough');
});

test('only access of its own needs a grant', () => {
  expect(isPlain({ credentials: [], plainHttp: [], insecure: [] })).toBe(true);
  expect(isPlain({ credentials: [], plainHttp: ['registry.example'], insecure: [] })).toBe(false);
});
