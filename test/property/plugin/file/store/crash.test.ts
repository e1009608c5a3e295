import fs from 'node:fs';
import { expect, test } from 'vitest';
import { systemClock } from '../../../../../plugin/base/clock.ts';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { MissingList } from '../../../../../plugin/file/file.ts';
import type { BlobHandle } from '../../../../../plugin/file/store/blob-handle.ts';
import { ChunkStore } from '../../../../../plugin/file/store/chunk-store.ts';
import { bytesOf, du, scratchDir, UNIT } from '../../../../unit/plugin/file/store/store-support.ts';
import { randomOf, SimDisk } from './sim-disk.ts';

const TIME_BOX_MS = Number(process.env.OBD_PROPERTY_MS ?? 6_000);
const VERSIONS = 4;

/** A blob of the model. Units have versions, so that a mixture of two fetches of one unit would be seen. */
interface ModelBlob {
  digest: ReturnType<typeof sha256>;
  sizeBytes: number;
  /** The units that the test uses: some lie around the border of two map sectors. */
  units: number[];
  /** Units that must be there after a crash, by version; emptied by what may take them away. */
  durable: Map<number, number>;
  /** The version that was written last, for reads without a crash. */
  present: Map<number, number>;
}

const makeBlob = (index: number): ModelBlob => {
  const isLarge = index === 0;
  return {
    digest: sha256(`blob ${index}`),
    sizeBytes: isLarge ? 4070 * UNIT + 77 : (5 + index) * UNIT + index,
    units: isLarge ? [0, 1, 2, 4062, 4063, 4064, 4065, 4070] : Array.from({ length: 6 + index }, (_, unit) => unit),
    durable: new Map(),
    present: new Map(),
  };
};

const contents = new Map<string, Uint8Array>();
function contentOf(blob: ModelBlob, unit: number, version: number): Uint8Array {
  const lengthBytes = Math.min(UNIT, blob.sizeBytes - unit * UNIT);
  const key = `${blob.digest} ${unit} ${version}`;
  let bytes = contents.get(key);
  if (bytes === undefined) contents.set(key, (bytes = bytesOf(contents.size + 1, lengthBytes)));
  return bytes;
}

/** The version a unit reads to; undefined: missing. Anything that is no version's bytes fails the test. */
function versionRead(blob: ModelBlob, handle: BlobHandle, unit: number): number | undefined {
  const target = new Uint8Array(Math.min(UNIT, blob.sizeBytes - unit * UNIT));
  if (!handle.file().readSync(unit * UNIT, target.length, target, 0, new MissingList())) return undefined;
  for (let version = 0; version < VERSIONS; version += 1) {
    if (Buffer.compare(target, contentOf(blob, unit, version)) === 0) return version;
  }
  throw new Error(`unit ${unit} of ${blob.digest} holds bytes that were never fetched`);
}

/** One life of a store on one disk, and what the test knows of it. A crash makes the next one; what still runs stays with the old. */
class Life {
  readonly random: () => number;
  readonly dir: string;
  readonly blobs: ModelBlob[];
  readonly handles = new Map<ModelBlob, BlobHandle>();
  readonly disk: SimDisk;
  readonly number: number;
  store!: ChunkStore;
  hits = 0;

  constructor(random: () => number, dir: string, disk: SimDisk, blobs: ModelBlob[], number: number) {
    this.random = random;
    this.dir = dir;
    this.disk = disk;
    this.blobs = blobs;
    this.number = number;
  }

  pick<T>(items: readonly T[]): T {
    return items[Math.floor(this.random() * items.length)]!;
  }

  async open(budgetBytes = 26 * UNIT): Promise<void> {
    const { rootDir, fs: simFs } = this.disk;
    this.store = await ChunkStore.open({ rootDir, budgetBytes, clock: systemClock, fs: simFs, checkpointMs: 5, memoryBytes: 4 * UNIT });
  }

  async handleOf(blob: ModelBlob): Promise<BlobHandle> {
    const held = this.handles.get(blob);
    if (held !== undefined) return held;
    this.expectEvictions();
    const handle = await this.store.acquire({ digest: blob.digest, sizeBytes: blob.sizeBytes, repositories: [] });
    this.handles.set(blob, handle);
    return handle;
  }

  /** Whenever room is asked for, idle blobs may go. */
  expectEvictions(): void {
    for (const other of this.blobs) if (!this.handles.has(other)) other.durable.clear();
  }

  async steps(count: number): Promise<void> {
    for (let i = 0; i < count; i += 1) await this.step();
  }

