/** Runs the store's checkpoint some time after the first change, and again while there are changes. Ours. */
import assert from 'node:assert/strict';
import type { Clock } from '../../base/clock.ts';

export class CheckpointTimer {
  private readonly clock: Clock;
  private readonly delayMs: number;
  private readonly stop: AbortSignal;
  private readonly checkpoint: () => Promise<boolean>;
  private running: Promise<void> | undefined;

  /** `checkpoint` tells whether something has changed meanwhile. Nothing runs any more once `stop` is aborted. */
  constructor(clock: Clock, delayMs: number, stop: AbortSignal, checkpoint: () => Promise<boolean>) {
    this.clock = clock;
    this.delayMs = delayMs;
    this.stop = stop;
    this.checkpoint = checkpoint;
  }

  /** Something has changed. */
  schedule(): void {
    if (this.running === undefined && !this.stop.aborted) this.running = this.run();
  }

  /** Settles when no checkpoint runs or waits. */
  async ended(): Promise<void> {
    await this.running;
  }

  private async run(): Promise<void> {
    try {
      await this.clock.sleep(this.delayMs, this.stop);
    } catch (reason) {
      // The only way out of the sleep but time is the store's end, which makes the last checkpoint itself.
      assert(this.stop.aborted, String(reason));
      return;
    }
    const isChanged = await this.checkpoint();
    this.running = undefined;
    if (isChanged) this.schedule();
  }
}
