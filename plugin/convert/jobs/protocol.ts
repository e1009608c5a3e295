/**
 * What a conversion's process and the control plane say to each other, as JSON over the process's channel. The process reads what
 * registries send, so the control plane checks every word of it. Ours.
 */
import { z } from 'zod';
import { type Digest, isDigest } from '../../base/digest.ts';
import { knownLayerSchema, type LayerEntry } from '../publish/ledger.ts';
import { progressSchema } from '../publish/progress.ts';
import { convertRequestSchema } from '../publish/request.ts';

const size = z.int().min(0);
const digest = z.custom<Digest>(isDigest, 'not sha256: and 64 hexadecimal digits');

/** How registries are reached; never a secret, the process reads the files of credentials itself. */
export const registryAccessSchema = z.strictObject({
  hostsDir: z.string(),
  plainHttp: z.array(z.string()).readonly(),
  dockerConfig: z.string().optional(),
  /** Where the credentials that people stored lie. */
  vault: z.strictObject({ file: z.string(), keyFile: z.string() }).optional(),
  responseTimeoutMs: z.number(),
  stallTimeoutMs: z.number(),
});
export type RegistryAccess = z.infer<typeof registryAccessSchema>;

export const workSchema = z.strictObject({
  registry: registryAccessSchema,
  host: z.string(),
  repository: z.string(),
  tag: z.string(),
  expectedDigest: digest.optional(),
  request: convertRequestSchema,
  stagingDirectory: z.string(),
  threads: z.int().min(1).max(64),
  maxLayerBytes: z.int().min(1),
  logLevel: z.string(),
});
export type Work = z.infer<typeof workSchema>;

/** Lines of the job's log are cut to this. */
export const MAX_LINE_CHARS = 2000;
/** Layers of one question; manifests have at most 4096. */
const MAX_CHAIN = 4096;

const questionSchema = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('find'), chainIds: z.array(digest).max(MAX_CHAIN) }),
  z.strictObject({ kind: z.literal('record'), chainId: digest, layer: knownLayerSchema }),
  z.strictObject({ kind: z.literal('forget'), chainId: digest }),
]);
export type Question = z.infer<typeof questionSchema>;

/** The form of AppError.toJSON; what is in it is read by AppError.fromJSON. */
const errorSchema = z.looseObject({ code: z.string() });

export const fromWorkerSchema = z.discriminatedUnion('op', [
  z.strictObject({ op: z.literal('source'), digest }),
  z.strictObject({ op: z.literal('progress'), progress: progressSchema }),
  z.strictObject({ op: z.literal('log'), line: z.string() }),
  z.strictObject({ op: z.literal('ask'), id: z.int(), question: questionSchema }),
  z.strictObject({
    op: z.literal('done'),
    sourceDigest: digest,
    targetDigest: digest,
    targetTag: z.string(),
    isUnchanged: z.boolean(),
    sourceBytes: size,
    resultBytes: size,
    elapsedMs: size,
  }),
  z.strictObject({ op: z.literal('failed'), error: errorSchema }),
]);
export type FromWorker = z.infer<typeof fromWorkerSchema>;

export type ToWorker =
  | { op: 'start'; work: Work }
  | { op: 'answer'; id: number; entries?: readonly (LayerEntry | null)[] }
  | { op: 'refused'; id: number; error: Record<string, unknown> };
