/**
 * Which fetch goes next: by priority; within one, registries take turns, and within a registry its blobs. Each step costs a few set
 * operations, whatever waits. A registry or blob at its cap, or one that pauses, is out of the sets until that changes.
 *
 *   ready[priority] ─► hosts (a turn each) ─► blobs (a turn each) ─► fetches (in order)
 */
import assert from 'node:assert/strict';
import type { BlobFetches } from './blob-fetches.ts';
import type { Fetch } from './fetch.ts';
import type { FetchLimits, FetchPriority } from './fetch-types.ts';

export const PRIORITIES: readonly FetchPriority[] = ['demand', 'prefetch', 'fill'];

/** While a blob's requests fail, this many probe. */
const PROBES_PER_BLOB = 2;
/** The rest of the blob is brought by one request at a time; two while one retries. */
const FILL_IN_FLIGHT = 2;

/** The blobs that come from the same registries. */
export class HostGroup {
  readonly ready: Record<FetchPriority, Set<BlobFetches>> = { demand: new Set(), prefetch: new Set(), fill: new Set() };
  inFlight = 0;
  inFlightAhead = 0;
  blobs = 0;
  /** When bytes last arrived from there. */
  progressAtMs = Number.NEGATIVE_INFINITY;
  /** The request that asks whether a silent registry is back, and its start. */
  probe: AbortController | undefined;
  probeAtMs = 0;
}

/** A first-in first-out list. Items in the middle are not removed but become stale; it is rebuilt when most of it is. */
export class Fifo<T> {
  private items: (T | undefined)[] = [];
  private head = 0;
  private stale = 0;

  get length(): number {
    return this.items.length - this.head;
  }

  push(item: T): void {
    this.items.push(item);
  }

  shift(): T | undefined {
    if (this.head === this.items.length) return undefined;
    const item = this.items[this.head];
    this.items[this.head] = undefined;
    this.head += 1;
    if (this.head > 64 && this.head * 2 > this.items.length) {
      this.items = this.items.slice(this.head);
      this.head = 0;
    }
    return item;
  }

  /** One more item is stale; `isLive` tells the others. */
  retire(isLive: (item: T) => boolean): void {
    this.stale += 1;
    if (this.stale < 64 || this.stale * 2 < this.length) return;
    this.items = [...this].filter(isLive);
    this.head = 0;
    this.stale = 0;
  }

  /** The items from first to last. */
  *[Symbol.iterator](): Iterator<T> {
    for (let at = this.head; at < this.items.length; at += 1) yield this.items[at] as T;
  }
}

export class FetchQueue {
  readonly limits: FetchLimits;
  readonly queued: Record<FetchPriority, number> = { demand: 0, prefetch: 0, fill: 0 };
  readonly inFlight: Record<FetchPriority, number> = { demand: 0, prefetch: 0, fill: 0 };
  inFlightBytes = 0;
  private readonly ready: Record<FetchPriority, Set<HostGroup>> = { demand: new Set(), prefetch: new Set(), fill: new Set() };

  constructor(limits: FetchLimits) {
    this.limits = limits;
  }

  get inFlightCount(): number {
    return this.inFlight.demand + this.inFlight.prefetch + this.inFlight.fill;
  }

  /** Puts a fetch at the end of its blob's line. */
  push(fetch: Fetch): void {
    assert(fetch.state === 'queued');
    this.queued[fetch.priority] += 1;
    fetch.blob.lines[fetch.priority].push(fetch);
    this.refresh(fetch.blob);
  }

  /** A reader now waits for a fetch that stands in a lower line; its old place is skipped later. */
  promote(fetch: Fetch): void {
    assert(fetch.state === 'queued' && fetch.priority !== 'demand');
    const old = fetch.priority;
    this.queued[old] -= 1;
    fetch.priority = 'demand';
    fetch.blob.lines[old].retire((other) => stands(other, old));
    this.push(fetch);
  }

  /** Takes a waiting fetch out; its place is skipped later. */
  discard(fetch: Fetch): void {
    assert(fetch.state === 'queued');
    this.queued[fetch.priority] -= 1;
    fetch.state = 'done';
    fetch.blob.lines[fetch.priority].retire((other) => stands(other, fetch.priority));
  }

  /** The next fetch that may start now, counted as in flight; undefined: none. */
  take(): Fetch | undefined {
    for (const priority of PRIORITIES) {
      while (this.mayStart(priority)) {
        const group = first(this.ready[priority]);
        if (group === undefined) break;
        const blob = first(group.ready[priority]);
        assert(blob !== undefined);
        const fetch = blob.lines[priority].shift();
        // Both go to the end of their turn.
        group.ready[priority].delete(blob);
        this.ready[priority].delete(group);
        if (fetch !== undefined && stands(fetch, priority)) {
          this.start(fetch);
          return fetch;
        }
        this.refresh(blob);
      }
    }
    return undefined;
  }

  private mayStart(priority: FetchPriority): boolean {
    const { inFlight, limits } = this;
    if (this.inFlightCount >= limits.inFlight || this.inFlightBytes >= limits.inFlightBytes) return false;
    if (priority === 'demand') return true;
    if (priority === 'fill' && inFlight.fill >= FILL_IN_FLIGHT) return false;
    return inFlight.prefetch + inFlight.fill < limits.inFlight / 2 && this.inFlightBytes < (limits.inFlightBytes * 3) / 4;
  }

  private start(fetch: Fetch): void {
    const { blob, priority } = fetch;
    fetch.state = 'running';
    fetch.startedAs = priority;
    this.queued[priority] -= 1;
    this.inFlight[priority] += 1;
    this.inFlightBytes += fetch.lengthBytes;
    blob.inFlight += 1;
    blob.group.inFlight += 1;
    if (priority !== 'demand') blob.group.inFlightAhead += 1;
    this.refresh(blob);
  }

  /** A running fetch has ended, well or not; its slot is free. */
  end(fetch: Fetch): void {
    const { blob, startedAs } = fetch;
    assert(fetch.state === 'running');
    fetch.state = 'done';
    this.inFlight[startedAs] -= 1;
    this.inFlightBytes -= fetch.lengthBytes;
    blob.inFlight -= 1;
    blob.group.inFlight -= 1;
    if (startedAs !== 'demand') blob.group.inFlightAhead -= 1;
    this.refresh(blob);
  }

  /** Puts a blob, and its registry, into the turns they belong to now. To be called when anything that decides on it changed. */
  refresh(blob: BlobFetches): void {
    const { group } = blob;
    const cap = blob.failures > 0 ? PROBES_PER_BLOB : this.limits.inFlightPerBlob;
    const mayRun = blob.inFlight < cap && !blob.isParked;
    for (const priority of PRIORITIES) {
      put(group.ready[priority], blob, mayRun && blob.lines[priority].length > 0);
      const { inFlightPerHosts } = this.limits;
      const hasSlot = group.inFlight < inFlightPerHosts && (priority === 'demand' || group.inFlightAhead < inFlightPerHosts / 2);
      put(this.ready[priority], group, hasSlot && group.ready[priority].size > 0);
    }
  }
}

/** True when the fetch really waits in that line. */
function stands(fetch: Fetch, priority: FetchPriority): boolean {
  return fetch.state === 'queued' && fetch.priority === priority;
}

function first<T>(set: Set<T>): T | undefined {
  return set.values().next().value;
}

function put<T>(set: Set<T>, item: T, isIn: boolean): void {
  if (isIn) set.add(item);
  else set.delete(item);
}
