/**
 * From a tag to its converted twin: manifest or index in, everything pushed, verified, and only then the tag. The original is only read.
 * An index is converted image by image; attestations and whatever is no image stay in it as they are. Sources: R4–R8, R28–R30, R38, R48;
 * overlaybd-formats.md 4.2.
 */
import { type Digest, sha256 } from '../../base/digest.ts';
import { AppError, isAppError } from '../../base/errors.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import { encodeManifest, type Index, type Manifest, parseManifestOrIndex } from '../../image/oci/manifest.ts';
import { ARTIFACT_TYPE, type ArtifactType, isManifestType, MEDIA_TYPE } from '../../image/oci/media-types.ts';
import { fitsPlatform, isConverted, platformText, reasonToLeave } from './classify.ts';
import { type PublishContext, publishManifest, pushByDigest, sizeOf } from './publish-manifest.ts';
import { acceleratedTag } from './tag-names.ts';

/** Platforms of one index; the largest official images have a dozen. */
const MAX_IMAGES = 64;

export interface PublishRequest {
  tag: string;
  /** What the tag must name; another digest means that it was moved meanwhile (Conflict). */
  expectedDigest?: Digest;
}

export interface PublishResult {
  sourceDigest: Digest;
  targetDigest: Digest;
  targetTag: string;
  /** True when the tag named this result before. */
  isUnchanged: boolean;
  /** Compressed layers of the images that were converted, and the layers of their results. */
  sourceBytes: number;
  resultBytes: number;
}

/**
 * Converts and publishes. `onSource` learns the source's digest before any work. Throws Conflict (with `details.movedTo`) when the tag
 * names another digest than expected, before or after the conversion; FailedPrecondition for an image that is itself a conversion;
 * InvalidArgument for what is no image; and whatever building and the registry throw. No tag was written then.
 */
export async function publishAccelerated(
  context: PublishContext,
  { tag, expectedDigest }: PublishRequest,
  onSource: (digest: Digest) => void = () => {},
): Promise<PublishResult> {
  const { client, repository, request, signal, log } = context;
  const targetTag = acceleratedTag(tag, request.mode, request.runtime);
  const fetched = await client.getManifest(repository, tag, { signal, isCurrent: true });
  const root: Descriptor = fetched.descriptor;
  if (expectedDigest !== undefined && root.digest !== expectedDigest) throw moved(tag, expectedDigest, root.digest);
  onSource(root.digest);
  const document = parseManifestOrIndex(fetched.bytes, root.mediaType, `${tag} (${root.digest})`);
  if (isConverted(document)) {
    throw new AppError('FailedPrecondition', {
      op: 'convert',
      subject: tag,
      what: 'it is a converted image itself; those are never converted',
    });
  }
  const typed: Descriptor = { ...root, mediaType: document.mediaType };
  const result = document.kind === 'index' ? await convertIndex(context, document, typed) : await convertSingle(context, document, typed);
  const now = await client.resolve(repository, tag, { signal, isCurrent: true });
  if (now.digest !== root.digest) throw moved(tag, root.digest, now.digest);
  const isUnchanged = (await resolveTag(context, targetTag)) === result.descriptor.digest;
  if (!isUnchanged) await client.putManifest(repository, targetTag, result.bytes, result.descriptor.mediaType, { signal });
  log(`${targetTag} ${isUnchanged ? 'names' : 'now names'} ${result.descriptor.digest}`);
  const { sourceBytes, resultBytes } = result;
  return { sourceDigest: root.digest, targetDigest: result.descriptor.digest, targetTag, isUnchanged, sourceBytes, resultBytes };
}

interface Document {
  bytes: Uint8Array;
  descriptor: Descriptor;
  sourceBytes: number;
  resultBytes: number;
}

async function convertSingle(context: PublishContext, manifest: Manifest, descriptor: Descriptor): Promise<Document> {
  const reason = reasonToLeave(manifest);
  if (reason !== undefined) throw new AppError('InvalidArgument', { op: 'convert', subject: descriptor.digest, what: reason });
  context.progress.add({ imagesTotal: 1 });
  const { image, sourceBytes } = await publishManifest(context, descriptor);
  return { ...image.manifest, sourceBytes, resultBytes: sizeOf(image.layers) };
}

