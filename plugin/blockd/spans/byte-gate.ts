/** Lets work begin while its memory fits under a limit, first come first served; work larger than the limit runs alone. Ours. */
export class ByteGate {
  private readonly limitBytes: number;
  private usedBytes = 0;
  private readonly queue: { bytes: number; begin: () => void }[] = [];

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  /** Runs `work` when its turn has come; settles as it does. */
  async run<T>(bytes: number, work: () => Promise<T>): Promise<T> {
    if (this.queue.length > 0 || !this.fits(bytes)) await new Promise<void>((begin) => this.queue.push({ bytes, begin }));
    else this.usedBytes += bytes;
    try {
      return await work();
    } finally {
      this.usedBytes -= bytes;
      for (let next = this.queue[0]; next !== undefined && this.fits(next.bytes); next = this.queue[0]) {
        this.queue.shift();
        // Booked here: who comes before it runs must not take its place.
        this.usedBytes += next.bytes;
        next.begin();
      }
    }
  }

  private fits(bytes: number): boolean {
    return this.usedBytes === 0 || this.usedBytes + bytes <= this.limitBytes;
  }
}
