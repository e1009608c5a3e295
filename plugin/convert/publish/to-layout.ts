/**
 * Conversion into an OCI layout directory, without the service: from a layout, an archive of `docker save`, or a registry. One image at a
 * time; an index needs a platform that one of its images has. Ours.
 */
import { mkdir, readdir, rm } from 'node:fs/promises';
import path from 'node:path';
import { AppError, errnoOf } from '../../base/errors.ts';
import { silentLogger } from '../../base/log.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import { parseManifestOrIndex } from '../../image/oci/manifest.ts';
import { isIndexType } from '../../image/oci/media-types.ts';
import { formatReference, parseReference, referenceObject } from '../../registry/reference.ts';
import { convertLayers } from '../build/convert-layers.ts';
import { type ConvertedImage, convertedImage, type SourceManifest } from '../build/converted-image.ts';
import type { ConvertedLayer, SourceLayer } from '../build/options.ts';
import type { RegistryAccess } from '../jobs/protocol.ts';
import { openRegistry } from '../jobs/registry-access.ts';
import { DockerArchive } from '../source/docker-archive.ts';
import { type BlobReader, readSourceManifest, sourceLayers } from '../source/image-source.ts';
import { OciLayout } from '../source/oci-layout.ts';
import { fitsPlatform, isConverted, platformText } from './classify.ts';
import { type Progress, ProgressCounter } from './progress.ts';
import { RegistrySource } from './registry-source.ts';
import { type ConvertRequest, compressionOf } from './request.ts';

const REF_NAME = 'org.opencontainers.image.ref.name';
const STAGING = /^\.staging-(\d+)$/;

export type LocalSource =
  | { kind: 'oci-layout'; directory: string; name?: string }
  | { kind: 'docker-archive'; file: string; name?: string }
  | { kind: 'registry'; reference: string; access: RegistryAccess };

export interface ToLayoutOptions {
  source: LocalSource;
  /** Made if it is not there; an image of the same name in it is replaced. */
  outputDirectory: string;
  request: ConvertRequest;
  threads: number;
  signal: AbortSignal;
  onProgress(progress: Progress): void;
}

export interface LayoutResult {
  name: string;
  digest: string;
  layers: { digest: string; sizeBytes: number }[];
  warnings: string[];
}

interface OpenSource {
  /** Absent: the source does not say. */
  name: string | undefined;
  source: SourceManifest;
  layers: SourceLayer[];
}

/** Converts one image. Throws as building does, InvalidArgument for a source that names none or several; nothing is added then. */
export async function convertToLayout(options: ToLayoutOptions): Promise<LayoutResult> {
  const { request, outputDirectory, signal, threads } = options;
  await using stack = new AsyncDisposableStack();
  const { name = 'latest', source, layers } = await openSource(options, stack);
  const stagingDirectory = await makeStaging(outputDirectory);
  stack.defer(() => rm(stagingDirectory, { recursive: true, force: true }));
  const progress = new ProgressCounter(options.onProgress);
  const sourceBytes = source.manifest.layers.reduce((sum, layer) => sum + layer.sizeBytes, 0);
  progress.add({ imagesTotal: 1, layersTotal: layers.length, sourceBytes });
  const made: ConvertedLayer[] = [];
  const read = new Map<number, number>();
  const onProgress = ({ layer, readBytes }: { layer: number; readBytes: number }): void => {
    progress.add({ readBytes: readBytes - (read.get(layer) ?? 0) });
    read.set(layer, readBytes);
  };
  const compression = compressionOf(request);
  const { mode, unindexable } = request;
  for await (const layer of convertLayers(layers, { stagingDirectory, signal, mode, unindexable, compression, threads, onProgress })) {
    made.push(layer);
    progress.add({ layersDone: 1, convertedBytes: layer.sizeBytes });
  }
  const image: ConvertedImage = convertedImage(source, made);
  const target = `${name}${mode === 'full' && request.runtime === 'containerd' ? '_containerd_accelerated' : '_accelerated'}`;
  await new OciLayout(outputDirectory).add(image, made, target);
  progress.add({ imagesDone: 1 });
  return {
    name: target,
    digest: image.manifest.descriptor.digest,
    layers: made.map(({ digest, sizeBytes }) => ({ digest, sizeBytes })),
    warnings: made.flatMap((layer) => layer.warnings),
  };
}

