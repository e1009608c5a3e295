/** The matcher, rule by rule: R105 – R107, R109, R136, R143 – R149, C9. Every case asks the explanation and the index; both must agree. */
import { expect, test } from 'vitest';
import type { Digest } from '../../../../plugin/base/digest.ts';
import { explainMatch } from '../../../../plugin/cache/match.ts';
import { MatchIndex } from '../../../../plugin/cache/match-index.ts';
import { type Candidate, parseQuery } from '../../../../plugin/cache/match-query.ts';
import type { CacheState, MatchRequest } from '../../../../plugin/cache/service.ts';
import { candidate, digestOf, layer } from './match-support.ts';

const WEB = 'registry.example/team/web';
const API = 'registry.example/team/api';

function decide(request: MatchRequest, caches: Candidate[]) {
  const query = parseQuery(request, 30);
  const explanation = explainMatch(query, caches);
  const index = new MatchIndex();
  for (const cache of caches) index.set(cache);
  if (query.pinnedId === undefined) expect(index.best(query)?.id ?? null).toBe(explanation.imageCacheId);
  return explanation;
}

/** The chosen cache and why each other one lost, as a person reads it. */
function outcome(request: MatchRequest, caches: Candidate[]): [string | null, Record<string, string | null>] {
  const { imageCacheId, candidates } = decide(request, caches);
  const lost = candidates.filter((one) => one.lostBecause !== null);
  return [imageCacheId, Object.fromEntries(lost.map((one) => [one.imageCacheId, one.lostBecause]))];
}

const web = (digest?: Digest): MatchRequest['images'][number] => ({ reference: `${WEB}:1`, ...(digest === undefined ? {} : { digest }) });

test('no caches, no match', () => {
  expect(decide({ images: [web()] }, [])).toMatchObject({ outcome: 'none', imageCacheId: null, candidates: [] });
});

test.each<[CacheState, boolean]>([
  ['Preparing', false],
  ['Creating', false],
  ['Failed', false],
  ['Ready', true],
  ['Updating', true],
  ['UpdateFailed', true],
])('a cache in state %s is chosen: %s', (status, isChosen) => {
  const [id, lost] = outcome({ images: [web()] }, [candidate('a', { images: [[`${WEB}:1`, 'w1']], status })]);
  expect(id).toBe(isChosen ? 'a' : null);
  if (!isChosen) expect(lost.a).toBe(`its status is ${status}`);
});

test.each([
  [30, 0, true],
  [31, 0, false],
  [40, 9, false],
  [40, 10, true],
])('a cache of %i GiB fits a pod that declares %i GiB beyond its 30: %s', (sizeGib, extraEphemeralStorage, fits) => {
  const [id, lost] = outcome({ images: [web()], extraEphemeralStorage }, [candidate('a', { images: [[`${WEB}:1`, 'w1']], sizeGib })]);
  expect(id).toBe(fits ? 'a' : null);
  if (!fits) expect(lost.a).toContain('ephemeral storage');
});

test('match degree: digest before reference before repository before shared layers before nothing', () => {
  const caches = [
    candidate('nothing', { images: [['other.example/x:1', 'x1']] }),
    candidate('layers', { images: [['other.example/y:1', 'y1', ['l1']]] }),
    candidate('repository', { images: [[`${WEB}:2`, 'w2']] }),
    candidate('reference', { images: [[`${WEB}:1`, 'w0']] }),
    candidate('digest', { images: [[`${WEB}:9`, 'w1']] }),
  ];
  const image = { reference: `${WEB}:1`, digest: digestOf('w1'), layers: [layer('l1', 10), layer('l2', 10)] };
  const { candidates } = decide({ images: [image] }, caches);
  expect(candidates.map((one) => [one.imageCacheId, one.rank])).toEqual([
    ['digest', 1],
    ['reference', 2],
    ['repository', 3],
    ['layers', 4],
    ['nothing', null],
  ]);
  expect(candidates.map((one) => one.images[0]?.tier)).toEqual([
    'same-digest',
    'same-reference',
    'same-repository',
    'shared-layers',
    'none',
  ]);
  expect(candidates.map((one) => one.lostBecause)).toEqual([
    null,
    'it has 0 images by digest, the chosen one 1',
    'it has 0 images by digest, the chosen one 1',
    'it has 0 images by digest, the chosen one 1',
    "it has nothing of the pod's images",
  ]);
  for (const [better, worse] of [
    ['reference', 'repository'],
    ['repository', 'layers'],
  ]) {
    const two = caches.filter((one) => one.id === better || one.id === worse);
    expect(decide({ images: [image] }, two).imageCacheId).toBe(better);
  }
});