async function convertIndex(context: PublishContext, index: Index, root: Descriptor): Promise<Document> {
  const chosen = await chooseImages(context, index, root);
  context.progress.add({ imagesTotal: chosen.size });
  const manifests: Descriptor[] = [];
  let artifactType: ArtifactType = ARTIFACT_TYPE.native;
  const sizes = { sourceBytes: 0, resultBytes: 0 };
  for (const entry of index.manifests) {
    if (!chosen.has(entry)) {
      manifests.push(entry);
      continue;
    }
    context.log(`converting ${platformText(entry)} (${entry.digest})`);
    const { image, sourceBytes } = await publishManifest(context, entry);
    sizes.sourceBytes += sourceBytes;
    sizes.resultBytes += sizeOf(image.layers);
    const { mediaType, digest, sizeBytes, artifactType: kind } = image.manifest.descriptor;
    // Of an index-only conversion an image whose layers all had to be converted in full is a full one.
    if (kind === ARTIFACT_TYPE.turbo) artifactType = kind;
    // The rest of the entry (platform, annotations) is what clients choose by.
    const { data: _, ...kept } = entry;
    manifests.push({ ...kept, mediaType, digest, sizeBytes });
  }
  const bytes = encodeManifest({
    kind: 'index',
    mediaType: MEDIA_TYPE.ociIndex,
    artifactType,
    manifests,
    subject: { mediaType: root.mediaType, digest: root.digest, sizeBytes: root.sizeBytes },
    ...(index.annotations === undefined ? {} : { annotations: index.annotations }),
  });
  const descriptor: Descriptor = { mediaType: MEDIA_TYPE.ociIndex, digest: sha256(bytes), sizeBytes: bytes.length };
  await pushByDigest(context, { bytes, descriptor });
  return { bytes, descriptor, ...sizes };
}

/** The entries that are images to convert; why the others stay is said in the log. Throws InvalidArgument when none is. */
async function chooseImages(context: PublishContext, index: Index, root: Descriptor): Promise<ReadonlySet<Descriptor>> {
  const chosen = new Set<Descriptor>();
  for (const entry of index.manifests) {
    const reason = await reasonToKeep(context, entry);
    if (reason === undefined) chosen.add(entry);
    else context.log(`${entry.digest} stays as it is: ${reason}`);
    if (chosen.size > MAX_IMAGES) {
      throw new AppError('ResourceExhausted', { op: 'convert', subject: root.digest, what: `more than ${MAX_IMAGES} images in one index` });
    }
  }
  if (chosen.size > 0) return chosen;
  throw new AppError('InvalidArgument', { op: 'convert', subject: root.digest, what: 'the index holds no image to convert' });
}

async function reasonToKeep({ client, repository, request, signal }: PublishContext, entry: Descriptor): Promise<string | undefined> {
  if (!isManifestType(entry.mediaType)) return `it has the media type ${entry.mediaType}`;
  const os = entry.platform?.os ?? 'linux';
  if (os !== 'linux' && os !== '') return `its platform is ${platformText(entry)}`;
  if (!fitsPlatform(entry, request.platforms)) return `its platform ${platformText(entry)} was not asked for`;
  try {
    const { bytes, descriptor } = await client.getManifest(repository, entry.digest, { signal });
    const document = parseManifestOrIndex(bytes, descriptor.mediaType, entry.digest);
    return document.kind === 'index' ? 'it is an index' : reasonToLeave(document, entry);
  } catch (error) {
    // A document of a kind unknown here, or an image that was never pushed to this repository (indexes may list such).
    if (isAppError(error, 'Unimplemented', 'NotFound')) return error.message;
    throw error;
  }
}

async function resolveTag({ client, repository, signal }: PublishContext, tag: string): Promise<Digest | undefined> {
  try {
    return (await client.resolve(repository, tag, { signal, isCurrent: true })).digest;
  } catch (error) {
    if (isAppError(error, 'NotFound')) return undefined;
    throw error;
  }
}

function moved(tag: string, from: Digest, to: Digest): AppError {
  const what = `the tag was moved from ${from} to ${to}`;
  return new AppError('Conflict', { op: 'convert', subject: tag, what, details: { movedTo: to } });
}
