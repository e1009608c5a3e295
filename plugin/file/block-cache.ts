/**
 * A few decoded blocks, so that small reads of one block decode it once. One cache serves all files of a thread: reads are synchronous,
 * so nobody else runs between finding a block and copying from it. Ours.
 */
import { MAX_BLOCK_SIZE } from '../image/zfile/header.ts';

/** 16 blocks of up to 64 KiB: at most 1 MiB a thread, whatever the number of devices. */
const SLOT_COUNT = 16;

export class BlockCache {
  private readonly owners = new Float64Array(SLOT_COUNT);
  private readonly blocks = new Float64Array(SLOT_COUNT);
  private readonly slots: (Uint8Array | undefined)[] = new Array(SLOT_COUNT).fill(undefined);
  private nextSlot = 0;
  private nextOwner = 1;

  /** A number that names one file in this cache. */
  newOwner(): number {
    return this.nextOwner++;
  }

  /** The decoded block, or undefined. Valid until the next {@link take}. */
  find(owner: number, block: number): Uint8Array | undefined {
    for (let i = 0; i < SLOT_COUNT; i++) {
      if (this.blocks[i] === block && this.owners[i] === owner) return this.slots[i];
    }
    return undefined;
  }

  /** A buffer of at least `sizeBytes` to decode into; {@link keep} makes it findable. The oldest block is given up. */
  take(sizeBytes: number): Uint8Array {
    const i = this.nextSlot;
    this.owners[i] = 0;
    let slot = this.slots[i];
    if (slot === undefined || slot.length < sizeBytes) {
      slot = Buffer.allocUnsafeSlow(Math.min(MAX_BLOCK_SIZE, Math.max(sizeBytes, 4096)));
      this.slots[i] = slot;
    }
    return slot;
  }

  /** Records that the buffer taken last now holds `block` of `owner`. */
  keep(owner: number, block: number): void {
    const i = this.nextSlot;
    this.owners[i] = owner;
    this.blocks[i] = block;
    this.nextSlot = (i + 1) % SLOT_COUNT;
  }
}

/** The cache of this thread. */
export const threadBlockCache = new BlockCache();
