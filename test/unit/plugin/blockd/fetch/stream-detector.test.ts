import { expect, test } from 'vitest';
import { StreamDetector } from '../../../../../plugin/blockd/fetch/stream-detector.ts';

/** A detector of a blob whose readers read everything that comes, or what `isAccessed` says. */
const detectorOf = (unitCount: number, isAccessed: (unit: number) => boolean = () => true) => new StreamDetector(unitCount, isAccessed);

test('misses here and there, and pairs of neighbours, read nothing ahead', () => {
  const detector = detectorOf(1_000_000);
  let x = 7;
  for (let i = 0; i < 5000; i += 1) {
    x = (x * 1_103_515_245 + 12_345) % 2_147_483_648;
    const unit = x % 1_000_000;
    expect(detector.onMiss(unit, unit + 1, 0)).toBeUndefined();
    if (i % 3 === 0 && unit + 2 < 1_000_000) expect(detector.onMiss(unit + 1, unit + 2, 0)).toBeUndefined();
  }
});

test('a sequential reader gets 128 KiB ahead, then twice as much each time, up to 4 MiB, then 8 MiB that move with it', () => {
  const detector = detectorOf(10_000);
  expect(detector.onMiss(10, 11, 0)).toBeUndefined();
  expect(detector.onMiss(11, 12, 0)).toBeUndefined();
  expect(detector.onMiss(12, 13, 0)).toBeUndefined();
  let ahead = detector.onMiss(13, 14, 0);
  expect(ahead).toEqual({ firstUnit: 14, endUnit: 16, markUnit: 15 });
  const windows = [2];
  for (let i = 0; i < 5; i += 1) {
    const next = detector.onMark(ahead!.markUnit, 0)!;
    expect(next.firstUnit).toBe(ahead!.endUnit);
    windows.push(next.endUnit - next.firstUnit);
    const units = next.endUnit - next.firstUnit;
    expect(next.markUnit).toBe(units <= 8 ? next.endUnit - 1 : next.firstUnit + units / 2);
    ahead = next;
  }
  expect(windows).toEqual([2, 4, 8, 16, 32, 64]);
  for (const units of [97, 16, 16, 16]) {
    const { markUnit, endUnit } = ahead!;
    ahead = detector.onMark(markUnit, 0)!;
    expect(ahead).toEqual({ firstUnit: endUnit, endUnit: endUnit + units, markUnit: markUnit + 16 });
    expect(ahead.endUnit).toBe(markUnit + 1 + 128);
  }
  expect(detector.onMark(3, 0)).toBeUndefined();
});

test('large sequential reads start with a large window', () => {
  const detector = detectorOf(10_000);
  expect(detector.onMiss(0, 4, 0)).toBeUndefined();
  expect(detector.onMiss(4, 8, 0)).toEqual({ firstUnit: 8, endUnit: 16, markUnit: 15 });
});

test('the same units asked for again are not a stream', () => {
  const detector = detectorOf(100);
  for (let i = 0; i < 10; i += 1) expect(detector.onMiss(5, 6, 0)).toBeUndefined();
});

test('a reader that outran the window, or whose requests come out of order, stays one stream', () => {
  const detector = detectorOf(10_000);
  detector.onMiss(0, 2, 0);
  expect(detector.onMiss(2, 4, 0)).toEqual({ firstUnit: 4, endUnit: 8, markUnit: 7 });
  expect(detector.onMiss(8, 10, 0)).toEqual({ firstUnit: 10, endUnit: 18, markUnit: 17 });
  expect(detector.onMiss(6, 8, 0)).toBeUndefined();
  expect(detector.onMiss(14, 19, 0)).toEqual({ firstUnit: 19, endUnit: 35, markUnit: 27 });
});

test('several streams of one blob do not disturb each other', () => {
  const detector = detectorOf(100_000);
  const starts = [0, 10_000, 20_000, 30_000];
  for (const step of [0, 1, 2]) for (const start of starts) expect(detector.onMiss(start + step, start + step + 1, 0)).toBeUndefined();
  for (const start of starts) expect(detector.onMiss(start + 3, start + 4, 0)).toMatchObject({ firstUnit: start + 4, endUnit: start + 6 });
});

test('reading ahead ends with the blob', () => {
  const detector = detectorOf(6);
  detector.onMiss(0, 2, 0);
  expect(detector.onMiss(2, 4, 0)).toEqual({ firstUnit: 4, endUnit: 6, markUnit: 5 });
  expect(detector.onMark(5, 0)).toBeUndefined();
  expect(detector.onMark(5, 0)).toBeUndefined();
});

/** A reader of every `step`-th unit, which reads what is marked for it. Returns how many units were read ahead. */
function skippingReader(step: number, count: number): number {
  const read = new Set<number>();
  const here = new Set<number>();
  const marks = new Set<number>();
  const detector = detectorOf(1_000_000, (unit) => read.has(unit));
  let ahead = 0;
  for (let unit = 0; unit < 4; unit += 1) read.add(unit);
  detector.onMiss(0, 2, 0);
  const bring = (window: ReturnType<StreamDetector['onMiss']>): void => {
    if (window === undefined) return;
    for (let unit = window.firstUnit; unit < window.endUnit; unit += 1) here.add(unit);
    ahead += window.endUnit - window.firstUnit;
    marks.add(window.markUnit);
  };
  bring(detector.onMiss(2, 4, 0));
  for (let i = 0, unit = 4; i < count; i += 1, unit += step) {
    if (!here.has(unit)) bring(detector.onMiss(unit, unit + 1, 0));
    else if (marks.delete(unit)) bring(detector.onMark(unit, 0));
    read.add(unit);
  }
  return ahead;
}

test('a reader that leaves out most of what lies before it soon gets nothing ahead; one that reads everything gets much', () => {
  expect(skippingReader(1, 500)).toBeGreaterThan(500);
  expect(skippingReader(4, 500)).toBeLessThan(40);
});

test('a stream whose reader left out a quarter of a window goes on with a shorter one', () => {
  const read = new Set([0, 1, 2, 3, 4, 5, 6, 7]);
  const detector = detectorOf(10_000, (unit) => read.has(unit));
  detector.onMiss(0, 2, 0);
  expect(detector.onMiss(2, 4, 0)).toEqual({ firstUnit: 4, endUnit: 8, markUnit: 7 });
  expect(detector.onMark(7, 0)).toEqual({ firstUnit: 8, endUnit: 16, markUnit: 15 });
  for (const unit of [8, 9, 10, 11]) read.add(unit);
  // Of 4 … 14, units 12, 13 and 14 were left out.
  expect(detector.onMark(15, 0)).toEqual({ firstUnit: 16, endUnit: 20, markUnit: 19 });
});

test('a reader that paused for more than two seconds begins afresh', () => {
  const detector = detectorOf(10_000);
  detector.onMiss(0, 2, 0);
  expect(detector.onMiss(2, 4, 2_500)).toBeUndefined();
  expect(detector.onMiss(4, 6, 2_600)).toEqual({ firstUnit: 6, endUnit: 10, markUnit: 9 });
  expect(detector.onMark(9, 4_700)).toBeUndefined();
});
