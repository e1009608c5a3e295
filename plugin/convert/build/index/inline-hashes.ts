/** Sums in the thread that inflates: the cheaper way when other layers keep the other cores busy. Ours. */
import { type BlockHashes, type Slot, slotMemory, slotOf } from './block-hashes.ts';
import { PlainHasher, type PlainSums, WindowPacker, type WindowRequest } from './plain-hasher.ts';

/** One that was submitted is done, but the next one is taken before. */
const SLOTS = 2;

export class InlineHashes implements BlockHashes {
  private readonly hasher = new PlainHasher();
  private readonly packer = new WindowPacker();
  private readonly free: Slot[] = Array.from({ length: SLOTS }, (_, number) => slotOf(number, slotMemory()));
  private onWindow: (window: Uint8Array) => void = () => {};

  begin(onWindow: (window: Uint8Array) => void): void {
    this.onWindow = onWindow;
  }

  async take(): Promise<Slot> {
    return this.free.pop()!;
  }

  submit(slot: Slot, length: number, spans: number[], windows: WindowRequest[]): void {
    this.pack(windows);
    this.hasher.update(slot.memory, length, spans);
    this.free.push(slot);
  }

  async finish(windows: WindowRequest[] = []): Promise<PlainSums> {
    this.pack(windows);
    return this.hasher.finish();
  }

  release(slot: Slot): void {
    this.free.push(slot);
  }

  async [Symbol.asyncDispose](): Promise<void> {}

  private pack(windows: readonly WindowRequest[]): void {
    for (const window of windows) this.onWindow(this.packer.pack(window));
  }
}
