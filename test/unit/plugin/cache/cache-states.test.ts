/** The table of states: every move that is in it is allowed, every other one ends the process. */
import { expect, test } from 'vitest';
import { assertMove, CACHE_MOVES, isServing, isWorking } from '../../../../plugin/cache/cache-states.ts';
import { CACHE_STATES } from '../../../../plugin/cache/service.ts';

const ALLOWED = new Set([
  ...['Preparing Creating', 'Preparing Failed', 'Creating Ready', 'Creating Failed', 'Ready Updating', 'Ready Creating', 'Ready Failed'],
  ...['Updating Ready', 'Updating UpdateFailed', 'UpdateFailed Updating', 'UpdateFailed Creating'],
]);

test.each(CACHE_STATES.flatMap((from) => CACHE_STATES.map((to) => ({ from, to }))))('$from to $to', ({ from, to }) => {
  if (ALLOWED.has(`${from} ${to}`)) expect(() => assertMove(from, to)).not.toThrow();
  else expect(() => assertMove(from, to)).toThrowError(/a cache moves from/);
});

test('every state but Failed can be left, and what serves is what is or was Ready', () => {
  expect(CACHE_STATES.filter((state) => CACHE_MOVES[state].length === 0)).toEqual(['Failed']);
  expect(CACHE_STATES.filter(isServing)).toEqual(['Ready', 'Updating', 'UpdateFailed']);
  expect(CACHE_STATES.filter(isWorking)).toEqual(['Preparing', 'Creating', 'Updating']);
});
