/**
 * Finds the winner of `match.ts` without looking at every cache: for each digest, reference, repository and layer it knows the caches that
 * have it. Kept up with every change. Ours.
 *
 * Caches have small numbers (slots); what one query counts lies in typed arrays by slot, and only the touched ones are cleared after it.
 * Each pod image counts in one of three fields of a slot's score, so that a whole degree but the bytes compares as one number:
 *
 *   bits 20–29 same digest │ 10–19 same reference │ 0–9 same repository      (100 images a pod at most)
 */
import { type Candidate, type MatchQuery, neededCoverage, type QueryImage } from './match-query.ts';

const BY_DIGEST = 1 << 20;
const BY_REFERENCE = 1 << 10;
const BY_REPOSITORY = 1;

/** Slots of the caches that have one thing; in no order. */
type Postings = Map<string, number[]>;

const NONE: readonly number[] = [];

/** What names a cache: each once, however many of its images have it. */
interface Keys {
  readonly digests: ReadonlySet<string>;
  readonly references: ReadonlySet<string>;
  readonly repositories: ReadonlySet<string>;
  readonly layers: ReadonlySet<string>;
}

function keysOf({ images, layers }: Candidate): Keys {
  return {
    digests: new Set(images.flatMap((image) => [image.digest, image.platformDigest])),
    references: new Set(images.flatMap((image) => image.tagReference ?? [])),
    repositories: new Set(images.map((image) => image.repository)),
    layers,
  };
}

export class MatchIndex {
  private readonly slotOf = new Map<string, number>();
  private readonly free: number[] = [];
  private caches: (Candidate | undefined)[] = [];
  private keys: (Keys | undefined)[] = [];
  private readonly digests: Postings = new Map();
  private readonly references: Postings = new Map();
  private readonly repositories: Postings = new Map();
  private readonly layers: Postings = new Map();
  /** By slot; see {@link grow}. */
  private scores = new Int32Array(0);
  private covered = new Int32Array(0);
  private bytes = new Float64Array(0);
  private sizes = new Int32Array(0);
  /** Number of the image that a slot was last counted for, so that the best tier alone counts. */
  private counted = new Int32Array(0);
  private coveredFor = new Int32Array(0);
  private readonly touched: number[] = [];

  /** Caches in it. */
  get size(): number {
    return this.slotOf.size;
  }

  /** Adds a cache, or replaces what is known of it. One that does not serve is left out. */
  set(cache: Candidate): void {
    this.delete(cache.id);
    if (!cache.serves) return;
    const slot = this.free.pop() ?? this.caches.length;
    if (slot >= this.scores.length) this.grow();
    this.slotOf.set(cache.id, slot);
    this.caches[slot] = cache;
    this.sizes[slot] = cache.sizeGib;
    const keys = keysOf(cache);
    this.keys[slot] = keys;
    for (const [postings, names] of this.postingsOf(keys)) {
      for (const name of names) {
        const slots = postings.get(name);
        if (slots === undefined) postings.set(name, [slot]);
        else slots.push(slot);
      }
    }
  }

  delete(id: string): void {
    const slot = this.slotOf.get(id);
    if (slot === undefined) return;
    for (const [postings, names] of this.postingsOf(this.keys[slot]!)) {
      for (const name of names) {
        const slots = postings.get(name)!;
        slots[slots.indexOf(slot)] = slots.at(-1)!;
        slots.pop();
        if (slots.length === 0) postings.delete(name);
      }
    }
    this.slotOf.delete(id);
    this.caches[slot] = undefined;
    this.keys[slot] = undefined;
    this.free.push(slot);
  }

  /** The cache that `explainMatch` ranks first; undefined: none can be chosen. Pins are not looked at. */
  best(query: MatchQuery): Candidate | undefined {
    const needed = neededCoverage(query);
    query.images.forEach((image, index) => {
      this.countNames(image, index + 1);
      if (needed > 0) this.countCovered(image, index + 1);
    });
    const winner = this.choose(query, needed);
    this.clear();
    return winner;
  }

  /** The best and others that have something in common with the pod, `atMost` in all: for who wants to say why they lost. */
  near(query: MatchQuery, atMost: number): Candidate[] {
    const best = this.best(query);
    const found = new Set(best === undefined ? [] : [best]);
    for (const { digest, tagReference, repository, layers = [] } of query.images) {
      const postings = [
        digest === undefined ? NONE : this.digests.get(digest),
        tagReference === undefined ? NONE : this.references.get(tagReference),
        this.repositories.get(repository),
        ...layers.map((layer) => this.layers.get(layer.digest)),
      ];
      for (const slot of postings.flatMap((slots = NONE) => slots.slice(0, atMost))) {
        if (found.size >= atMost) return [...found];
        found.add(this.caches[slot]!);
      }
    }
    return [...found];
  }

  private choose(query: MatchQuery, needed: number): Candidate | undefined {
    const { covered, scores, sizes } = this;
    const isFit = (slot: number): boolean => covered[slot]! >= needed && sizes[slot]! <= query.ephemeralStorage;
    let best = 0;
    for (const slot of this.touched) if (scores[slot]! > best && isFit(slot)) best = scores[slot]!;
    if (best === 0 && needed === 0) {
      this.countLayers(query);
      return this.nearest(this.touched, isFit, query);
    }
    const equals = this.touched.filter((slot) => scores[slot] === best && isFit(slot));
    // One alone needs no further comparison, unless it is here for its layers only.
    if (equals.length > 1 || best === 0) for (const slot of equals) this.bytes[slot] = this.sharedBytes(slot, query);
    return this.nearest(equals, isFit, query);
  }

