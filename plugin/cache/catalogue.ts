/**
 * All caches: in memory for questions, in the database for ever. Every change is durable before anybody hears of it, and every index is kept
 * up with it. Knows no rules but the table of states. Ours.
 */
import assert from 'node:assert';
import type { CacheStore } from '../../db/cache-store.ts';
import { ByteLedger } from './byte-ledger.ts';
import { type CacheRecord, countedImages, imageRowsOf, isoOfUs, pinnedOf, recordOf, rowOf, viewOf } from './cache-record.ts';
import { assertMove } from './cache-states.ts';
import type { CacheTime } from './cache-time.ts';
import { ImageUsers } from './image-users.ts';
import { MatchIndex } from './match-index.ts';
import { type Candidate, candidateOf } from './match-query.ts';
import type { RetentionRules } from './retention.ts';
import type { CacheEvent, CacheOwner, ImageCache } from './types.ts';
import { cacheError } from './validation.ts';
import { Watchers } from './watchers.ts';

export interface NewEvent {
  readonly type: 'Normal' | 'Warning';
  readonly reason: string;
  readonly message: string;
}

/** An event is read on one screen; what registries say can be longer. */
const MAX_MESSAGE_CHARS = 1000;
/** Progress becomes durable in steps of so many percent; watchers see each. */
const PERSIST_PERCENT = 10;
/** A match becomes durable when the last durable one is older: a kill makes the order of use wrong by so much at most. */
const PERSIST_MATCH_US = 60_000_000;

/** Fields that are no business of clients: their change makes no new version. */
const UNSEEN: ReadonlySet<string> = new Set<keyof CacheRecord>(['attempts', 'workSinceUs']);

export type Change = Partial<Omit<CacheRecord, 'id' | 'owner' | 'createdUs' | 'version' | 'updatedUs'>>;

export class Catalogue {
  readonly time: CacheTime;
  readonly rules: RetentionRules;
  readonly index = new MatchIndex();
  readonly ledger = new ByteLedger();
  readonly users = new ImageUsers();
  readonly watchers = new Watchers((id) => (this.records.has(id) ? this.view(id) : undefined));
  private readonly store: CacheStore;
  private readonly records = new Map<string, CacheRecord>();
  private readonly idOfName = new Map<string, string>();
  private readonly candidates = new Map<string, Candidate>();
  /** Matches as they are in the database. */
  private readonly durableMatchUs = new Map<string, number>();
  private readonly durableProgress = new Map<string, number>();

  constructor(store: CacheStore, time: CacheTime, rules: RetentionRules) {
    this.store = store;
    this.time = time;
    this.rules = rules;
    for (const { row, images } of store.load()) this.remember(recordOf(row, images));
  }

  /** Newest first. */
  all(): CacheRecord[] {
    return [...this.records.values()].sort((a, b) => b.createdUs - a.createdUs || (a.id < b.id ? -1 : 1));
  }

  ofOwner(owner: CacheOwner): CacheRecord[] {
    return [...this.records.values()].filter((record) => record.owner === owner);
  }

  find(id: string): CacheRecord | undefined {
    return this.records.get(id);
  }

  /** Throws NotFound. */
  get(id: string): CacheRecord {
    const record = this.records.get(id);
    if (record === undefined) throw notFound(id);
    return record;
  }

  named(name: string): CacheRecord | undefined {
    const id = this.idOfName.get(name);
    return id === undefined ? undefined : this.records.get(id);
  }

  /** Every cache as the matcher sees it. */
  matchable(): Iterable<Candidate> {
    return this.candidates.values();
  }

  /** Caches, whatever their state. */
  get count(): number {
    return this.records.size;
  }

  /** Of those that pods cannot have now, some that hold an image of these repositories. */
  notServing(repositories: ReadonlySet<string>, atMost: number): Candidate[] {
    const found: Candidate[] = [];
    for (const candidate of this.candidates.values()) {
      if (found.length >= atMost) break;
      if (!candidate.serves && candidate.images.some(({ repository }) => repositories.has(repository))) found.push(candidate);
    }
    return found;
  }

  view(id: string): ImageCache {
    return viewOf(this.get(id), this.events(id), this.rules);
  }

  /** Oldest first; none for an unknown id. */
  events(id: string): CacheEvent[] {
    return this.store.events(id).map(({ type, reason, message, number, count, firstUs, lastUs }) => ({
      ...{ type, reason, message, count, name: `${id}.${number.toString(16)}` },
      firstTimestamp: isoOfUs(firstUs),
      lastTimestamp: isoOfUs(lastUs),
    }));
  }

  /** Adds a cache with its first event. `beside` is made durable with it. */
  insert(record: CacheRecord, event: NewEvent, beside: () => void): void {
    this.store.transaction(() => {
      this.store.insert(rowOf(record), imageRowsOf(record));
      this.storeEvent(record.id, event);
      beside();
    });
    this.remember(record);
    this.watchers.added(watched(record));
  }

