/** Lists of chunk digests: every fetched unit is checked, and neither a lying registry nor a lying list gets a wrong byte through. */
import { createHash, randomBytes } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { systemClock } from '../../../../plugin/base/clock.ts';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { FETCH_UNIT_BYTES } from '../../../../plugin/base/limits.ts';
import { ChunkVerifier } from '../../../../plugin/blockd/chunk-verifier.ts';
import { FetchScheduler } from '../../../../plugin/blockd/fetch/fetch-scheduler.ts';
import { Fills } from '../../../../plugin/blockd/fills.ts';
import type { BlobSource } from '../../../../plugin/file/device-spec.ts';
import { MissingList } from '../../../../plugin/file/file.ts';
import { ChunkStore } from '../../../../plugin/file/store/chunk-store.ts';

const cleanUps: (() => Promise<void>)[] = [];
afterEach(async () => {
  for (const cleanUp of cleanUps.splice(0)) await cleanUp();
});

const signal = new AbortController().signal;

/** A blob as the builder seals it: payload, a header of 512 bytes, the list, and padding. */
function sealedBlob(payloadBytes: number): { bytes: Buffer; source: BlobSource } {
  const payload = randomBytes(payloadBytes);
  const digests: Buffer[] = [];
  for (let at = 0; at < payload.length; at += FETCH_UNIT_BYTES)
    digests.push(
      createHash('sha256')
        .update(payload.subarray(at, at + FETCH_UNIT_BYTES))
        .digest(),
    );
  const list = Buffer.concat(digests);
  const bytes = Buffer.concat([payload, Buffer.alloc(512), list, Buffer.alloc(1024)]);
  const chunkList = { digest: sha256(list), offsetBytes: payloadBytes + 512, sizeBytes: list.length, chunkBytes: FETCH_UNIT_BYTES };
  return { bytes, source: { digest: sha256(bytes), sizeBytes: bytes.length, repositories: [], chunkList } };
}

/** A store that fetches from `serve`, which may lie. */
async function fetching(serve: (offset: number, length: number, attempt: number) => Buffer) {
  const rootDir = fs.mkdtempSync(path.join(os.tmpdir(), 'obd-chunks-'));
  const chunks = new ChunkVerifier();
  const verifyUnit = chunks.verifyUnit.bind(chunks);
  const store = await ChunkStore.open({ rootDir, budgetBytes: 2 ** 30, clock: systemClock, verifyUnit });
  let calls = 0;
  const fetchRange = async (_: BlobSource, offset: number, length: number): Promise<Uint8Array> => serve(offset, length, ++calls);
  const scheduler = new FetchScheduler({ store, fetchRange, clock: systemClock, patienceMs: 50 });
  cleanUps.push(async () => {
    await scheduler.close();
    await store.close();
    fs.rmSync(rootDir, { recursive: true });
  });
  return { chunks, store, scheduler };
}

