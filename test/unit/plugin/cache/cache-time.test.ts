/** The clock by which caches age: it follows the machine's, doubts its jumps for a day, and remembers them through restarts. */
import { expect, test } from 'vitest';
import { CacheTime, type CacheTimeState } from '../../../../plugin/cache/cache-time.ts';
import { DAY_MS, HOUR_MS, MovableClock } from '../../../support/fake-caches.ts';

class Memory {
  state: CacheTimeState | undefined;
  saves = 0;

  loadClock(): CacheTimeState | undefined {
    return this.state;
  }

  saveClock(state: CacheTimeState): void {
    this.state = state;
    this.saves += 1;
  }
}

function begin() {
  const clock = new MovableClock();
  const memory = new Memory();
  const time = new CacheTime(clock, memory);
  const startMs = clock.nowMs();
  const ms = (of = time): number => of.nowUs() / 1000 - startMs;
  return { clock, memory, time, ms };
}

test('it follows the machine: years pass when the machine counts them', () => {
  const { clock, time, ms } = begin();
  ms();
  clock.advance(400 * DAY_MS);
  expect(ms()).toBe(400 * DAY_MS);
  expect(time.openJump).toBeUndefined();
});

test('a jump ahead is believed after a day that went steadily', () => {
  const { clock, time, ms } = begin();
  ms();
  clock.jump(365 * DAY_MS);
  expect(ms()).toBe(0);
  expect(time.openJump).toMatchObject({ byUs: 365 * DAY_MS * 1000 });
  clock.advance(23 * HOUR_MS);
  expect(ms()).toBe(23 * HOUR_MS);
  clock.advance(HOUR_MS);
  expect(ms()).toBe(366 * DAY_MS);
  expect(time.openJump).toBeUndefined();
});

test('a jump that is taken back leaves no trace', () => {
  const { clock, time, ms } = begin();
  ms();
  clock.jump(3650 * DAY_MS);
  clock.advance(HOUR_MS);
  expect(ms()).toBe(HOUR_MS);
  clock.jump(-3650 * DAY_MS);
  clock.advance(HOUR_MS);
  expect(ms()).toBe(2 * HOUR_MS);
  expect(time.openJump).toBeUndefined();
});

test('a second jump begins the day again', () => {
  const { clock, ms } = begin();
  ms();
  clock.jump(10 * DAY_MS);
  ms();
  clock.advance(20 * HOUR_MS);
  ms();
  clock.jump(10 * DAY_MS);
  ms();
  clock.advance(20 * HOUR_MS);
  expect(ms()).toBe(40 * HOUR_MS);
  clock.advance(4 * HOUR_MS);
  expect(ms()).toBe(20 * DAY_MS + 44 * HOUR_MS);
});

test('a machine that comes up in 1970 makes nothing younger or older before it has been so for a day', () => {
  const { clock, memory, ms } = begin();
  ms();
  clock.advance(DAY_MS);
  ms();
  clock.powerOff(-56 * 365 * DAY_MS);
  const again = new CacheTime(clock, memory);
  expect(ms(again)).toBe(DAY_MS);
  clock.advance(HOUR_MS);
  clock.jump(56 * 365 * DAY_MS);
  expect(ms(again)).toBe(DAY_MS + HOUR_MS);
  expect(again.openJump).toBeUndefined();
});

test('a long pause looks like a jump, since nobody counted; a short one is a restart', () => {
  const { clock, memory, ms } = begin();
  ms();
  clock.powerOff(40 * DAY_MS);
  const after = new CacheTime(clock, memory);
  expect(ms(after)).toBe(0);
  expect(after.openJump).toBeDefined();
  const third = new CacheTime(clock, memory);
  expect(ms(third)).toBe(0);
  clock.advance(DAY_MS);
  expect(ms(third)).toBe(41 * DAY_MS);

  clock.powerOff(30 * 60_000);
  const fourth = new CacheTime(clock, memory);
  expect(ms(fourth)).toBe(41 * DAY_MS + 30 * 60_000);
});

test('it never goes back for a small correction, and writes once a minute', () => {
  const { clock, memory, ms } = begin();
  clock.advance(10_000);
  expect(ms()).toBe(10_000);
  clock.jump(-5_000);
  expect(ms()).toBe(10_000);
  clock.advance(1_000);
  expect(ms()).toBe(10_000);
  const { saves } = memory;
  for (let second = 0; second < 300; second += 1) {
    clock.advance(1_000);
    ms();
  }
  expect(memory.saves - saves).toBeLessThanOrEqual(5);
});