  /** Changes a cache; a change of state must be an allowed move. `beside` is made durable with it. */
  change(id: string, change: Change, events: readonly NewEvent[] = [], beside?: () => void): CacheRecord {
    const former = this.get(id);
    if (change.status !== undefined && change.status !== former.status) assertMove(former.status, change.status);
    const isSeen = Object.keys(change).some((field) => !UNSEEN.has(field));
    const record: CacheRecord = {
      ...{ ...former, ...change },
      ...(isSeen ? { version: former.version + 1, updatedUs: this.time.nowUs() } : {}),
    };
    this.store.transaction(() => {
      this.store.update(id, rowOf(record));
      if (change.images !== undefined || change.pending !== undefined) this.store.replaceImages(id, imageRowsOf(record));
      for (const event of events) this.storeEvent(id, event);
      beside?.();
    });
    this.forget(former);
    this.remember(record);
    this.watchers.changed(watched(record));
    return record;
  }

  /** Something worth knowing that changes nothing. A cache that has gone meanwhile has no events. */
  note(id: string, event: NewEvent): void {
    const record = this.records.get(id);
    if (record === undefined) return;
    this.store.transaction(() => this.storeEvent(id, event));
    this.watchers.changed(watched(record));
  }

  /** Percent that never fall; durable in steps. A cache that has gone meanwhile has none. */
  progress(id: string, kind: 'progress' | 'flashProgress', percent: number): void {
    const record = this.records.get(id);
    if (record === undefined || percent <= (record[kind] ?? 0)) return;
    const changed = { ...record, [kind]: percent };
    const key = `${id} ${kind}`;
    if (percent - (this.durableProgress.get(key) ?? 0) >= PERSIST_PERCENT) {
      this.store.update(id, { [kind]: percent });
      this.durableProgress.set(key, percent);
    }
    this.records.set(id, changed);
    this.watchers.changed(watched(changed));
  }

  /** A pod got it. */
  matched(id: string): CacheRecord {
    const former = this.get(id);
    const matchedUs = this.time.nowUs();
    const record = { ...former, matchedUs, matchCount: former.matchCount + 1 };
    this.records.set(id, record);
    const durableUs = this.durableMatchUs.get(id);
    if (durableUs === undefined || matchedUs - durableUs >= PERSIST_MATCH_US) this.persistMatch(record);
    this.watchers.changed(watched(record));
    return record;
  }

  /** Makes every match durable. */
  flush(): void {
    const behind = [...this.records.values()].filter(
      ({ id, matchedUs }) => matchedUs !== null && this.durableMatchUs.get(id) !== matchedUs,
    );
    if (behind.length === 0) return;
    this.store.transaction(() => {
      for (const record of behind) this.persistMatch(record);
    });
  }

  /** Gone for everybody; remembered for a second deletion. Its credentials are gone for good. */
  delete(id: string): void {
    const record = this.get(id);
    const last = this.view(id);
    this.store.transaction(() => this.store.update(id, { deletedUs: this.time.nowUs(), credentials: null }));
    this.forget(record);
    this.durableMatchUs.delete(id);
    this.durableProgress.delete(`${id} progress`);
    this.durableProgress.delete(`${id} flashProgress`);
    this.watchers.deleted(last);
  }

  private persistMatch({ id, matchedUs, matchCount }: CacheRecord): void {
    this.store.update(id, { matchedUs, matchCount });
    if (matchedUs !== null) this.durableMatchUs.set(id, matchedUs);
  }

  private storeEvent(cacheId: string, { type, reason, message }: NewEvent): void {
    this.store.addEvent({ cacheId, type, reason, message: message.slice(0, MAX_MESSAGE_CHARS) }, this.time.nowUs());
  }

  private remember(record: CacheRecord): void {
    const { id, name, matchedUs } = record;
    assert(!this.idOfName.has(name), `two caches have the name ${name}`);
    this.records.set(id, record);
    this.idOfName.set(name, id);
    if (matchedUs !== null) this.durableMatchUs.set(id, matchedUs);
    this.durableProgress.set(`${id} progress`, record.progress);
    this.durableProgress.set(`${id} flashProgress`, record.flashProgress ?? 0);
    const candidate = candidateOf(record);
    this.candidates.set(id, candidate);
    this.index.set(candidate);
    const held = countedImages(record);
    this.ledger.set(id, pinnedOf(held));
    this.users.set(id, held);
  }

  /** Out of the indexes; what takes its place is remembered after it. */
  private forget({ id, name }: CacheRecord): void {
    this.records.delete(id);
    this.idOfName.delete(name);
    this.candidates.delete(id);
    this.index.delete(id);
    this.ledger.set(id, []);
    this.users.set(id, []);
  }
}

function watched({ id, owner }: CacheRecord): { imageCacheId: string; owner: CacheOwner } {
  return { imageCacheId: id, owner };
}

export function notFound(id: string): Error {
  return cacheError('ImageCacheNotFound', { op: 'find', subject: id.slice(0, 100), what: 'there is no image cache of this id' });
}
