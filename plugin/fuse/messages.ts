/** What the threads of the data plane say to each other. Everything here survives structured cloning; big tables are shared memory. */
import type { DeviceTables } from '../file/device-file.ts';
import type { SharedBlob } from '../file/store/blob-file.ts';

/** What a worker needs to start. */
export interface WorkerStart {
  epollFd: number;
  /** Which worker it is, from 0: its row in a device's counts. */
  index: number;
  /** Int32: [0] 1 = stop, [1] count of messages posted to the workers. */
  control: SharedArrayBuffer;
  /** Float64, see {@link STAT}; one array a worker. */
  stats: SharedArrayBuffer;
  maxBackground: number;
}

export const CONTROL = { STOP: 0, MAIL: 1 } as const;
/** Of one device in one worker: Float64, `COUNT` of them a row. */
export const DEVICE_COUNT = { READS: 0, BYTES: 1, COUNT: 2 } as const;
/** TID: the worker's thread, as /proc knows it. BEATS grows with each request and each wait, so that a worker which hangs anywhere is one whose count stands still. */
export const STAT = { BEATS: 0, REQUESTS: 1, READS: 2, MISSES: 3, BYTES: 4, TID: 5, COUNT: 6 } as const;

/** To a worker. A slot names one device in this process and is never used twice. */
export type ToWorker =
  | { type: 'add'; slot: number; fd: number; tables: DeviceTables; blobs: SharedBlob[]; counts: SharedArrayBuffer }
  | { type: 'remove'; slot: number };

export interface MissedRead {
  type: 'miss';
  slot: number;
  /** The request's `unique`, as two halves, to be echoed. */
  uniqueLow: number;
  uniqueHigh: number;
  /** The thread that reads, in the initial pid namespace. */
  tid: number;
  offsetBytes: number;
  lengthBytes: number;
  ranges: { blobId: number; offsetBytes: number; lengthBytes: number }[];
}

/** From a worker. */
export type FromWorker =
  | MissedRead
  /** A signal came to the reader while it waits for the read with this `unique`. */
  | { type: 'interrupt'; slot: number; uniqueLow: number; uniqueHigh: number }
  /** A reader came to the marked unit of a read-ahead window. */
  | { type: 'readAhead'; slot: number; blobId: number; offsetBytes: number }
  /** The kernel cannot repeat requests: reads that are under way when this process dies will hang. */
  | { type: 'cannotResend'; slot: number }
  /** The kernel released the connection: no user is left. */
  | { type: 'gone'; slot: number }
  /** Answer to `remove`: this worker will not touch the slot's descriptors again. */
  | { type: 'removed'; slot: number };