  async step(): Promise<void> {
    const blob = this.pick(this.blobs);
    const dice = this.random();
    const handle = await this.handleOf(blob);
    const unit = this.pick(blob.units);
    if (dice < 0.45) await this.write(blob, handle, unit);
    else if (dice < 0.6) this.check(blob, handle, unit);
    else if (dice < 0.72) await this.drop(blob, handle, unit);
    else if (dice < 0.85) await this.checkpoint();
    else this.release(blob, handle);
  }

  async write(blob: ModelBlob, handle: BlobHandle, unit: number): Promise<void> {
    if (handle.isReadable(unit)) return;
    const version = Math.floor(this.random() * VERSIONS);
    const bytes = contentOf(blob, unit, version);
    this.expectEvictions();
    const reservation = await this.store.reserve(bytes.length);
    const { isStored } = await this.store.write(handle, unit * UNIT, bytes, reservation);
    if (isStored) blob.present.set(unit, version);
  }

  check(blob: ModelBlob, handle: BlobHandle, unit: number): void {
    const version = versionRead(blob, handle, unit);
    if (version !== undefined) this.hits += 1;
    const expected = blob.present.get(unit);
    if (expected !== undefined) expect(version).toBe(expected);
  }

  async drop(blob: ModelBlob, handle: BlobHandle, unit: number): Promise<void> {
    blob.durable.delete(unit);
    blob.present.delete(unit);
    // What follows at once must wait by itself until the drop is durable.
    await Promise.all([this.store.drop(handle, unit * UNIT, 1), this.write(blob, handle, unit)]);
  }

  async checkpoint(): Promise<void> {
    await this.store.checkpoint();
    for (const [blob] of this.handles) blob.durable = new Map(blob.present);
  }

  release(blob: ModelBlob, handle: BlobHandle): void {
    handle.release();
    this.handles.delete(blob);
    blob.present.clear();
    blob.durable.clear();
  }

  /** The machine or the process goes. */
  async crash(): Promise<Life> {
    const kind = this.pick(['power', 'power', 'kill'] as const);
    const blobs = this.blobs.map((blob) => ({ ...blob, durable: new Map(blob.durable), present: new Map<number, number>() }));
    const disk = await this.disk.restart(kind, `${this.dir}/${this.number + 1}`, this.random);
    return new Life(this.random, this.dir, disk, blobs, this.number + 1);
  }

  /** Opens the store on what is left, and looks at everything. */
  async begin(): Promise<void> {
    // With room for everything, so that looking evicts nothing.
    await this.open(1e9);
    expect(this.store.usage().bytes).toBe(du(this.disk.rootDir));
    for (const blob of this.blobs) {
      const { durable } = blob;
      const handle = await this.store.acquire({ digest: blob.digest, sizeBytes: blob.sizeBytes, repositories: [] });
      this.handles.set(blob, handle);
      for (const unit of blob.units) {
        const version = versionRead(blob, handle, unit);
        if (version !== undefined) blob.present.set(unit, version);
        if (durable.has(unit)) expect(version).toBe(durable.get(unit));
      }
      blob.durable = new Map(blob.present);
    }
    if (this.random() < 0.5) return;
    await this.store.close();
    for (const [blob, handle] of this.handles) this.release(blob, handle);
    await this.open();
  }
}

test('whatever is lost in a crash at any call, no unit reads as bytes that were not fetched, and durable ones stay', async () => {
  const seed = Number(process.env.OBD_SEED ?? Date.now() % 1_000_000_000);
  const dir = scratchDir();
  const endMs = performance.now() + TIME_BOX_MS;
  const totals = { crashes: 0, hits: 0, durable: 0 };
  for (let round = 0; performance.now() < endMs || totals.hits === 0 || totals.durable === 0; round += 1) {
    const roundDir = `${dir}/${round}`;
    try {
      let life = new Life(randomOf(seed + round), roundDir, new SimDisk(`${roundDir}/0`), [0, 1, 2, 3].map(makeBlob), 0);
      for (;;) {
        await life.begin();
        if (life.number === 6) break;
        life.disk.dieAfter(Math.floor(life.random() * 60));
        await Promise.race([life.steps(40), life.disk.died]);
        for (const blob of life.blobs) totals.durable += blob.durable.size;
        totals.hits += life.hits;
        totals.crashes += 1;
        life = await life.crash();
      }
      await life.store.close();
      expect(life.store.usage().bytes).toBe(du(life.disk.rootDir));
      fs.rmSync(roundDir, { recursive: true });
    } catch (error) {
      throw new Error(`OBD_SEED=${seed + round} shows it`, { cause: error });
    }
  }
  console.log(`seed ${seed}: ${totals.crashes} crashes, ${totals.durable} durable units kept, ${totals.hits} reads that hit`);
});
