/** One range request to come or under way, and the readers that wait for it. */
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import type { BlobFetches } from './blob-fetches.ts';
import type { FetchPriority } from './fetch-types.ts';

/** One call of ensure(): done when all its fetches are. */
export interface Waiter {
  fetches: Set<Fetch>;
  priority: FetchPriority;
  askedAtMs: number;
  resolve: () => void;
  reject: (error: unknown) => void;
}

export class Fetch {
  readonly blob: BlobFetches;
  readonly firstUnit: number;
  endUnit: number;
  priority: FetchPriority;
  /** The priority it was started with: its slot and its bytes count there. */
  startedAs: FetchPriority;
  state: 'queued' | 'running' | 'done' = 'queued';
  readonly waiters = new Set<Waiter>();
  attempt = 0;
  startedAtMs = 0;
  /** When the request under way last gave bytes (or began). */
  progressAtMs = 0;
  /** When the first reader began to wait. */
  demandedAtMs: number;
  hasLostData = false;
  avoidMirrors: readonly string[];
  /** The mirror that the request under way was sent to, as far as that is known. */
  asked: string | undefined;
  /** The mirror whose bytes came last: to blame when they are wrong. */
  sentBy: string | undefined;
  /** Ends the request under way with a reason; set while running. */
  abort: ((reason: unknown) => void) | undefined;

  constructor(blob: BlobFetches, firstUnit: number, endUnit: number, priority: FetchPriority, nowMs: number, avoid: readonly string[]) {
    this.blob = blob;
    this.firstUnit = firstUnit;
    this.endUnit = endUnit;
    this.priority = priority;
    this.startedAs = priority;
    this.demandedAtMs = nowMs;
    this.avoidMirrors = avoid;
  }

  get offsetBytes(): number {
    return this.firstUnit * FETCH_UNIT_BYTES;
  }

  get lengthBytes(): number {
    return Math.min(this.endUnit * FETCH_UNIT_BYTES, this.blob.handle.sizeBytes) - this.offsetBytes;
  }
}