  /** Of slots with equal scores: most bytes, closest size, newest, first id. Those that share nothing at all are none. */
  private nearest(slots: readonly number[], isFit: (slot: number) => boolean, { ephemeralStorage }: MatchQuery): Candidate | undefined {
    const { bytes, scores } = this;
    let best: number | undefined;
    for (const slot of slots) {
      if (best !== undefined && bytes[slot]! < bytes[best]!) continue;
      if (bytes[slot] === 0 && scores[slot] === 0) continue;
      if (isFit(slot) && (best === undefined || this.isBetter(slot, best, ephemeralStorage))) best = slot;
    }
    return best === undefined ? undefined : this.caches[best];
  }

  private isBetter(slot: number, than: number, ephemeralStorage: number): boolean {
    const byBytes = this.bytes[slot]! - this.bytes[than]!;
    if (byBytes !== 0) return byBytes > 0;
    const a = this.caches[slot]!;
    const b = this.caches[than]!;
    const bySize = Math.abs(ephemeralStorage - b.sizeGib) - Math.abs(ephemeralStorage - a.sizeGib);
    if (bySize !== 0) return bySize > 0;
    if (a.createdUs !== b.createdUs) return a.createdUs > b.createdUs;
    return a.id < b.id;
  }

  private countNames({ digest, tagReference, repository }: QueryImage, image: number): void {
    if (digest !== undefined) this.countIn(this.digests.get(digest), BY_DIGEST, image);
    if (tagReference !== undefined) this.countIn(this.references.get(tagReference), BY_REFERENCE, image);
    this.countIn(this.repositories.get(repository), BY_REPOSITORY, image);
  }

  private countIn(slots: readonly number[] = NONE, weight: number, image: number): void {
    for (const slot of slots) {
      if (this.counted[slot] === image) continue;
      this.touch(slot);
      this.counted[slot] = image;
      this.scores[slot]! += weight;
    }
  }

  /** Counts the caches that hold the image whole. */
  private countCovered(image: QueryImage, number: number): void {
    const { digest, tagReference, layers } = image;
    const slots =
      digest !== undefined ? this.digests.get(digest) : tagReference === undefined ? undefined : this.references.get(tagReference);
    for (const slot of slots ?? NONE) this.cover(slot, number);
    if (layers === undefined || layers.length === 0) return;
    const postings = layers.map((layer) => this.layers.get(layer.digest) ?? NONE);
    const rarest = postings.reduce((least, one) => (one.length < least.length ? one : least));
    for (const slot of rarest) {
      const held = this.caches[slot]!.layers;
      if (this.coveredFor[slot] !== number && layers.every((layer) => held.has(layer.digest))) this.cover(slot, number);
    }
  }

  private cover(slot: number, image: number): void {
    this.touch(slot);
    this.coveredFor[slot] = image;
    this.covered[slot]! += 1;
  }

  private sharedBytes(slot: number, query: MatchQuery): number {
    const held = this.caches[slot]!.layers;
    let sum = 0;
    for (const { layers } of query.images) for (const layer of layers ?? []) if (held.has(layer.digest)) sum += layer.sizeBytes;
    return sum;
  }

  /** For pods of whose names nothing is known here: the layers decide. */
  private countLayers(query: MatchQuery): void {
    const weights = new Map<string, number>();
    for (const { layers } of query.images) {
      for (const { digest, sizeBytes } of layers ?? []) weights.set(digest, (weights.get(digest) ?? 0) + sizeBytes);
    }
    for (const [digest, weight] of weights) {
      for (const slot of this.layers.get(digest) ?? NONE) {
        this.touch(slot);
        this.bytes[slot]! += weight;
      }
    }
  }

  /** A slot is in the list once: `counted` is negative until it is touched. */
  private touch(slot: number): void {
    if (this.counted[slot] !== UNTOUCHED) return;
    this.counted[slot] = 0;
    this.touched.push(slot);
  }

  private clear(): void {
    for (const slot of this.touched) {
      this.scores[slot] = 0;
      this.covered[slot] = 0;
      this.bytes[slot] = 0;
      this.coveredFor[slot] = 0;
      this.counted[slot] = UNTOUCHED;
    }
    this.touched.length = 0;
  }

  private postingsOf({ digests, references, repositories, layers }: Keys): [Postings, ReadonlySet<string>][] {
    return [
      [this.digests, digests],
      [this.references, references],
      [this.repositories, repositories],
      [this.layers, layers],
    ];
  }

  private grow(): void {
    const length = Math.max(64, this.scores.length * 2);
    this.scores = new Int32Array(length);
    this.covered = new Int32Array(length);
    this.bytes = new Float64Array(length);
    this.coveredFor = new Int32Array(length);
    this.counted = new Int32Array(length).fill(UNTOUCHED);
    const { sizes } = this;
    this.sizes = new Int32Array(length);
    this.sizes.set(sizes);
  }
}

const UNTOUCHED = -1;
