/** Runs asynchronous sections one after the other, in the order they were asked for. A section's failure is its caller's alone. */
export class Mutex {
  private tail: Promise<unknown> = Promise.resolve();
  private waiting = 0;

  /** True while a section runs or waits. */
  get isBusy(): boolean {
    return this.waiting > 0;
  }

  run<T>(section: () => Promise<T>): Promise<T> {
    this.waiting += 1;
    const result = this.tail.then(section).finally(() => {
      this.waiting -= 1;
    });
    this.tail = Promise.allSettled([result]);
    return result;
  }
}

/** One {@link Mutex} a key; a key costs memory only while it is in use. */
export class KeyedMutex {
  private readonly locks = new Map<string, Mutex>();

  async run<T>(key: string, section: () => Promise<T>): Promise<T> {
    let lock = this.locks.get(key);
    if (lock === undefined) this.locks.set(key, (lock = new Mutex()));
    try {
      return await lock.run(section);
    } finally {
      if (!lock.isBusy && this.locks.get(key) === lock) this.locks.delete(key);
    }
  }
}