test('the degree is summed over the images of the pod', () => {
  const images = [web(digestOf('w1')), { reference: `${API}:1`, digest: digestOf('a1') }];
  const one = candidate('one', { images: [[`${WEB}:1`, 'w1']] });
  const both = candidate('both', { images: [...imagesOf(['w1', WEB], ['a1', API])] });
  const weak = candidate('weak', { images: [...imagesOf(['w0', WEB], ['a0', API])] });
  expect(outcome({ images }, [one, both, weak])[0]).toBe('both');
  // One digest is nearer than any number of tags that moved.
  expect(outcome({ images }, [one, weak])[0]).toBe('one');
});

function imagesOf(...pairs: [string, string][]): [string, string][] {
  return pairs.map(([digest, repository]) => [`${repository}:1`, digest]);
}

test('with equal names more bytes of shared layers win', () => {
  const image = { reference: `${WEB}:3`, layers: [layer('l1', 10), layer('l2', 500)] };
  const small = candidate('small', { images: [[`${WEB}:1`, 'w1', ['l1']]] });
  const large = candidate('large', { images: [[`${WEB}:2`, 'w2', ['l2']]] });
  const [id, lost] = outcome({ images: [image] }, [small, large]);
  expect(id).toBe('large');
  expect(lost.small).toBe('it shares 10 bytes of layers, the chosen one 500');
});

test('then the size closest to the ephemeral storage, then the newest, then the first id', () => {
  const held = { images: [[`${WEB}:1`, 'w1']] as [string, string][] };
  const near = candidate('near', { ...held, sizeGib: 28, createdUs: 1 });
  const far = candidate('far', { ...held, sizeGib: 20, createdUs: 9 });
  const [closest, lostBySize] = outcome({ images: [web()] }, [far, near]);
  expect([closest, lostBySize.far]).toEqual(['near', "its 20 GiB are farther from the pod's ephemeral storage than 28 GiB"]);
  const old = candidate('old', { ...held, createdUs: 1 });
  const young = candidate('young', { ...held, createdUs: 2 });
  const [newest, lostByAge] = outcome({ images: [web()] }, [old, young]);
  expect([newest, lostByAge.old]).toEqual(['young', 'it is older than young']);
  const [first, lostById] = outcome({ images: [web()] }, [candidate('b', held), candidate('a', held)]);
  expect([first, lostById.b]).toEqual(['a', 'all is equal, and its id comes after a']);
});

test('a tag that moved is told as stale, and the digest rule decides', () => {
  const stale = candidate('stale', { images: [[`${WEB}:1`, 'w1']] });
  const { candidates } = decide({ images: [web(digestOf('w2'))] }, [stale]);
  expect(candidates[0]?.images[0]).toMatchObject({ tier: 'same-reference', isStale: true, isCovered: false });
  const known = decide({ images: [web()] }, [stale]).candidates[0]?.images[0];
  expect(known).toMatchObject({ tier: 'same-reference', isStale: false, isCovered: true });
  const moved = candidate('moved', { images: [['other.example/copy:1', 'w2']] });
  expect(outcome({ images: [web(digestOf('w2'))] }, [stale, moved])[0]).toBe('moved');
});

test('the digest in a reference is the one that counts, and the manifest of an index is as good as the index', () => {
  const cache = candidate('a', { images: [[`${WEB}:1`, 'w1']] });
  for (const digest of [digestOf('w1'), digestOf('w1 platform')]) {
    const found = decide({ images: [{ reference: `${WEB}:7@${digest}` }] }, [cache]);
    expect(found.candidates[0]?.images[0]).toMatchObject({ tier: 'same-digest', isCovered: true });
  }
  const other = decide({ images: [{ reference: `${WEB}@${digestOf('w9')}` }] }, [cache]);
  expect(other.candidates[0]?.images[0]).toMatchObject({ tier: 'same-repository', isCovered: false });
});

