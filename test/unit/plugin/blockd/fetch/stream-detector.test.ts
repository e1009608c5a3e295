import { expect, test } from 'vitest';
import { StreamDetector } from '../../../../../plugin/blockd/fetch/stream-detector.ts';

test('misses here and there, and pairs of neighbours, read nothing ahead', () => {
  const detector = new StreamDetector(1_000_000);
  let x = 7;
  for (let i = 0; i < 5000; i += 1) {
    x = (x * 1_103_515_245 + 12_345) % 2_147_483_648;
    const unit = x % 1_000_000;
    expect(detector.onMiss(unit, unit + 1)).toBeUndefined();
    if (i % 3 === 0 && unit + 2 < 1_000_000) expect(detector.onMiss(unit + 1, unit + 2)).toBeUndefined();
  }
});

test('a sequential reader gets 128 KiB ahead, then twice as much each time, up to 4 MiB; marks lie in the middle', () => {
  const detector = new StreamDetector(10_000);
  expect(detector.onMiss(10, 11)).toBeUndefined();
  expect(detector.onMiss(11, 12)).toBeUndefined();
  let ahead = detector.onMiss(12, 13);
  expect(ahead).toEqual({ firstUnit: 13, endUnit: 15, markUnit: 14 });
  const windows = [2];
  for (let i = 0; i < 8; i += 1) {
    const next = detector.onMark(ahead!.markUnit)!;
    expect(next.firstUnit).toBe(ahead!.endUnit);
    windows.push(next.endUnit - next.firstUnit);
    expect(next.markUnit).toBe(next.firstUnit + Math.floor((next.endUnit - next.firstUnit) / 2));
    ahead = next;
  }
  expect(windows).toEqual([2, 4, 8, 16, 32, 64, 64, 64, 64]);
  expect(detector.onMark(3)).toBeUndefined();
});

test('large sequential reads start with a large window', () => {
  const detector = new StreamDetector(10_000);
  expect(detector.onMiss(0, 4)).toBeUndefined();
  expect(detector.onMiss(4, 8)).toEqual({ firstUnit: 8, endUnit: 16, markUnit: 12 });
});

test('the same units asked for again are not a stream', () => {
  const detector = new StreamDetector(100);
  for (let i = 0; i < 10; i += 1) expect(detector.onMiss(5, 6)).toBeUndefined();
});

test('a reader that outran the window, or whose requests come out of order, stays one stream', () => {
  const detector = new StreamDetector(10_000);
  detector.onMiss(0, 2);
  expect(detector.onMiss(2, 4)).toEqual({ firstUnit: 4, endUnit: 8, markUnit: 6 });
  expect(detector.onMiss(8, 10)).toEqual({ firstUnit: 10, endUnit: 18, markUnit: 14 });
  expect(detector.onMiss(6, 8)).toBeUndefined();
  expect(detector.onMiss(12, 16)).toEqual({ firstUnit: 18, endUnit: 34, markUnit: 26 });
});

test('several streams of one blob do not disturb each other', () => {
  const detector = new StreamDetector(100_000);
  const starts = [0, 10_000, 20_000, 30_000];
  for (const step of [0, 1]) for (const start of starts) expect(detector.onMiss(start + step, start + step + 1)).toBeUndefined();
  for (const start of starts) expect(detector.onMiss(start + 2, start + 3)).toMatchObject({ firstUnit: start + 3, endUnit: start + 5 });
});

test('reading ahead ends with the blob', () => {
  const detector = new StreamDetector(6);
  detector.onMiss(0, 2);
  expect(detector.onMiss(2, 4)).toEqual({ firstUnit: 4, endUnit: 6, markUnit: 5 });
  expect(detector.onMark(5)).toBeUndefined();
  expect(detector.onMark(5)).toBeUndefined();
});
