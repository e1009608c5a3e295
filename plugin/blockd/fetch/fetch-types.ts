/** The words of the fetch scheduler: what it is given, what it tells. */
import type { ErrorCode } from '../../base/errors.ts';
import type { BlobSource } from '../../file/device-spec.ts';

/** `demand`: a reader waits. `prefetch`: a stream will come there. `fill`: the rest of the blob, when nothing else is to be done. */
export type FetchPriority = 'demand' | 'prefetch' | 'fill';

export interface FetchOptions {
  signal: AbortSignal;
  /** 1 for the first try of this range. */
  attempt: number;
  /** Mirrors that gave wrong bytes for this range, or none; another one is to be asked if there is one. */
  avoidMirrors?: readonly string[];
  /** To be told each mirror that is asked: the last one is to blame for silence. */
  onAsked: (mirror: string) => void;
  /** To be told which mirror answers, before the bytes are returned. */
  servedBy: (mirror: string) => void;
  /** A buffer of the range's length that may be used for the answer; nobody may write to it after the promise has settled well. */
  target: Uint8Array<ArrayBuffer>;
  /** To be called when bytes arrive; a request without any for long is taken for stuck. */
  onProgress: () => void;
}

/**
 * Fetches exactly `lengthBytes` at `offsetBytes` of a blob. Rejects with AppError; its code decides on the retry (see retry-policy.ts).
 * The answer is owned by the scheduler from then on.
 */
export type FetchRange = (source: BlobSource, offsetBytes: number, lengthBytes: number, options: FetchOptions) => Promise<Uint8Array>;

export type FetchEvent =
  /** Reads of this blob wait, because its registry does not answer as it should. */
  | { kind: 'fetch-waiting'; digest: string; code: ErrorCode; detail: string }
  /** The registry answers again. */
  | { kind: 'fetch-resumed'; digest: string; waitedMs: number }
  /** A read was given up: the container sees an I/O error. */
  | { kind: 'fetch-failed'; digest: string; code: ErrorCode; detail: string };

export interface FetchLimits {
  /** Requests in flight in all. 3,000 misses/s at 20 ms take 60 to 70; the rest is for registries that are slow or stuck. */
  inFlight: number;
  /** Requests in flight for the blobs of the same registries: two stuck ones leave a fifth of the slots to the others. */
  inFlightPerHosts: number;
  /** Requests in flight for one blob; within one registry, a stuck blob leaves room to the others. */
  inFlightPerBlob: number;
  /** Bytes asked for and not yet stored; one more request may pass it. */
  inFlightBytes: number;
  /** Requests of demand that wait for a slot; more are refused with ResourceExhausted. FUSE itself admits fewer. */
  queuedDemand: number;
  /** Requests of prefetch that wait for a slot; more are not made. */
  queuedPrefetch: number;
}

export const DEFAULT_FETCH_LIMITS: FetchLimits = {
  inFlight: 320,
  inFlightPerHosts: 128,
  inFlightPerBlob: 112,
  inFlightBytes: 64 * 1024 * 1024,
  queuedDemand: 65_536,
  queuedPrefetch: 256,
};

export interface FillOptions {
  /** From the moment a blob is attached. */
  delayMs: number;
  /** 0: as fast as one request at a time goes. */
  rateBytesPerS: number;
}
