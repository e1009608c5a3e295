/**
 * How long a match takes over many caches: pods whose images are known by digest, whose tags moved, and of which only layers are known, which
 * is the hardest, since half of all caches share a base with any pod.
 */
import { type Digest, sha256 } from '../../../plugin/base/digest.ts';
import { MatchIndex } from '../../../plugin/cache/match-index.ts';
import { type Candidate, type CandidateImage, parseQuery } from '../../../plugin/cache/match-query.ts';
import type { MatchRequest, PodImage } from '../../../plugin/cache/service.ts';

const CACHES = 10_000;
const IMAGES = 20;
const APPS = 20_000;
const BASES = 40;
const RUNTIMES = 400;
const QUERIES = 2_000;
const MAX_POD_IMAGES = 5;

export const MATCH_TITLE = `Match over ${CACHES} caches of ${IMAGES} images`;

export interface MatchSeries {
  kind: string;
  /** Wall time: what a pod waits, other processes of the machine included. */
  callsMs: number[];
}

/** xorshift32: the same caches in every run. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % below;
  };
}

interface App {
  repository: string;
  layers: readonly { digest: Digest; sizeBytes: number }[];
}

function makeApps(): App[] {
  const next = random(1);
  const named = (name: string): { digest: Digest; sizeBytes: number } => ({ digest: sha256(name), sizeBytes: (next(60) + 1) << 20 });
  const bases = Array.from({ length: BASES }, (_, n) => [named(`base ${n} 1`), named(`base ${n} 2`)]);
  const runtimes = Array.from({ length: RUNTIMES }, (_, n) => [named(`runtime ${n} 1`), named(`runtime ${n} 2`), named(`runtime ${n} 3`)]);
  return Array.from({ length: APPS }, (_, n) => ({
    repository: `registry.example/team/app-${n}`,
    // Few bases carry most images.
    layers: [
      ...bases[next(2) === 0 ? next(3) : next(BASES)]!,
      ...runtimes[next(RUNTIMES)]!,
      ...Array.from({ length: 6 }, (_, layer) => named(`app ${n} ${layer}`)),
    ],
  }));
}

const digestOf = (app: number, version: number): Digest => sha256(`image ${app} ${version}`);

function makeCaches(apps: readonly App[]): { cache: Candidate; held: { app: number; version: number }[] }[] {
  const next = random(2);
  return Array.from({ length: CACHES }, (_, n) => {
    const held = Array.from({ length: IMAGES }, () => ({ app: next(APPS), version: next(5) }));
    const images = held.map(({ app, version }): CandidateImage => {
      const { repository } = apps[app]!;
      const reference = `${repository}:${version}`;
      return { reference, tagReference: reference, repository, digest: digestOf(app, version), platformDigest: digestOf(app, version) };
    });
    const layers = new Set(held.flatMap(({ app }) => apps[app]!.layers.map((layer) => layer.digest)));
    const id = `imc-${String(n).padStart(20, '0')}`;
    return { cache: { id, name: id, status: 'Ready', serves: true, sizeGib: 20 + next(10), createdUs: n, images, layers }, held };
  });
}

/** Each decision, from the request to the chosen cache. */
export function measureMatches(): MatchSeries[] {
  const apps = makeApps();
  const caches = makeCaches(apps);
  const index = new MatchIndex();
  for (const { cache } of caches) index.set(cache);
  const next = random(3);
  const pod = (image: () => PodImage): MatchRequest => ({ images: Array.from({ length: next(MAX_POD_IMAGES) + 1 }, image) });
  const known = (): PodImage => {
    const { held } = caches[next(CACHES)]!;
    const { app, version } = held[next(IMAGES)]!;
    return { reference: `${apps[app]!.repository}:${version}`, digest: digestOf(app, version), layers: [...apps[app]!.layers] };
  };
  const kinds: [string, () => MatchRequest][] = [
    ['known by digest', () => pod(known)],
    ['perfect match asked for', () => ({ ...pod(known), perfectMatch: true })],
    ['tags that moved', () => pod(() => ({ ...known(), digest: sha256(`moved ${next(1_000_000)}`) }))],
    ['reference alone', () => pod(() => ({ reference: known().reference }))],
    ['unknown names, layers known', () => pod(() => ({ reference: `new.example/app-${next(1_000_000)}:1`, layers: known().layers! }))],
  ];
  return kinds.map(([kind, make]) => {
    const requests = Array.from({ length: QUERIES }, make);
    const callsMs = requests.map((request) => {
      const started = performance.now();
      index.best(parseQuery(request, 30));
      return performance.now() - started;
    });
    return { kind, callsMs };
  });
}
