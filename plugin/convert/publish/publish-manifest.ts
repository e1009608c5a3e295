/**
 * One image manifest: finds the layers that exist already, builds the others on top of them, uploads each while the next is built, and
 * pushes configuration and manifest by digest. Nothing has a tag yet. Ours; what the documents hold is overlaybd-formats.md 4.2.
 */
import { mkdir, rm } from 'node:fs/promises';
import path from 'node:path';
import pLimit from 'p-limit';
import { type Digest, sha256 } from '../../base/digest.ts';
import { AppError, describeError, isAppError } from '../../base/errors.ts';
import { formatBytes } from '../../base/units.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import type { RegistryClient } from '../../registry/client.ts';
import type { Repository } from '../../registry/reference.ts';
import { convertLayers } from '../build/convert-layers.ts';
import { type ConvertedImage, convertedImage, type SourceManifest } from '../build/converted-image.ts';
import type { SourceLayer } from '../build/options.ts';
import { readSourceManifest, sourceLayers } from '../source/image-source.ts';
import { isBaseUnusable, type OpenBase, openConvertedBase } from './base-device.ts';
import { chainIdsOf, type KnownLayer, type LayerEntry, type LayerLedger } from './ledger.ts';
import type { ProgressCounter } from './progress.ts';
import { RegistrySource } from './registry-source.ts';
import { type ConvertRequest, compressionOf } from './request.ts';
import { UploadQueue, uploadBytes, uploadFile, verifyBlob } from './upload-queue.ts';

/** HEAD requests at once: a manifest of 100 layers takes a few round trips. */
const MAX_LOOKUPS = 8;

/** What every step of one publication shares. */
export interface PublishContext {
  client: RegistryClient;
  repository: Repository;
  request: ConvertRequest;
  ledger: LayerLedger;
  /** Of this publication alone; the caller removes it. */
  stagingDirectory: string;
  /** Compression threads. */
  threads: number;
  /** Bytes of one decompressed layer. */
  maxLayerBytes: number;
  signal: AbortSignal;
  log: (line: string) => void;
  progress: ProgressCounter;
}

/** Bytes of the blobs. */
export function sizeOf(blobs: readonly Descriptor[]): number {
  return blobs.reduce((sum, blob) => sum + blob.sizeBytes, 0);
}

/** Converts one image and pushes everything but a tag; returns what was pushed, and the size of the image's own layers. */
export async function publishManifest(
  context: PublishContext,
  descriptor: Descriptor,
): Promise<{ image: ConvertedImage; sourceBytes: number }> {
  const { client, repository, signal, log, progress } = context;
  const source = await readSourceManifest(new RegistrySource(client, repository), descriptor, signal);
  const chainIds = chainIdsOf(source.config.diffIds);
  const { layers } = source.manifest;
  progress.add({ layersTotal: layers.length });
  const known = await findKnown(context, source);
  progress.add({
    layersDone: known.length,
    layersReused: known.length,
    sourceBytes: sizeOf(layers.slice(known.length)),
  });
  if (known.length > 0) log(`${known.length} of ${layers.length} layers are converted already`);
  const made = known.length === layers.length ? known : await buildRest(context, source, chainIds, known);
  const image = convertedImage(source, made);
  await uploadBytes(client, repository, image.config.descriptor, image.config.bytes, signal);
  const limit = pLimit(MAX_LOOKUPS);
  await Promise.all(image.layers.map((layer) => limit(() => verifyBlob(client, repository, layer, signal))));
  await pushByDigest(context, image.manifest);
  progress.add({ imagesDone: 1 });
  return { image, sourceBytes: sizeOf(layers) };
}

/**
 * Under which each layer stands in the ledger: the chain of all that its blob depends on, each layer by its stored bytes and the tar in them.
 * The two were seen to belong together when the row was made. A configuration that merely claims the tars of another image finds nothing,
 * and is found out when its layers are read.
 */
function keysOf({ manifest, config }: SourceManifest): Digest[] {
  return chainIdsOf(manifest.layers.map((layer, i) => sha256(`${layer.digest} ${config.diffIds[i]}`)));
}

/** Pushes a document by digest and reads it back. A `subject` in it is entered into the registry's referrers at the same time. */
export async function pushByDigest(
  { client, repository, signal }: PublishContext,
  { bytes, descriptor }: { bytes: Uint8Array; descriptor: Descriptor },
): Promise<void> {
  await client.putManifest(repository, descriptor.digest, bytes, descriptor.mediaType, { signal });
  // Read by digest, the client compares every byte.
  await client.getManifest(repository, descriptor.digest, { signal, isCurrent: true });
}

/** The longest run of layers from the bottom that the repository has or can mount; each is looked at, whatever the ledger says. */
async function findKnown(context: PublishContext, source: SourceManifest): Promise<KnownLayer[]> {
  const keys = keysOf(source);
  const { layers } = source.manifest;
  const entries = await context.ledger.find(keys, context.signal);
  const gap = entries.indexOf(undefined);
  const candidates = (gap === -1 ? entries : entries.slice(0, gap)) as LayerEntry[];
  const limit = pLimit(MAX_LOOKUPS);
  const found = await Promise.all(candidates.map((entry, i) => limit(() => provide(context, keys[i]!, entry, layers[i]!))));
  const missing = found.indexOf(undefined);
  return (missing === -1 ? found : found.slice(0, missing)) as KnownLayer[];
}

