/**
 * Readers of changes. A slow one is told the newest state of each cache, so what waits for it is bounded by the number of caches that it
 * knows and that exist. Ours.
 */
import { AppError } from '../base/errors.ts';
import type { CacheChange, ImageCache } from './types.ts';

/** Pages, followers and controllers of one node; each is a connection. */
const MAX_WATCHERS = 200;

/** What a filter looks at; it never changes. */
export type Watched = Pick<ImageCache, 'imageCacheId' | 'owner'>;
type Passes = (cache: Watched) => boolean;

/** The state is asked for when the reader takes the change; a deleted cache is kept as it last was. */
type Waiting = { readonly kind: 'added' | 'changed' } | { readonly kind: 'deleted'; readonly cache: ImageCache };

class Watcher {
  readonly waiting = new Map<string, Waiting>();
  readonly passes: Passes;
  private wake: (() => void) | undefined;

  constructor(passes: Passes) {
    this.passes = passes;
  }

  note(id: string, next: Waiting): void {
    const former = this.waiting.get(id);
    // Never told of: it never was. Told as added later: it is still new.
    if (former?.kind === 'added' && next.kind === 'deleted') this.waiting.delete(id);
    else if (!(former?.kind === 'added' && next.kind === 'changed')) this.waiting.set(id, next);
    this.poke();
  }

  poke(): void {
    this.wake?.();
    this.wake = undefined;
  }

  /** Resolves when something waits, or it is poked. */
  ready(): Promise<void> {
    if (this.waiting.size > 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.wake = resolve;
    });
  }
}

export class Watchers {
  private readonly watchers = new Set<Watcher>();
  private readonly view: (id: string) => ImageCache | undefined;
  private isStopped = false;

  /** `view` shows a cache as it is now; undefined: it is gone. */
  constructor(view: (id: string) => ImageCache | undefined) {
    this.view = view;
  }

  /** Every present cache as added, then changes, until the signal or {@link stop}. Throws ResourceExhausted when too many read. */
  watch(present: Iterable<Watched>, passes: Passes, signal: AbortSignal): AsyncIterable<CacheChange> {
    if (this.watchers.size >= MAX_WATCHERS) {
      throw new AppError('ResourceExhausted', { op: 'watch', subject: 'image caches', what: `${MAX_WATCHERS} readers watch already` });
    }
    const watcher = new Watcher(passes);
    for (const cache of present) if (passes(cache)) watcher.waiting.set(cache.imageCacheId, { kind: 'added' });
    this.watchers.add(watcher);
    // A reader that never began has nothing else that would take it off the list.
    const onAbort = (): void => {
      this.watchers.delete(watcher);
      watcher.poke();
    };
    signal.addEventListener('abort', onAbort, { once: true });
    return this.read(watcher, signal, onAbort);
  }

  added(cache: Watched): void {
    this.tell(cache, { kind: 'added' });
  }

  changed(cache: Watched): void {
    this.tell(cache, { kind: 'changed' });
  }

  deleted(cache: ImageCache): void {
    this.tell(cache, { kind: 'deleted', cache });
  }

  stop(): void {
    this.isStopped = true;
    for (const watcher of this.watchers) watcher.poke();
  }

  private tell(cache: Watched, waiting: Waiting): void {
    for (const watcher of this.watchers) if (watcher.passes(cache)) watcher.note(cache.imageCacheId, waiting);
  }

  private async *read(watcher: Watcher, signal: AbortSignal, onAbort: () => void): AsyncGenerator<CacheChange> {
    try {
      for (;;) {
        if (signal.aborted || this.isStopped) return;
        await watcher.ready();
        for (const [id, waiting] of watcher.waiting) {
          if (signal.aborted || this.isStopped) return;
          watcher.waiting.delete(id);
          const cache = waiting.kind === 'deleted' ? waiting.cache : this.view(id);
          // Gone meanwhile: its deletion waits already, or is no news to who never saw it.
          if (cache !== undefined) yield { kind: waiting.kind, cache };
        }
      }
    } finally {
      signal.removeEventListener('abort', onAbort);
      this.watchers.delete(watcher);
    }
  }
}
