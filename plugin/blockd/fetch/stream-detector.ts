/**
 * Tells sequential reading of a blob from random reading, and how far to read ahead. Pure; after the page cache's scheme in Linux
 * (mm/readahead.c): a window that doubles, with a mark in its middle whose touch asks for the next window before the reader runs dry.
 *
 *        nextUnit        markUnit          aheadEnd
 *   ──read──►│   fetched    │M  or on its way  │  next window, twice as long …
 *
 * Random reads must cost nothing: only the second miss in a row that continues another, with at least three units in all, makes a
 * stream. Then 128 KiB ahead, 256 KiB, … 4 MiB.
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
}

interface Stream {
  nextUnit: number;
  markUnit: number;
  aheadEnd: number;
  windowUnits: number;
}

const FIRST_WINDOW_UNITS = 2;
/** A miss that reads much at once starts with twice its size, but at most with this. */
const FIRST_WINDOW_MAX_UNITS = FETCH_STREAM_BYTES / FETCH_UNIT_BYTES;
/** 4 MiB: four requests in flight fill 1 Gbit/s at 30 ms. */
const WINDOW_MAX_UNITS = (4 * FETCH_STREAM_BYTES) / FETCH_UNIT_BYTES;
const STREAM_UNITS_MIN = 3;
/** Readers of several files of one layer at once; more lose the oldest. */
const MAX_STREAMS = 8;
const MAX_CANDIDATES = 16;
/** The kernel's own read-ahead sends requests of one stream to several workers, so they may arrive out of order. */
const DISORDER_UNITS = FETCH_STREAM_BYTES / FETCH_UNIT_BYTES;

export class StreamDetector {
  private readonly unitCount: number;
  /** Least recently advanced first, both. */
  private readonly candidates: Candidate[] = [];
  private readonly streams: Stream[] = [];

  constructor(unitCount: number) {
    this.unitCount = unitCount;
  }

  /** A reader wants units that were not local. Returns what to fetch beyond them. */
  onMiss(firstUnit: number, endUnit: number): ReadAhead | undefined {
    const stream = this.streams.find((s) => firstUnit >= s.nextUnit - DISORDER_UNITS && firstUnit <= s.aheadEnd);
    if (stream !== undefined) {
      this.touch(stream);
      stream.nextUnit = Math.max(stream.nextUnit, endUnit);
      return endUnit > stream.markUnit ? this.extend(stream) : undefined;
    }
    const known = this.candidates.find((c) => firstUnit >= c.startUnit && firstUnit <= c.nextUnit);
    if (known === undefined) {
      this.candidates.push({ startUnit: firstUnit, nextUnit: endUnit });
      if (this.candidates.length > MAX_CANDIDATES) this.candidates.shift();
      return undefined;
    }
    if (endUnit <= known.nextUnit) return undefined;
    known.nextUnit = endUnit;
    if (endUnit - known.startUnit < STREAM_UNITS_MIN) return undefined;
    this.candidates.splice(this.candidates.indexOf(known), 1);
    return this.establish(firstUnit, endUnit);
  }

  /** A reader hit the marked unit. Undefined: the stream is forgotten, or the blob ends. */
  onMark(unit: number): ReadAhead | undefined {
    const stream = this.streams.find((s) => s.markUnit === unit);
    if (stream === undefined) return undefined;
    this.touch(stream);
    stream.nextUnit = Math.max(stream.nextUnit, unit + 1);
    return this.extend(stream);
  }

  private establish(firstUnit: number, endUnit: number): ReadAhead | undefined {
    const windowUnits = Math.min(FIRST_WINDOW_MAX_UNITS, Math.max(FIRST_WINDOW_UNITS, 2 * (endUnit - firstUnit)));
    const stream = { nextUnit: endUnit, markUnit: endUnit, aheadEnd: endUnit, windowUnits };
    this.streams.push(stream);
    if (this.streams.length > MAX_STREAMS) this.streams.shift();
    return this.extend(stream);
  }

  private extend(stream: Stream): ReadAhead | undefined {
    const firstUnit = Math.max(stream.aheadEnd, stream.nextUnit);
    if (firstUnit >= this.unitCount) {
      this.streams.splice(this.streams.indexOf(stream), 1);
      return undefined;
    }
    stream.aheadEnd = Math.min(this.unitCount, firstUnit + stream.windowUnits);
    stream.markUnit = firstUnit + Math.floor((stream.aheadEnd - firstUnit) / 2);
    stream.windowUnits = Math.min(WINDOW_MAX_UNITS, stream.windowUnits * 2);
    return { firstUnit, endUnit: stream.aheadEnd, markUnit: stream.markUnit };
  }

  private touch(stream: Stream): void {
    if (this.streams.at(-1) === stream) return;
    this.streams.splice(this.streams.indexOf(stream), 1);
    this.streams.push(stream);
  }
}
