/** What the chunk store tells the rest of the process, beside its log: one record an occurrence, for events and metrics. */
import type { Digest } from '../../base/digest.ts';

export type StoreEvent =
  /** Fetched bytes cannot be kept on disk; reads go on from the network. `reason`: `budget` or the system's error code. */
  | { kind: 'store-degraded'; reason: string; detail: string }
  | { kind: 'store-recovered' }
  /** What lay on disk for a blob could not be believed and was forgotten; it will be fetched again. */
  | { kind: 'blob-reset'; digest: string; detail: string }
  /** All bytes of a blob are there and they are not the bytes its digest names. They are forgotten. */
  | { kind: 'blob-corrupt'; digest: Digest; detail: string };
