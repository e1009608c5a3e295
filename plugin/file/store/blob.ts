/**
 * One open blob: its presence flags, data file and map. Main thread only. The order that makes a crash harmless:
 *
 *   bytes ─ pwrite ─► PRESENT in memory (readers may use it: the page cache has it)
 *                      └─ checkpoint: fdatasync(data) ─► bits into the map ─► fdatasync(map) ─► DURABLE
 *   drop: PRESENT off ─► bits off in the map ─► fdatasync(map) ─► only then may the unit be written again
 *
 * After `kill -9` or power loss only the map's bits count, so no unit is believed whose data might be missing.
 */
import assert from 'node:assert/strict';
import type { Digest } from '../../base/digest.ts';
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import { blobDirBytes, createBlobDir, mapPath, type OpenBlobDir, withFile } from './blob-dir.ts';
import { encodeBits, encodeWhole, MAP_SECTOR_BYTES, MAP_WHOLE_SECTOR, sectorOfUnit, UNITS_PER_SECTOR } from './blob-map.ts';
import type { Ledger } from './ledger.ts';
import { Mutex } from './mutex.ts';
import { Presence, UNIT_DURABLE, UNIT_PRESENT, unitCountOf } from './presence.ts';
import type { StoreFs } from './store-fs.ts';

export interface BlobPlace {
  fs: StoreFs;
  ledger: Ledger;
  /** The blob's directory, and the one it lies in. */
  dir: string;
  parentDir: string;
}

/**
 * Bytes on their way into a blob. Nobody else writes these units meanwhile, since readers may have what came first; and units that are
 * dropped meanwhile do not become readable by it, since its bytes are older than the drop.
 */
export interface UnitWrite {
  readonly firstUnit: number;
  readonly endUnit: number;
  readonly dropped: Set<number>;
  readonly ended: Promise<void>;
}

export class Blob {
  /** Names the blob in {@link MissingRanges}; never used twice in a process. */
  readonly id: number;
  readonly key: string;
  readonly digest: Digest;
  readonly sizeBytes: number;
  readonly unitCount: number;
  readonly presence: Presence;
  /** Handles that refer to the blob. */
  references = 0;
  /** Writes and verifications under way: they keep the descriptor open. */
  busy = 0;
  presentUnits = 0;
  /** What the ledger holds for this blob. */
  diskBytes = 0;
  /** The blob has no directory (no room when it was needed) or must not touch it any more; its units live in memory only. */
  isBroken = false;
  private readonly place: BlobPlace;
  private readonly lock = new Mutex();
  private readonly dirtySectors = new Set<number>();
  /** In the order in which they came. */
  private readonly writes = new Set<UnitWrite>();
  /** The map says, or is about to say, that the digest was checked. */
  private isMarkedWhole = false;
  private failedSyncs = 0;
  private dropping: Promise<void> | undefined;
  private dataFd = -1;
  private life: Uint8Array = new Uint8Array();
  private isEntryDurable = false;

  constructor(id: number, key: string, digest: Digest, sizeBytes: number, place: BlobPlace) {
    this.id = id;
    this.key = key;
    this.digest = digest;
    this.sizeBytes = sizeBytes;
    this.unitCount = unitCountOf(sizeBytes);
    this.presence = Presence.create(sizeBytes);
    this.place = place;
  }

  get dir(): string {
    return this.place.dir;
  }

  /** Something is not durable yet, or is being made so. */
  get isDirty(): boolean {
    return this.dirtySectors.size > 0 || this.lock.isBusy;
  }

  get isComplete(): boolean {
    return this.presentUnits === this.unitCount;
  }

  /** Complete, and its digest was checked. */
  get isWhole(): boolean {
    return this.isMarkedWhole && this.isComplete;
  }

  get hasFile(): boolean {
    return this.dataFd >= 0;
  }

  /** Takes over an opened directory whose units are already in `presence`. */
  adopt(opened: OpenBlobDir, diskBytes: number): void {
    assert(this.dataFd < 0);
    this.dataFd = opened.dataFd;
    this.life = opened.life;
    this.presentUnits = opened.presentUnits;
    this.isMarkedWhole = opened.isWhole;
    this.diskBytes = diskBytes;
    this.presence.fd = opened.dataFd;
    this.presence.isAllLocal = opened.isWhole;
  }

  /** Takes over a plain local file that holds the whole blob. */
  adoptLocal(fd: number): void {
    this.adopt({ dataFd: fd, life: new Uint8Array(), isWhole: true, presentUnits: this.unitCount }, 0);
  }

