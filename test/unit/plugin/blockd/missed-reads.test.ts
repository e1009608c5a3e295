/** Readers that give up while their bytes are fetched. */
import { expect, onTestFinished, test, vi } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import { MissedReads } from '../../../../plugin/blockd/missed-reads.ts';
import type { OpenDevice } from '../../../../plugin/blockd/open-device.ts';
import { ERRNO } from '../../../../plugin/kernel/libc.ts';

/** No thread has this number: pid_max is 2^22 at most. */
const GONE_TID = 2 ** 30;

/** A device whose registry is away: its reads wait until they are aborted, or the test ends. */
function awayDevice(): OpenDevice {
  const closing = new AbortController();
  onTestFinished(() => closing.abort());
  const canceled = new AppError('Canceled', { op: 'fetch', subject: 'blob', what: 'simulated' });
  const fetch = (_ranges: unknown, signal: AbortSignal): Promise<void> =>
    new Promise((_resolve, reject) => {
      const giveUp = (): void => reject(canceled);
      if (signal.aborted) giveUp();
      signal.addEventListener('abort', giveUp, { once: true });
    });
  return { waiting: 0, stalls: 0, closed: closing.signal, fetch } as unknown as OpenDevice;
}

test.each(['after', 'before'])('a killed reader is let go when another thread tells of it %s its read is known', async (when) => {
  const answers: number[] = [];
  const missed = new MissedReads({ answer: (_slot, _unique, errno) => answers.push(errno), onReadFailed: () => {} });
  // The kernel names an interrupted request without the bit that marks a repeated one.
  const interrupt = (): void => missed.interrupt(3, 7, 1);
  if (when === 'before') interrupt();
  const ranges = [{ blobId: 1, offsetBytes: 0, lengthBytes: 1 }];
  const read = { type: 'miss', slot: 3, uniqueLow: 7, uniqueHigh: 1, tid: GONE_TID, offsetBytes: 0, lengthBytes: 1, ranges } as const;
  const served = missed.serve(read, awayDevice());
  if (when === 'after') interrupt();
  await vi.waitFor(() => expect(answers).toEqual([ERRNO.EINTR]), 30_000);
  await served;
  expect(missed.waiting).toBe(0);
});
