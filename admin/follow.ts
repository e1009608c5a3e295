/** Following something from a shell, for as long as it takes: over a restart of the service, and until Ctrl-C. */
import { setTimeout as sleep } from 'node:timers/promises';
import { isUnreachable } from './client.ts';

/** An upgrade replaces the control plane in seconds; one that is away for longer does not come by itself. */
const RECONNECT_MS = 30_000;
const PAUSE_MS = 500;

export interface Followed {
  /** Fails when what is followed does not exist (any more), and when the service does not answer. */
  check(): Promise<unknown>;
  /** Its events from now on, beginning with what is so. */
  watch(): AsyncIterable<string>;
}

/**
 * The data of events, without end: leave the loop when you have seen enough. A stream that ends or breaks is begun again, for
 * {@link RECONNECT_MS} if need be, so the newest state may come twice. Throws what `check` and `watch` throw.
 */
export async function* follow({ check, watch }: Followed): AsyncGenerator<string> {
  let wasUp = false;
  let downSinceMs: number | undefined;
  for (;;) {
    try {
      await check();
      wasUp = true;
      downSinceMs = undefined;
      yield* watch();
    } catch (error) {
      downSinceMs ??= performance.now();
      if (!isUnreachable(error) || !wasUp || performance.now() - downSinceMs > RECONNECT_MS) throw error;
    }
    await sleep(PAUSE_MS);
  }
}

/** As shells have it for a command that Ctrl-C ended. */
export const INTERRUPTED = 130;

/** Runs `work`; Ctrl-C ends the command and says what goes on without it. */
export async function untilInterrupted<T>(goesOn: string, work: () => Promise<T>): Promise<T> {
  const onInterrupt = (): void => {
    process.stderr.write(`\nobdctl: ${goesOn}\n`);
    process.exit(INTERRUPTED);
  };
  process.once('SIGINT', onInterrupt);
  try {
    return await work();
  } finally {
    process.off('SIGINT', onInterrupt);
  }
}

/** Of a terminal that does not say how wide it is. */
const COLUMNS = 100;

/** A line on a terminal that is written over; where standard error is no terminal, or programs read, there is none. */
export class ProgressLine {
  readonly isThere: boolean;

  constructor(isJson: boolean) {
    this.isThere = process.stderr.isTTY === true && !isJson;
  }

  show(text: string): void {
    if (this.isThere) process.stderr.write(`\r\x1b[K${text.slice(0, (process.stderr.columns || COLUMNS) - 1)}`);
  }

  /** Takes the line away, for others to be written in its place. */
  clear(): void {
    if (this.isThere) process.stderr.write('\r\x1b[K');
  }

  /** Leaves the line as it is. */
  end(): void {
    if (this.isThere) process.stderr.write('\n');
  }
}