  /** Does `work` when no earlier write of one of these units is under way. */
  async writing<T>(firstUnit: number, endUnit: number, work: (write: UnitWrite) => Promise<T>): Promise<T> {
    const earlier = [...this.writes].filter((other) => other.firstUnit < endUnit && firstUnit < other.endUnit);
    const { promise: ended, resolve: end } = Promise.withResolvers<void>();
    const write: UnitWrite = { firstUnit, endUnit, dropped: new Set(), ended };
    this.writes.add(write);
    try {
      if (earlier.length > 0) await Promise.all(earlier.map((other) => other.ended));
      return await work(write);
    } finally {
      this.writes.delete(write);
      end();
    }
  }

  /**
   * Puts bytes into the data file and makes their units readable; units that are there already are left alone. False: the blob gave its
   * directory up meanwhile, or a sync failed. Throws system errors, after which the units before the failing one may be present.
   */
  async write(write: UnitWrite, bytes: Uint8Array): Promise<boolean> {
    while (this.dropping !== undefined) await this.dropping;
    if (this.dataFd < 0) await this.materialize();
    const { firstUnit: first, endUnit: end, dropped } = write;
    const isWanted = (unit: number): boolean => !this.presence.has(unit) && !dropped.has(unit);
    for (let unit = first; unit < end; ) {
      if (!isWanted(unit)) {
        unit += 1;
        continue;
      }
      let runEnd = unit + 1;
      while (runEnd < end && isWanted(runEnd)) runEnd += 1;
      const from = (unit - first) * FETCH_UNIT_BYTES;
      const piece = bytes.subarray(from, Math.min(bytes.length, (runEnd - first) * FETCH_UNIT_BYTES));
      const { failedSyncs } = this;
      await this.place.fs.write(this.dataFd, piece, unit * FETCH_UNIT_BYTES);
      // A sync that failed meanwhile may have thrown these bytes away as well, and no later one would tell.
      if (this.isBroken || failedSyncs !== this.failedSyncs) return false;
      this.book(piece.length);
      this.setPresent(unit, runEnd, dropped);
      unit = runEnd;
    }
    return !this.isBroken;
  }

  private setPresent(firstUnit: number, endUnit: number, dropped: ReadonlySet<number>): void {
    for (let unit = firstUnit; unit < endUnit; unit += 1) {
      if (this.presence.has(unit) || dropped.has(unit)) continue;
      this.presence.set(unit, UNIT_PRESENT);
      this.presentUnits += 1;
      this.dirtySectors.add(sectorOfUnit(unit));
    }
  }

  private async materialize(): Promise<void> {
    await this.lock.run(async () => {
      if (this.dataFd >= 0) return;
      assert(!this.isBroken);
      const { fs, dir } = this.place;
      const opened = await createBlobDir(fs, dir, this.digest, this.sizeBytes);
      this.adopt(opened, 0);
    });
    await this.refresh();
  }

  /** Makes what is present now durable. Throws system errors; units whose data the disk did not take are forgotten first. */
  checkpoint(): Promise<void> {
    return this.lock.run(() => this.checkpointLocked());
  }

  private async checkpointLocked(): Promise<void> {
    if (this.dirtySectors.size === 0 || this.isBroken) return;
    const { fs, dir, parentDir } = this.place;
    const sectors = [...this.dirtySectors].sort((a, b) => a - b);
    this.dirtySectors.clear();
    // What is present before the sync is covered by it; what appears meanwhile waits for the next checkpoint.
    const images = sectors.map((sector) => encodeBits(this.life, sector, this.unitCount, (unit) => this.presence.has(unit)));
    try {
      await fs.datasync(this.dataFd);
    } catch (error) {
      this.forgetUndurable();
      throw error;
    }
    try {
      if (!this.isEntryDurable) {
        await fs.syncDir(dir);
        await fs.syncDir(parentDir);
        this.isEntryDurable = true;
      }
      await this.writeSectors(sectors, images);
    } catch (error) {
      for (const sector of sectors) this.dirtySectors.add(sector);
      throw error;
    }
    for (const [at, sector] of sectors.entries()) this.markDurable(sector, images[at]!);
  }

  private async writeSectors(sectors: readonly number[], images: readonly Uint8Array[]): Promise<void> {
    const { fs, dir } = this.place;
    await withFile(fs, mapPath(dir), 'write', async (fd) => {
      for (const [at, sector] of sectors.entries()) await fs.write(fd, images[at]!, sector * MAP_SECTOR_BYTES);
      await fs.datasync(fd);
    });
  }

