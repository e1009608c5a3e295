/** The little of OCI manifests and indexes that a pull needs. Source: OCI image-spec, manifest.md and image-index.md; Docker schema 2. */
import os from 'node:os';
import { z } from 'zod';
import { type Digest, isDigest, sha256 } from '../base/digest.ts';
import { AppError } from '../base/errors.ts';
import { MAX_BLOB_BYTES, MAX_LAYERS, MAX_MANIFEST_BYTES } from '../base/limits.ts';
import type { ImageResolver } from './ports.ts';

const INDEX_TYPES = new Set(['application/vnd.oci.image.index.v1+json', 'application/vnd.docker.distribution.manifest.list.v2+json']);

/** Node's name → Go's. */
const ARCHITECTURES: Readonly<Record<string, string>> = { x64: 'amd64', ia32: '386', ppc64: 'ppc64le' };

/** The part of the resolver that manifests need. */
export type ManifestSource = Pick<ImageResolver, 'resolveManifest'>;

const digestSchema = z.string().refine(isDigest, 'not sha256: and 64 hexadecimal digits');
const sizeSchema = z.int().min(0).max(MAX_BLOB_BYTES);
const layerSchema = z.object({
  digest: digestSchema,
  size: sizeSchema,
  mediaType: z.string().max(255).nullish(),
  annotations: z.record(z.string(), z.string()).nullish(),
});
const manifestSchema = z.object({
  layers: z.array(layerSchema).max(MAX_LAYERS),
  config: z.object({ digest: digestSchema, size: sizeSchema }).nullish(),
  artifactType: z.string().max(255).nullish(),
  subject: z.object({ digest: digestSchema }).nullish(),
  annotations: z.record(z.string(), z.string()).nullish(),
});
const indexSchema = z.object({
  manifests: z
    .array(
      z.object({
        digest: digestSchema,
        platform: z.object({ os: z.string().optional(), architecture: z.string().optional() }).nullish(),
      }),
    )
    .max(1024),
});

export interface ManifestLayer {
  digest: Digest;
  sizeBytes: number;
  /** Empty when the manifest does not say. */
  mediaType: string;
  annotations: Readonly<Record<string, string>>;
}

export interface ImageManifest {
  digest: Digest;
  layers: ManifestLayer[];
  config: { digest: Digest; sizeBytes: number } | undefined;
  /** What kind of artifact it says it is; an ordinary image says nothing. */
  artifactType: string | undefined;
  /** The manifest that it says it belongs to. */
  subject: Digest | undefined;
  annotations: Readonly<Record<string, string>>;
}

function parse<T>(schema: z.ZodType<T>, bytes: Uint8Array, subject: string): T {
  if (bytes.length > MAX_MANIFEST_BYTES) {
    throw new AppError('InvalidArgument', {
      op: 'read manifest',
      subject,
      what: `${bytes.length} bytes, the limit is ${MAX_MANIFEST_BYTES}`,
    });
  }
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new AppError('InvalidArgument', { op: 'read manifest', subject, what: 'not JSON', cause });
  }
  const result = schema.safeParse(json);
  if (result.success) return result.data;
  const [issue] = result.error.issues;
  throw new AppError('InvalidArgument', { op: 'read manifest', subject, what: `field ${issue?.path.join('.')}: ${issue?.message}` });
}

async function fetchChecked(resolver: ManifestSource, reference: string, digest: string | undefined, signal: AbortSignal) {
  const found = await resolver.resolveManifest(reference, digest, signal);
  const actual = sha256(found.manifestBytes);
  if (actual !== (digest ?? found.digest)) {
    throw new AppError('DataLoss', {
      op: 'read manifest',
      subject: reference,
      what: `bytes have digest ${actual}, expected ${digest ?? found.digest}`,
    });
  }
  return { bytes: found.manifestBytes, digest: actual, mediaType: found.mediaType };
}

/** Entries of one index for one platform: variants of an architecture. */
const MAX_PLATFORM_ENTRIES = 4;

/** The manifests of an index that run on this machine, in the index's order; at most {@link MAX_PLATFORM_ENTRIES}. */
function ownEntries(bytes: Uint8Array, digest: Digest): Digest[] {
  const { manifests } = parse(indexSchema, bytes, digest);
  return manifests
    .filter(({ platform }) => platform?.os === 'linux' && platform.architecture === ownArchitecture())
    .slice(0, MAX_PLATFORM_ENTRIES)
    .map((entry) => entry.digest as Digest);
}

/** This machine's, as image indexes name it. */
export function ownArchitecture(): string {
  return ARCHITECTURES[os.arch()] ?? os.arch();
}

function manifestOf(bytes: Uint8Array, digest: Digest): ImageManifest {
  const { layers, config, artifactType, subject, annotations } = parse(manifestSchema, bytes, digest);
  return {
    digest,
    layers: layers.map((layer) => ({
      digest: layer.digest as Digest,
      sizeBytes: layer.size,
      mediaType: layer.mediaType ?? '',
      annotations: layer.annotations ?? {},
    })),
    config: config == null ? undefined : { digest: config.digest as Digest, sizeBytes: config.size },
    artifactType: artifactType ?? undefined,
    subject: subject == null ? undefined : (subject.digest as Digest),
    annotations: annotations ?? {},
  };
}

/**
 * The manifests that a reference (or digest in its repository) may mean on this machine, one after the other: the manifest itself, or
 * those of an index that are for this platform. Errors as {@link fetchImageManifest}, but an index without this platform gives none.
 */
export async function* fetchPlatformManifests(
  resolver: ManifestSource,
  reference: string,
  digest: Digest | undefined,
  signal: AbortSignal,
): AsyncGenerator<ImageManifest, void, void> {
  const found = await fetchChecked(resolver, reference, digest, signal);
  if (!INDEX_TYPES.has(found.mediaType)) {
    yield manifestOf(found.bytes, found.digest);
    return;
  }
  for (const entry of ownEntries(found.bytes, found.digest)) {
    const { bytes } = await fetchChecked(resolver, reference, entry, signal);
    yield manifestOf(bytes, entry);
  }
}

/**
 * Fetches an image's manifest: by digest if known, else by reference, through an index to this machine's platform.
 * Errors: those of the resolver; InvalidArgument (malformed), NotFound (no such platform), DataLoss (bytes do not match).
 */
export async function fetchImageManifest(
  resolver: ManifestSource,
  reference: string,
  digest: Digest | undefined,
  signal: AbortSignal,
): Promise<ImageManifest> {
  for await (const manifest of fetchPlatformManifests(resolver, reference, digest, signal)) return manifest;
  throw new AppError('NotFound', {
    op: 'resolve image',
    subject: reference,
    what: `its index has no manifest for linux/${ownArchitecture()}`,
  });
}
