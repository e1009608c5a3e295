/**
 * What the process that makes an image and the control plane say to each other, as JSON over the process's channel. The process reads what
 * registries send, so the control plane checks every word of it. Ours.
 */
import { z } from 'zod';
import { type Digest, isDigest } from '../../base/digest.ts';
import { MAX_BLOB_BYTES, MAX_LAYERS } from '../../base/limits.ts';
import type { ImageAccess } from '../image-store.ts';
import type { RegistrySettings } from './registry.ts';

const digest = z.custom<Digest>(isDigest, 'not sha256: and 64 hexadecimal digits');
const sizeBytes = z.int().min(0).max(MAX_BLOB_BYTES);

/** The work. Holds secrets, and goes over the channel alone. */
export interface Work {
  registry: RegistrySettings;
  access: ImageAccess;
  containerdAddress: string;
  namespace: string;
  snapshotter: string;
  /** The cache's lease; and one that keeps what is made until this work is done. */
  lease: string;
  buildLease: string;
  reference: string;
  digest: Digest;
  platformDigest: Digest;
  /** What unpacked layers may take. */
  reservationBytes: number;
  logLevel: string;
}

/** Documents of an image and its snapshots, as they are when the work is done. */
export const madeSchema = z.strictObject({
  target: z.strictObject({ digest, mediaType: z.string().max(255), sizeBytes }),
  configDigest: digest,
  chainId: digest,
  /** What unpacked layers take, each once. */
  unpacked: z.array(z.strictObject({ chainId: digest, bytes: z.int().min(0) })).max(MAX_LAYERS),
  /** Index, manifest and configuration. */
  documentBytes: z.int().min(0),
  /** From registries, layers included. */
  fetchedBytes: z.int().min(0),
});
export type Made = z.infer<typeof madeSchema>;

/** A layer that has to be unpacked: the control plane has the data plane fetch it. */
const questionSchema = z.strictObject({ digest, sizeBytes });
export type Question = z.infer<typeof questionSchema>;

/** The form of AppError.toJSON; what is in it is read by AppError.fromJSON. */
const errorSchema = z.looseObject({ code: z.string() });

export const fromWorkerSchema = z.discriminatedUnion('op', [
  /** A layer is in place. */
  z.strictObject({ op: z.literal('layer'), digest, sizeBytes, how: z.enum(['here', 'lazy', 'unpacked']) }),
  z.strictObject({ op: z.literal('ask'), id: z.int(), question: questionSchema }),
  z.strictObject({ op: z.literal('done'), made: madeSchema }),
  z.strictObject({ op: z.literal('failed'), error: errorSchema }),
]);
export type FromWorker = z.infer<typeof fromWorkerSchema>;

export type ToWorker =
  | { op: 'start'; work: Work }
  /** Bytes of what was asked for have come. */
  | { op: 'bytes'; id: number }
  | { op: 'answer'; id: number; path: string; fetchedBytes: number }
  | { op: 'refused'; id: number; error: Record<string, unknown> };
