/**
 * Tells sequential reading of a blob from random reading, and how far to read ahead. Pure; after the page cache's scheme in Linux
 * (mm/readahead.c): a window that doubles, with a mark in its middle whose touch asks for the next window before the reader runs dry.
 *
 *        nextUnit        markUnit          aheadEnd
 *   ──read──►│   fetched    │M  or on its way  │  next window, twice as long …
 *
 * Random reads must cost nothing: only the second miss in a row that continues another, with at least four units in all, makes a
 * stream. Then 128 KiB ahead, 256 KiB, … 4 MiB, and at last 8 MiB that move with the reader, as long as what was brought is read: a stream whose reader leaves a quarter of it out
 * gets shorter windows, and one that leaves out half, or pauses, is none. A container's start hops through its libraries like that.
 */
import { FETCH_STREAM_BYTES, FETCH_UNIT_BYTES } from '../../base/limits.ts';

export interface ReadAhead {
  firstUnit: number;
  endUnit: number;
  /** The unit whose touch continues the stream. */
  markUnit: number;
}

interface Candidate {
  startUnit: number;
  nextUnit: number;
  advancedAtMs: number;
}

interface Stream {
  nextUnit: number;
  markUnit: number;
  aheadEnd: number;
  windowUnits: number;
  /** From here on nobody has looked whether the reader came. */
  judgedUnit: number;
  advancedAtMs: number;
}

const FIRST_WINDOW_UNITS = 2;
/** A miss that reads much at once starts with twice its size, but at most with this. */
const FIRST_WINDOW_MAX_UNITS = FETCH_STREAM_BYTES / FETCH_UNIT_BYTES;
/**
 * The last window is 4 MiB. From then on the reader has 8 MiB before it, asked for 1 MiB at a time: a window that arrives as one is read
 * at once, and the link lies idle for a round trip until the next one comes (a third of the time at 20 ms and 1 Gbit/s).
 */
const STEADY_UNITS = (8 * FETCH_STREAM_BYTES) / FETCH_UNIT_BYTES;
const STEADY_STEP_UNITS = FETCH_STREAM_BYTES / FETCH_UNIT_BYTES;
const STREAM_UNITS_MIN = 4;
/** Up to half a MiB is gone on with only when it is read to the end: short runs are many in a start, and most end there. */
const CAUTIOUS_UNITS = 8;
/** Fewer units say nothing: requests of one reader may come a little out of order. */
const JUDGED_UNITS_MIN = 4;
/** A reader that pauses for longer has got what it wanted; at the slowest link that streams make sense on, a window comes in less. */
const IDLE_MS = 2_000;
/** Readers of several files of one layer at once; more lose the oldest. */
const MAX_STREAMS = 8;
const MAX_CANDIDATES = 16;
/** The kernel's own read-ahead sends requests of one stream to several workers, so they may arrive out of order. */
const DISORDER_UNITS = FETCH_STREAM_BYTES / FETCH_UNIT_BYTES;

export class StreamDetector {
  private readonly unitCount: number;
  private readonly isAccessed: (unit: number) => boolean;
  /** Least recently advanced first, both. */
  private readonly candidates: Candidate[] = [];
  private readonly streams: Stream[] = [];

  /** `isAccessed`: some reader has read the unit. */
  constructor(unitCount: number, isAccessed: (unit: number) => boolean) {
    this.unitCount = unitCount;
    this.isAccessed = isAccessed;
  }

  /** A reader wants units that were not local. Returns what to fetch beyond them. */
  onMiss(firstUnit: number, endUnit: number, nowMs: number): ReadAhead | undefined {
    this.forgetIdle(nowMs);
    const stream = this.streams.find((s) => firstUnit >= s.nextUnit - DISORDER_UNITS && firstUnit <= s.aheadEnd);
    if (stream !== undefined) {
      this.touch(stream, nowMs);
      stream.nextUnit = Math.max(stream.nextUnit, endUnit);
      return endUnit > stream.markUnit ? this.extend(stream, firstUnit) : undefined;
    }
    const known = this.candidates.find((c) => firstUnit >= c.startUnit && firstUnit <= c.nextUnit);
    if (known === undefined) {
      this.candidates.push({ startUnit: firstUnit, nextUnit: endUnit, advancedAtMs: nowMs });
      if (this.candidates.length > MAX_CANDIDATES) this.candidates.shift();
      return undefined;
    }
    if (endUnit <= known.nextUnit) return undefined;
    known.nextUnit = endUnit;
    known.advancedAtMs = nowMs;
    this.candidates.splice(this.candidates.indexOf(known), 1);
    if (endUnit - known.startUnit < STREAM_UNITS_MIN) {
      this.candidates.push(known);
      return undefined;
    }
    return this.establish(firstUnit, endUnit, nowMs);
  }

