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

const digestSchema = z.string().refine(isDigest, 'not sha256: and 64 hexadecimal digits');
const layerSchema = z.object({
  digest: digestSchema,
  size: z.int().min(0).max(MAX_BLOB_BYTES),
  annotations: z.record(z.string(), z.string()).nullish(),
});
const manifestSchema = z.object({ layers: z.array(layerSchema).max(MAX_LAYERS) });
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
  annotations: Readonly<Record<string, string>>;
}

export interface ImageManifest {
  digest: Digest;
  layers: ManifestLayer[];
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

async function fetchChecked(resolver: ImageResolver, reference: string, digest: string | undefined, signal: AbortSignal) {
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

/**
 * Fetches an image's manifest: by digest if known, else by reference, through an index to this machine's platform.
 * Errors: those of the resolver; InvalidArgument (malformed), NotFound (no such platform), DataLoss (bytes do not match).
 */
export async function fetchImageManifest(
  resolver: ImageResolver,
  reference: string,
  digest: Digest | undefined,
  signal: AbortSignal,
): Promise<ImageManifest> {
  let found = await fetchChecked(resolver, reference, digest, signal);
  if (INDEX_TYPES.has(found.mediaType)) {
    const architecture = ARCHITECTURES[os.arch()] ?? os.arch();
    const { manifests } = parse(indexSchema, found.bytes, found.digest);
    const match = manifests.find(({ platform }) => platform?.os === 'linux' && platform.architecture === architecture);
    if (match === undefined) {
      throw new AppError('NotFound', {
        op: 'resolve image',
        subject: reference,
        what: `its index has no manifest for linux/${architecture}`,
      });
    }
    found = await fetchChecked(resolver, reference, match.digest, signal);
  }
  const { layers } = parse(manifestSchema, found.bytes, found.digest);
  return {
    digest: found.digest,
    layers: layers.map((layer) => ({ digest: layer.digest as Digest, sizeBytes: layer.size, annotations: layer.annotations ?? {} })),
  };
}
