/**
 * Random caches and pods over few names, so that ties, shared layers and moved tags are the rule: the index finds what the plain ranking over
 * all caches finds, after any sequence of additions, replacements and deletions.
 */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { explainMatch } from '../../../../plugin/cache/match.ts';
import { MatchIndex } from '../../../../plugin/cache/match-index.ts';
import { type Candidate, parseQuery } from '../../../../plugin/cache/match-query.ts';
import { candidate, digestOf, layer } from '../../../unit/plugin/cache/match-support.ts';

const TIME_MS = 4_000;

const names = fc.constantFrom('a', 'b', 'c', 'd');
const layers = fc.uniqueArray(fc.constantFrom('l1', 'l2', 'l3', 'l4', 'l5'), { maxLength: 4 });
const reference = fc.record({ name: names, tag: fc.constantFrom('1', '2') }).map(({ name, tag }) => `r.example/${name}:${tag}`);
const held = fc.tuple(reference, fc.constantFrom('d1', 'd2', 'd3', 'd4', 'd5'), layers);
const cache = fc.record({
  id: fc.constantFrom(...Array.from({ length: 12 }, (_, n) => `c${n}`)),
  images: fc.array(held, { maxLength: 3 }),
  status: fc.constantFrom('Ready' as const, 'Ready' as const, 'Updating' as const, 'Creating' as const),
  sizeGib: fc.constantFrom(20, 30, 31),
  createdUs: fc.integer({ min: 0, max: 3 }),
});
const podImage = fc.record(
  {
    reference,
    digest: fc.constantFrom('d1', 'd2', 'd9', 'd1 platform').map(digestOf),
    layers: layers.map((list) => list.map((name, index) => layer(name, index * 10))),
  },
  { requiredKeys: ['reference'] },
);
const pod = fc.record(
  {
    images: fc.array(podImage, { minLength: 1, maxLength: 4 }),
    perfectMatch: fc.boolean(),
    matchCountRequest: fc.integer({ min: 1, max: 4 }),
    extraEphemeralStorage: fc.constantFrom(0, 1),
  },
  { requiredKeys: ['images'] },
);
const step = fc.oneof(
  { weight: 4, arbitrary: cache.map((brief) => ({ op: 'set' as const, brief })) },
  { weight: 1, arbitrary: cache.map(({ id }) => ({ op: 'delete' as const, id })) },
  { weight: 4, arbitrary: pod.map((request) => ({ op: 'match' as const, request })) },
);

test('the index and the plain ranking choose the same cache', () => {
  fc.assert(
    fc.property(fc.array(step, { minLength: 5, maxLength: 40 }), (steps) => {
      const index = new MatchIndex();
      const caches = new Map<string, Candidate>();
      for (const one of steps) {
        if (one.op === 'set') {
          const made = candidate(one.brief.id, one.brief);
          caches.set(made.id, made);
          index.set(made);
        } else if (one.op === 'delete') {
          caches.delete(one.id);
          index.delete(one.id);
        } else {
          const query = parseQuery(one.request, 30);
          const { imageCacheId, candidates } = explainMatch(query, caches.values());
          expect(index.best(query)?.id ?? null).toBe(imageCacheId);
          expect(candidates).toHaveLength(caches.size);
          const near = index.near(query, 3);
          expect(near.length).toBeLessThanOrEqual(3);
          expect(explainMatch(query, near).imageCacheId).toBe(imageCacheId);
          expect(candidates.filter((entry) => entry.lostBecause === null)).toHaveLength(imageCacheId === null ? 0 : 1);
        }
      }
    }),
    { interruptAfterTimeLimit: TIME_MS, numRuns: 2000, verbose: fc.VerbosityLevel.Verbose },
  );
});