async function openSource({ source, request, signal }: ToLayoutOptions, stack: AsyncDisposableStack): Promise<OpenSource> {
  if (source.kind === 'docker-archive') {
    const archive = stack.use(await DockerArchive.open(source.file, signal));
    const images = await archive.images(signal);
    const fitting = source.name === undefined ? images : images.filter((image) => image.tags.includes(source.name!));
    const [image] = fitting;
    if (image === undefined || fitting.length > 1) {
      const what = `${fitting.length} of its images fit; name one of: ${images
        .flatMap((one) => one.tags)
        .slice(0, 10)
        .join(', ')}`;
      throw new AppError('InvalidArgument', { op: 'choose image in', subject: source.file, what });
    }
    return { name: source.name ?? image.tags[0], source: image.source, layers: image.layers };
  }
  if (source.kind === 'oci-layout') {
    const layout = new OciLayout(source.directory);
    const descriptor = await layout.find(source.name);
    return openImage(layout, descriptor, descriptor.annotations?.[REF_NAME], request.platforms, signal);
  }
  const client = stack.use(openRegistry(source.access, silentLogger));
  const reference = parseReference(source.reference);
  const { descriptor } = await client.getManifest(reference, referenceObject(reference), { signal });
  return openImage(new RegistrySource(client, reference), descriptor, formatReference(reference), request.platforms, signal);
}

async function openImage(
  reader: BlobReader,
  root: Descriptor,
  name: string | undefined,
  platforms: readonly string[],
  signal: AbortSignal,
): Promise<OpenSource> {
  const descriptor = isIndexType(root.mediaType) ? await chooseImage(reader, root, platforms, signal) : root;
  const document = parseManifestOrIndex(await reader.readDocument(descriptor, signal), descriptor.mediaType, descriptor.digest);
  if (isConverted(document)) {
    throw new AppError('FailedPrecondition', {
      op: 'convert',
      subject: descriptor.digest,
      what: 'it is a converted image itself; those are never converted',
    });
  }
  const source = await readSourceManifest(reader, descriptor, signal);
  return { name, source, layers: sourceLayers(reader, source) };
}

async function chooseImage(reader: BlobReader, root: Descriptor, platforms: readonly string[], signal: AbortSignal): Promise<Descriptor> {
  const index = parseManifestOrIndex(await reader.readDocument(root, signal), root.mediaType, root.digest);
  const entries = index.kind === 'index' ? index.manifests.filter((entry) => entry.platform?.os !== 'unknown') : [];
  const own = `linux/${process.arch === 'x64' ? 'amd64' : process.arch}`;
  const wishes = platforms.length > 0 ? platforms : [own];
  const fitting = entries.filter((entry) => fitsPlatform(entry, wishes));
  if (fitting.length === 1) return fitting[0]!;
  const what = `${fitting.length} of its images fit ${wishes.join(', ')}; there are: ${entries.map(platformText).slice(0, 20).join(', ')}`;
  throw new AppError('InvalidArgument', { op: 'choose image of', subject: root.digest, what });
}

/** A staging directory named after this process; those of processes that are gone are removed. */
async function makeStaging(outputDirectory: string): Promise<string> {
  await mkdir(outputDirectory, { recursive: true });
  for (const name of await readdir(outputDirectory)) {
    const pid = STAGING.exec(name)?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) await rm(path.join(outputDirectory, name), { recursive: true, force: true });
  }
  const directory = path.join(outputDirectory, `.staging-${process.pid}`);
  await mkdir(directory, { mode: 0o700 });
  return directory;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return false;
    if (errnoOf(error) === 'EPERM') return true;
    throw error;
  }
}
