/** The small blob of an index-only layer: one that readers would refuse is not made. */
import { truncateSync, writeFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { writeTurboBlob } from '../../../../../../plugin/convert/build/index/turbo-blob.ts';
import { MAX_TURBO_TAR_BYTES } from '../../../../../../plugin/image/turbo/turbo-layer.ts';
import { Scratch } from '../../../../../support/scratch.ts';

test('a blob that is too large, even if only uncompressed, is refused', async () => {
  await using scratch = await Scratch.create('turbo-blob');
  const file = scratch.join('meta');
  writeFileSync(file, '');
  truncateSync(file, MAX_TURBO_TAR_BYTES);
  const { signal } = new AbortController();
  const write = (sizeBytes: number) => writeTurboBlob(scratch.join(`blob-${sizeBytes}`), [{ name: 'meta', sizeBytes, path: file }], signal);
  await expect(write(MAX_TURBO_TAR_BYTES)).rejects.toMatchObject({ code: 'ResourceExhausted', message: expect.stringMatching(/in full/) });
  truncateSync(file, 1_000_000);
  expect((await write(1_000_000)).sizeBytes).toBeLessThan(10_000);
});
