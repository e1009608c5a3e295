/** What the scheduler knows about one blob while some device uses it. */
import { setMaxListeners } from 'node:events';
import type { AppError } from '../../base/errors.ts';
import type { BlobSource } from '../../file/device-spec.ts';
import type { BlobHandle } from '../../file/store/blob-handle.ts';
import type { Fetch } from './fetch.ts';
import { Fifo, type HostGroup } from './fetch-queue.ts';
import { FetchCounters } from './fetch-stats.ts';
import type { FetchPriority } from './fetch-types.ts';
import { StreamDetector } from './stream-detector.ts';
import { UnitMirrors } from './unit-mirrors.ts';

/** As many as one image may name; the others are forgotten, least recently asked for first. */
const MAX_REPOSITORIES = 16;

export class BlobFetches {
  readonly handle: BlobHandle;
  /** Where the bytes may come from. */
  source: BlobSource;
  readonly group: HostGroup;
  /** The fetch that will bring a unit, waiting or under way. */
  readonly units = new Map<number, Fetch>();
  readonly lines: Record<FetchPriority, Fifo<Fetch>> = { demand: new Fifo(), prefetch: new Fifo(), fill: new Fifo() };
  readonly streams: StreamDetector;
  readonly counters = new FetchCounters();
  /** Ends with the blob's last reader; verification and background fill watch it. */
  readonly gone = new AbortController();
  inFlight = 0;
  /** Failures in a row, and the last one; 0 and undefined while all is well. */
  failures = 0;
  lastError: AppError | undefined;
  failingSinceMs = 0;
  /** True during the pause after a failure. */
  isParked = false;
  lastMirror: string | undefined;
  readonly mirrors: UnitMirrors;
  /** Mirrors that sent units which a read found wrong. */
  readonly provenWrong = new Set<string>();
  /** When a unit was last fetched again because its bytes proved wrong. */
  readonly repairedAtMs = new Map<number, number>();
  /** Units that are being repaired, and the mirrors that sent the wrong bytes: whoever asks for such a unit asks others first. */
  readonly repairing = new Map<number, readonly string[]>();
  isVerifying = false;
  /** Its complete bytes were not what the digest names: it is not filled by itself again, and these mirrors are asked last. */
  isCorrupt = false;
  distrustedMirrors: readonly string[] = [];
  /** They were wrong again: nothing of it is served while it is in use. */
  isCondemned = false;
  failedToldAtMs = Number.NEGATIVE_INFINITY;
  private asker: BlobHandle;

  constructor(handle: BlobHandle, group: HostGroup) {
    this.handle = handle;
    this.source = handle.source;
    this.asker = handle;
    this.group = group;
    setMaxListeners(0, this.gone.signal);
    this.streams = new StreamDetector(handle.unitCount, (unit) => handle.isAccessed(unit));
    this.mirrors = new UnitMirrors(handle.unitCount);
  }

  /**
   * Bytes are wanted through `handle`. Images that share a blob may name different registries: that of the last to ask comes first, so
   * that one image's registry, gone or slow, does not keep the blob from the others.
   */
  askedThrough(handle: BlobHandle): void {
    if (handle === this.asker) return;
    this.asker = handle;
    const repositories = new Map(
      [...handle.source.repositories, ...this.source.repositories].map((each) => [`${each.host}/${each.repository}`, each]),
    );
    this.source = { ...handle.source, repositories: [...repositories.values()].slice(0, MAX_REPOSITORIES) };
  }

  /**
   * Whom to ask last when the whole is wrong: who was found out unit by unit, if somebody else sent anything; else who sent something last.
   */
  suspects(): string[] {
    const isTellingApart = this.mirrors.all().some((mirror) => !this.provenWrong.has(mirror));
    if (this.provenWrong.size > 0 && isTellingApart) return [...this.provenWrong];
    return this.lastMirror === undefined ? [] : [this.lastMirror];
  }

  get isGone(): boolean {
    return this.gone.signal.aborted;
  }
}