async function provide(
  { client, repository, ledger, signal, log }: PublishContext,
  chainId: Digest,
  entry: LayerEntry,
  original: Descriptor,
): Promise<KnownLayer | undefined> {
  const { digest, sizeBytes, annotations } = entry;
  const others = entry.repositories.filter((name) => name !== repository.repository);
  // What another repository holds is given to those only who have the original: a manifest can be pushed to some registries without.
  const isRecorded = others.length < entry.repositories.length;
  if (!isRecorded && (await client.statBlob(repository, original.digest, { signal, isCurrent: true })) === undefined) return undefined;
  const outcome = await client.provideBlob(repository, { digest, sizeBytes }, { signal, mountFrom: others });
  const layer: KnownLayer = { digest, sizeBytes, annotations };
  if (outcome === undefined) {
    if (isRecorded) await ledger.forget(chainId, signal);
    return undefined;
  }
  if (outcome === 'mounted') log(`layer ${digest} was mounted from another repository`);
  if (!isRecorded) await ledger.record(chainId, layer, signal);
  return layer;
}

async function buildRest(
  context: PublishContext,
  source: SourceManifest,
  chainIds: readonly Digest[],
  known: readonly KnownLayer[],
): Promise<KnownLayer[]> {
  if (known.length === 0) return build(context, source, chainIds, [], undefined);
  try {
    using base = await openBase(context, source, known);
    if (base !== undefined) return await build(context, source, chainIds, known, base);
  } catch (error) {
    if (!isBaseUnusable(error)) throw error;
    context.log(`the converted layers below cannot be built upon (${describeError(error)})`);
  }
  context.log('all layers are converted anew');
  const again = source.manifest.layers.slice(0, known.length);
  context.progress.add({
    layersDone: -known.length,
    layersReused: -known.length,
    sourceBytes: sizeOf(again),
  });
  return build(context, source, chainIds, [], undefined);
}

/** Undefined, with a line in the log, when the layers turn out to be no base. */
async function openBase(context: PublishContext, source: SourceManifest, known: readonly KnownLayer[]): Promise<OpenBase | undefined> {
  const { client, repository, stagingDirectory, signal, log } = context;
  try {
    return await openConvertedBase(client, repository, known, source.config.diffIds.slice(0, known.length), stagingDirectory, signal);
  } catch (error) {
    if (!isAppError(error, 'FailedPrecondition', 'DataLoss', 'InvalidArgument', 'Unimplemented')) throw error;
    log(`the converted layers below cannot be built upon (${describeError(error)})`);
    return undefined;
  }
}

async function build(
  context: PublishContext,
  source: SourceManifest,
  chainIds: readonly Digest[],
  known: readonly KnownLayer[],
  base: OpenBase | undefined,
): Promise<KnownLayer[]> {
  const { client, repository, request, ledger, log, progress } = context;
  const directory = path.join(context.stagingDirectory, 'build');
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { mode: 0o700 });
  const failed = new AbortController();
  const signal = AbortSignal.any([context.signal, failed.signal]);
  const uploads = new UploadQueue((error) => failed.abort(error));
  const made: KnownLayer[] = [...known];
  const keys = keysOf(source);
  const counted = countReads(sourceLayers(new RegistrySource(client, repository), source).slice(known.length), progress);
  try {
    const layers = convertLayers(counted, {
      stagingDirectory: directory,
      signal,
      mode: request.mode,
      unindexable: request.unindexable,
      compression: compressionOf(request),
      threads: context.threads,
      maxLayerBytes: context.maxLayerBytes,
      ...(base === undefined ? {} : { base }),
    });
    for await (const layer of layers) {
      const { digest, sizeBytes, annotations, statistics, warnings } = layer;
      const key = keys[made.length]!;
      const chainId = chainIds[made.length]!;
      if (chainId !== layer.sourceChainId) {
        throw new AppError('DataLoss', {
          op: 'convert',
          subject: digest,
          what: `it is of chain ${layer.sourceChainId}, expected ${chainId}`,
        });
      }
      made.push({ digest, sizeBytes, annotations });
      progress.add({ convertedBytes: sizeBytes });
      log(
        `layer ${made.length}: ${statistics.entries} entries, ${formatBytes(statistics.tarBytes)} of tar became ${digest}, ${formatBytes(sizeBytes)}`,
      );
      for (const warning of warnings) log(`layer ${made.length}: ${warning}`);
      await uploads.add(async () => {
        const onProgress = (newBytes: number): void => progress.add({ uploadedBytes: newBytes });
        const outcome = await uploadFile(client, repository, layer, { signal, mountFrom: [], onProgress });
        await ledger.record(key, { digest, sizeBytes, annotations }, signal);
        progress.add({ layersDone: 1 });
        log(`${digest} ${outcome === 'uploaded' ? 'was uploaded' : 'was in the registry'}`);
      });
    }
    await uploads.finish();
    return made;
  } catch (error) {
    // The upload's failure is the reason; what the builder says then is that it was stopped.
    throw failed.signal.aborted && !context.signal.aborted ? failed.signal.reason : error;
  } finally {
    failed.abort();
    await uploads.settle();
    await rm(directory, { recursive: true, force: true });
  }
}

/** Counts what is read of each layer; one that is read again, because it could not be indexed, counts anew. */
function countReads(layers: readonly SourceLayer[], progress: ProgressCounter): SourceLayer[] {
  return layers.map((layer) => {
    let counted = 0;
    return {
      ...layer,
      async *open(signal: AbortSignal): AsyncGenerator<Uint8Array> {
        progress.add({ readBytes: -counted });
        counted = 0;
        for await (const chunk of layer.open(signal)) {
          counted += chunk.length;
          progress.add({ readBytes: chunk.length });
          yield chunk;
        }
      },
    };
  });
}
