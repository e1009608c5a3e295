import { expect, test } from 'vitest';
import { FETCH_UNIT_BYTES } from '../../../../../plugin/base/limits.ts';
import { BufferPool } from '../../../../../plugin/blockd/fetch/buffer-pool.ts';

test('a buffer that came back is used again, once', () => {
  const pool = new BufferPool();
  const first = pool.take(FETCH_UNIT_BYTES);
  pool.give(first);
  const second = pool.take(FETCH_UNIT_BYTES);
  expect(second.buffer).toBe(first.buffer);
  expect(pool.take(FETCH_UNIT_BYTES).buffer).not.toBe(first.buffer);
});

test('the last unit of a blob is shorter; its buffer has just its length and is not kept', () => {
  const pool = new BufferPool();
  const odd = pool.take(1000);
  expect(odd.length).toBe(1000);
  pool.give(odd);
  pool.give(new Uint8Array(new ArrayBuffer(2 * FETCH_UNIT_BYTES), 0, FETCH_UNIT_BYTES));
  expect(pool.take(FETCH_UNIT_BYTES).buffer.byteLength).toBe(FETCH_UNIT_BYTES);
});

test('no more than 64 buffers of a unit are kept', () => {
  const pool = new BufferPool();
  const all = Array.from({ length: 100 }, () => pool.take(FETCH_UNIT_BYTES));
  for (const buffer of all) pool.give(buffer);
  const again = new Set(Array.from({ length: 100 }, () => pool.take(FETCH_UNIT_BYTES).buffer));
  expect(all.filter((buffer) => again.has(buffer.buffer)).length).toBe(64);
});