describe('ChunkVerifier', () => {
  it('fetches a unit with a flipped bit again and serves the right bytes', async () => {
    const { bytes, source } = sealedBlob(5 * FETCH_UNIT_BYTES + 777);
    let flips = 0;
    const parts = await fetching((offset, length) => {
      const answer = Buffer.from(bytes.subarray(offset, offset + length));
      if (offset === FETCH_UNIT_BYTES && flips++ === 0) answer[100]! ^= 1;
      return answer;
    });
    const handle = await parts.store.acquire(source);
    await parts.chunks.load(handle, parts, signal);
    await parts.scheduler.ensure(handle, [{ offsetBytes: FETCH_UNIT_BYTES, lengthBytes: 4096 }], 'demand', signal);
    const read = Buffer.alloc(4096);
    expect(handle.file().readSync(FETCH_UNIT_BYTES, 4096, read, 0, new MissingList())).toBe(true);
    expect(read.equals(bytes.subarray(FETCH_UNIT_BYTES, FETCH_UNIT_BYTES + 4096))).toBe(true);
    expect(flips).toBe(2);
    handle.release();
  });

  it('checks what a fill brings from the first unit on, and what is fetched again for a damaged blob that was whole', async () => {
    const { bytes, source } = sealedBlob(5 * FETCH_UNIT_BYTES + 777);
    let lies = 1;
    const parts = await fetching((offset, length) => {
      const answer = Buffer.from(bytes.subarray(offset, offset + length));
      if (offset === 0 && lies-- > 0) answer[100]! ^= 1;
      return answer;
    });
    const fills = new Fills(parts);
    await expect(fills.fetchWhole(source, signal)).rejects.toMatchObject({
      code: 'DataLoss',
      message: expect.stringContaining('offset 0'),
    });
    await fills.fetchWhole(source, signal);
    const handle = await parts.store.acquire(source);
    expect(handle.isVerified).toBe(true);
    fills.close();
    // As a device does when a read finds the bytes damaged, in a process that never needed the list.
    parts.chunks.forget(handle.blobId);
    lies = 100;
    await parts.chunks.load(handle, parts, signal, { isDamaged: true });
    await expect(parts.scheduler.repair(handle, 0, FETCH_UNIT_BYTES, signal)).rejects.toMatchObject({ code: 'DataLoss' });
    expect(handle.file().readSync(0, 4096, Buffer.alloc(4096), 0, new MissingList())).toBe(false);
    handle.release();
  });

  it('fails the read when the bytes stay wrong', async () => {
    const { bytes, source } = sealedBlob(3 * FETCH_UNIT_BYTES);
    const parts = await fetching((offset, length) => {
      const answer = Buffer.from(bytes.subarray(offset, offset + length));
      if (offset === 0) answer[5]! ^= 0x80;
      return answer;
    });
    const handle = await parts.store.acquire(source);
    await parts.chunks.load(handle, parts, signal);
    const ensured = parts.scheduler.ensure(handle, [{ offsetBytes: 0, lengthBytes: 1 }], 'demand', signal);
    await expect(ensured).rejects.toMatchObject({ code: 'DataLoss' });
    handle.release();
  });

  it('checks the unit that came with the list, which was fetched before the list was known', async () => {
    const { bytes, source } = sealedBlob(1000);
    const parts = await fetching((offset, length) => {
      const answer = Buffer.from(bytes.subarray(offset, offset + length));
      answer[10]! ^= 1;
      return answer;
    });
    const handle = await parts.store.acquire(source);
    await expect(parts.chunks.load(handle, parts, signal)).rejects.toMatchObject({ code: 'DataLoss' });
    expect(handle.isReadable(0)).toBe(false);
    handle.release();
  });

  it('refuses a list that cannot belong to the blob, and one whose bytes are others', async () => {
    const { bytes, source } = sealedBlob(2 * FETCH_UNIT_BYTES);
    const parts = await fetching((offset, length) => Buffer.from(bytes.subarray(offset, offset + length)));
    const withList = (change: Partial<NonNullable<BlobSource['chunkList']>>): BlobSource => ({
      ...source,
      chunkList: { ...source.chunkList!, ...change },
    });
    for (const [change, code] of [
      [{ sizeBytes: 96 }, 'InvalidArgument'],
      [{ chunkBytes: 40960 }, 'InvalidArgument'],
      [{ offsetBytes: 100 }, 'InvalidArgument'],
      [{ offsetBytes: source.sizeBytes - 8 }, 'InvalidArgument'],
      [{ digest: sha256('another list') }, 'DataLoss'],
    ] as const) {
      const handle = await parts.store.acquire(withList(change));
      await expect(parts.chunks.load(handle, parts, signal)).rejects.toMatchObject({ code });
      handle.release();
    }
  });

  it('refuses lists beyond what the node spares for them, until others are forgotten', async () => {
    const blobs = [sealedBlob(4 * FETCH_UNIT_BYTES), sealedBlob(4 * FETCH_UNIT_BYTES)];
    const chunks = new ChunkVerifier(4 * 32);
    const parts = await fetching((offset, length) => Buffer.alloc(length, offset));
    const handles = [];
    for (const { bytes, source } of blobs) {
      const handle = await parts.store.acquire(source);
      for (let at = 0; at < bytes.length; at += FETCH_UNIT_BYTES)
        await parts.store.write(handle, at, bytes.subarray(at, at + FETCH_UNIT_BYTES), await parts.store.reserve(FETCH_UNIT_BYTES));
      handles.push(handle);
    }
    await chunks.load(handles[0]!, parts, signal);
    await expect(chunks.load(handles[1]!, parts, signal)).rejects.toMatchObject({ code: 'ResourceExhausted' });
    chunks.forget(handles[0]!.blobId);
    await chunks.load(handles[1]!, parts, signal);
    for (const handle of handles) handle.release();
  });
});