  /** A reader hit the marked unit. Undefined: the stream is forgotten, or the blob ends. */
  onMark(unit: number, nowMs: number): ReadAhead | undefined {
    this.forgetIdle(nowMs);
    const stream = this.streams.find((s) => s.markUnit === unit);
    if (stream === undefined) return undefined;
    this.touch(stream, nowMs);
    stream.nextUnit = Math.max(stream.nextUnit, unit + 1);
    return this.extend(stream, unit);
  }

  private establish(firstUnit: number, endUnit: number, nowMs: number): ReadAhead | undefined {
    const windowUnits = Math.min(FIRST_WINDOW_MAX_UNITS, Math.max(FIRST_WINDOW_UNITS, 2 * (endUnit - firstUnit)));
    const stream = { nextUnit: endUnit, markUnit: endUnit, aheadEnd: endUnit, windowUnits, judgedUnit: endUnit, advancedAtMs: nowMs };
    this.streams.push(stream);
    if (this.streams.length > MAX_STREAMS) this.streams.shift();
    return this.extend(stream, endUnit);
  }

  /** The reader is at `readUnit`; what lies before was its own choice. */
  private extend(stream: Stream, readUnit: number): ReadAhead | undefined {
    const firstUnit = Math.max(stream.aheadEnd, stream.nextUnit);
    const leftOut = this.judge(stream, readUnit);
    if (firstUnit >= this.unitCount || leftOut >= 0.5) {
      this.streams.splice(this.streams.indexOf(stream), 1);
      return undefined;
    }
    if (leftOut >= 0.25) stream.windowUnits = Math.max(FIRST_WINDOW_UNITS, Math.floor(stream.windowUnits / 4));
    if (stream.windowUnits < STEADY_UNITS) {
      stream.aheadEnd = Math.min(this.unitCount, firstUnit + stream.windowUnits);
      const half = Math.floor((stream.aheadEnd - firstUnit) / 2);
      stream.markUnit = stream.windowUnits <= CAUTIOUS_UNITS ? stream.aheadEnd - 1 : firstUnit + half;
      stream.windowUnits *= 2;
    } else {
      stream.aheadEnd = Math.min(this.unitCount, Math.max(firstUnit, stream.nextUnit + STEADY_UNITS));
      stream.markUnit = Math.min(stream.nextUnit + STEADY_STEP_UNITS, stream.aheadEnd) - 1;
    }
    return { firstUnit, endUnit: stream.aheadEnd, markUnit: stream.markUnit };
  }

  /** The share of units before `readUnit` that were read ahead and that nobody has read; 0 while there are too few to say. */
  private judge(stream: Stream, readUnit: number): number {
    const count = readUnit - stream.judgedUnit;
    if (count < JUDGED_UNITS_MIN) return 0;
    let accessed = 0;
    for (let unit = stream.judgedUnit; unit < readUnit; unit += 1) if (this.isAccessed(unit)) accessed += 1;
    stream.judgedUnit = readUnit;
    return 1 - accessed / count;
  }

  private forgetIdle(nowMs: number): void {
    for (const list of [this.candidates, this.streams]) while (list.length > 0 && nowMs - list[0]!.advancedAtMs > IDLE_MS) list.shift();
  }

  private touch(stream: Stream, nowMs: number): void {
    stream.advancedAtMs = nowMs;
    if (this.streams.at(-1) === stream) return;
    this.streams.splice(this.streams.indexOf(stream), 1);
    this.streams.push(stream);
  }
}