  private markDurable(sector: number, image: Uint8Array): void {
    const first = (sector - sectorOfUnit(0)) * UNITS_PER_SECTOR;
    const end = Math.min(this.unitCount, first + UNITS_PER_SECTOR);
    for (let unit = first; unit < end; unit += 1) {
      const bit = unit - first;
      if ((image[bit >> 3]! & (1 << (bit & 7))) !== 0) this.presence.set(unit, UNIT_DURABLE);
    }
  }

  /** A failed sync may have thrown dirty pages away: what is not durable is not there. */
  private forgetUndurable(): void {
    this.failedSyncs += 1;
    for (let unit = 0; unit < this.unitCount; unit += 1) {
      if ((this.presence.get(unit) & (UNIT_PRESENT | UNIT_DURABLE)) !== UNIT_PRESENT) continue;
      this.presence.forget(unit, unit + 1);
      this.presentUnits -= 1;
    }
  }

  /** Forgets units, durably, so that they are fetched again. If the map cannot be changed, the blob stops using its directory. */
  async drop(firstUnit: number, endUnit: number): Promise<void> {
    for (let unit = firstUnit; unit < endUnit; unit += 1) if (this.presence.has(unit)) this.presentUnits -= 1;
    this.presence.forget(firstUnit, endUnit);
    for (const write of this.writes) {
      const end = Math.min(endUnit, write.endUnit);
      for (let unit = Math.max(firstUnit, write.firstUnit); unit < end; unit += 1) write.dropped.add(unit);
    }
    const work = this.lock.run(() => {
      const wasMarked = this.isMarkedWhole;
      this.isMarkedWhole = false;
      return this.dropLocked(firstUnit, endUnit, wasMarked);
    });
    this.dropping = work;
    try {
      await work;
    } finally {
      if (this.dropping === work) this.dropping = undefined;
    }
  }

  private async dropLocked(firstUnit: number, endUnit: number, wasMarked: boolean): Promise<void> {
    const sectors = new Set<number>();
    for (let unit = firstUnit; unit < endUnit; unit += 1) {
      if ((this.presence.clear(unit, UNIT_DURABLE) & UNIT_DURABLE) !== 0) sectors.add(sectorOfUnit(unit));
    }
    if (sectors.size === 0 || this.isBroken) return;
    const isDurable = (unit: number): boolean => (this.presence.get(unit) & UNIT_DURABLE) !== 0;
    const images = [...sectors].map((sector) => encodeBits(this.life, sector, this.unitCount, isDurable));
    const indexes = [...sectors];
    if (wasMarked) {
      indexes.unshift(MAP_WHOLE_SECTOR);
      images.unshift(Buffer.alloc(MAP_SECTOR_BYTES));
    }
    try {
      await this.writeSectors(indexes, images);
    } catch (error) {
      this.abandonDisk();
      throw error;
    }
  }

  /** From now on nothing is read from or written to the directory; readers find every unit missing. */
  abandonDisk(): void {
    this.isBroken = true;
    this.isMarkedWhole = false;
    this.presence.detach();
    this.presentUnits = 0;
    this.dirtySectors.clear();
  }

  /** Records, durably, that the complete blob has its digest. Throws system errors. */
  async markWhole(): Promise<void> {
    await this.lock.run(async () => {
      await this.checkpointLocked();
      if (!this.isComplete || this.isBroken) return;
      await this.writeSectors([MAP_WHOLE_SECTOR], [encodeWhole(this.life)]);
      this.isMarkedWhole = true;
      // Dropped while the mark was written: the drop waits for this section, and takes the mark away when it finds it.
      if (!this.isComplete) return;
      this.presence.isAllLocal = true;
    });
  }

  /** Sets the ledger right by asking the disk. A blob that is closed meanwhile, and perhaps evicted, is on the account of others then. */
  async refresh(): Promise<void> {
    if (!this.hasFile || this.isBroken || this.life.length === 0) return;
    try {
      const bytes = await blobDirBytes(this.place.fs, this.dir);
      if (this.hasFile && !this.isBroken) this.book(bytes - this.diskBytes);
    } catch (error) {
      if (this.hasFile) throw error;
    }
  }

  private book(bytes: number): void {
    this.diskBytes += bytes;
    this.place.ledger.add(bytes);
  }

  /** Closes the descriptor. No thread may still read through it. */
  async close(): Promise<void> {
    await this.lock.run(async () => {
      const fd = this.dataFd;
      this.abandonDisk();
      this.dataFd = -1;
      if (fd >= 0) await this.place.fs.close(fd);
    });
  }
}