test.each([
  [{}, 'near'],
  [{ perfectMatch: true }, 'whole'],
  [{ matchCountRequest: 1 }, 'near'],
  [{ matchCountRequest: 2 }, 'whole'],
  [{ matchCountRequest: 3 }, null],
  // R147: the perfect match goes before the count.
  [{ perfectMatch: true, matchCountRequest: 1 }, 'whole'],
  [{ perfectMatch: false, matchCountRequest: 2 }, 'whole'],
])('coverage %j chooses %s', (rule, expected) => {
  const images = [
    { reference: `${WEB}:1`, digest: digestOf('w1') },
    { reference: `${API}:1`, digest: digestOf('a1'), layers: [layer('x', 1), layer('y', 1)] },
  ];
  const caches = [
    // Nearer by names, but only one image is whole.
    candidate('near', { images: [...imagesOf(['w1', WEB], ['a0', API])] }),
    // Holds the second image by its layers under another name.
    candidate('whole', {
      images: [
        [`${WEB}:1`, 'w1'],
        ['other.example/z:1', 'z1', ['x', 'y']],
      ],
    }),
  ];
  expect(outcome({ images, ...rule }, caches)[0]).toBe(expected);
});

test('an image is whole with all its layers, and not without one', () => {
  const image = { reference: 'new.example/n:1', layers: [layer('x', 5), layer('y', 5)] };
  const all = candidate('all', { images: [['o.example/z:1', 'z1', ['x', 'y', 'q']]] });
  const some = candidate('some', { images: [['o.example/z:1', 'z2', ['x', 'q']]] });
  expect(outcome({ images: [image], perfectMatch: true }, [some, all])[0]).toBe('all');
  expect(outcome({ images: [image], perfectMatch: true }, [some])[0]).toBeNull();
  expect(outcome({ images: [image] }, [some])[0]).toBe('some');
});

test('equal images of a pod count once', () => {
  const cache = candidate('a', { images: [['docker.io/library/nginx:1', 'n1']] });
  const request = { images: [{ reference: 'nginx:1' }, { reference: 'docker.io/library/nginx:1' }], perfectMatch: true };
  expect(decide(request, [cache]).candidates[0]).toMatchObject({ coveredImages: 1, degree: { sameReference: 1 } });
});

test('a pin passes by every rule but the state', () => {
  const pinned = candidate('pinned', { images: [['other.example/x:1', 'x1']], sizeGib: 500 });
  const better = candidate('better', { images: [[`${WEB}:1`, 'w1']] });
  const chosen = decide({ images: [web()], imageCacheId: 'pinned', perfectMatch: true }, [better, pinned]);
  expect(chosen).toMatchObject({ outcome: 'pinned', imageCacheId: 'pinned' });
  expect(chosen.candidates.map((one) => [one.imageCacheId, one.rank, one.lostBecause])).toEqual([
    ['pinned', 1, null],
    ['better', null, 'another cache is pinned'],
  ]);
  const waiting = candidate('pinned', { images: [], status: 'Creating' });
  expect(decide({ images: [web()], imageCacheId: 'pinned' }, [better, waiting])).toMatchObject({ outcome: 'none', imageCacheId: null });
  expect(decide({ images: [web()], imageCacheId: 'absent' }, [better]).reason).toContain('does not exist');
});

test.each([
  { images: [] },
  { images: Array.from({ length: 101 }, (_, n) => ({ reference: `a.example/x:${n}` })) },
  { images: [{ reference: 'registry.example/UPPER' }] },
  { images: [{ reference: 'a' }], matchCountRequest: 0 },
  { images: [{ reference: 'a' }], extraEphemeralStorage: 5001 },
  { images: [{ reference: 'a', digest: 'sha1:1' }] },
  { images: [{ reference: 'a' }], unknown: 1 },
])('the request %j is refused', (request) => {
  expect(() => parseQuery(request as MatchRequest, 30)).toThrowError(
    expect.objectContaining({ code: 'InvalidArgument', details: expect.objectContaining({ reason: 'InvalidParameter' }) }),
  );
});

test('the index forgets what is deleted or replaced, and finds room again', () => {
  const index = new MatchIndex();
  const query = parseQuery({ images: [web()] }, 30);
  for (let n = 0; n < 200; n += 1) index.set(candidate(`c${n}`, { images: [[`${WEB}:1`, `w${n}`]], createdUs: n }));
  expect(index.best(query)?.id).toBe('c199');
  index.delete('c199');
  expect(index.best(query)?.id).toBe('c198');
  index.set(candidate('c198', { images: [['other.example/x:1', 'x']] }));
  expect(index.best(query)?.id).toBe('c197');
  index.set(candidate('c197', { images: [[`${WEB}:1`, 'w']], status: 'Failed' }));
  expect(index.best(query)?.id).toBe('c196');
  for (let n = 0; n < 200; n += 1) index.delete(`c${n}`);
  expect([index.size, index.best(query)]).toEqual([0, undefined]);
});
