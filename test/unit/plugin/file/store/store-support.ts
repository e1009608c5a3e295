/** What the chunk store's tests share: scratch roots, blobs with known bytes, and reading through the public contract. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { onTestFinished } from 'vitest';
import { systemClock } from '../../../../../plugin/base/clock.ts';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { FETCH_UNIT_BYTES } from '../../../../../plugin/base/limits.ts';
import type { BlobSource } from '../../../../../plugin/file/device-spec.ts';
import { MissingList } from '../../../../../plugin/file/file.ts';
import type { BlobHandle } from '../../../../../plugin/file/store/blob-handle.ts';
import { ChunkStore, type ChunkStoreOptions } from '../../../../../plugin/file/store/chunk-store.ts';
import type { StoreEvent } from '../../../../../plugin/file/store/store-event.ts';
import { type StoreFs, systemStoreFs } from '../../../../../plugin/file/store/store-fs.ts';

export const UNIT = FETCH_UNIT_BYTES;

/** A directory that goes when the test ends. */
export function scratchDir(): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'obd-store-'));
  onTestFinished(() => fs.rmSync(dir, { recursive: true, force: true }));
  return dir;
}

/** Bytes that differ everywhere and repeat for a seed (xorshift32). */
export function bytesOf(seed: number, sizeBytes: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(sizeBytes / 4));
  let state = (seed * 2_654_435_761 + 1) >>> 0 || 1;
  for (let at = 0; at < words.length; at += 1) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[at] = state;
  }
  return new Uint8Array(words.buffer, 0, sizeBytes);
}

export function sourceOf(bytes: Uint8Array, host = 'registry.example'): BlobSource {
  return { digest: sha256(bytes), sizeBytes: bytes.length, repositories: [{ host, repository: 'library/app' }] };
}

export interface TestStore {
  store: ChunkStore;
  rootDir: string;
  events: StoreEvent[];
}

export async function openStore(options: Partial<ChunkStoreOptions> & { rootDir: string }): Promise<TestStore> {
  const events: StoreEvent[] = [];
  const store = await ChunkStore.open({
    budgetBytes: 64 * 1024 * 1024,
    clock: systemClock,
    onEvent: (event) => events.push(event),
    ...options,
  });
  return { store, rootDir: options.rootDir, events };
}

/** Reserves and writes units [first, end) of `bytes`, as the fetch scheduler does. */
export async function put(store: ChunkStore, handle: BlobHandle, bytes: Uint8Array, first: number, end: number): Promise<boolean> {
  const piece = bytes.subarray(first * UNIT, Math.min(end * UNIT, bytes.length));
  const reservation = await store.reserve(piece.length);
  return (await store.write(handle, first * UNIT, piece, reservation)).isStored;
}

/** What the main thread reads, or the list of what is missing. */
export function read(handle: BlobHandle, offset: number, length: number): Uint8Array | MissingList['ranges'] {
  const target = new Uint8Array(length);
  const missing = new MissingList();
  return handle.file().readSync(offset, length, target, 0, missing) ? target : missing.ranges;
}

/** `du -s`, in bytes. */
export function du(dir: string): number {
  return Number(execFileSync('du', ['-s', '--block-size=1', dir], { encoding: 'utf8' }).split('\t')[0]);
}

export function systemError(code: string): Error {
  return Object.assign(new Error(`${code}: simulated`), { code });
}

/** The real file system, with calls that tests make fail. */
export function faultyFs(): StoreFs & { fail: Partial<Record<keyof StoreFs, string>> } {
  const fail: Partial<Record<keyof StoreFs, string>> = {};
  const wrapped: Record<string, unknown> = { fail };
  for (const name of Object.keys(systemStoreFs) as (keyof StoreFs)[]) {
    const real = systemStoreFs[name] as (...args: unknown[]) => Promise<unknown>;
    wrapped[name] = (...args: unknown[]) => {
      const code = fail[name];
      return code === undefined ? real(...args) : Promise.reject(systemError(code));
    };
  }
  return wrapped as unknown as StoreFs & { fail: Partial<Record<keyof StoreFs, string>> };
}
