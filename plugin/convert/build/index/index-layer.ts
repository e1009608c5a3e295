/**
 * Index-only mode: layers are scanned several at a time (scan-thread.ts), then applied to the one tree in their order, each giving a small
 * blob of metadata that maps file data into the unchanged layer. A layer that cannot be read at random is converted in full instead, in
 * its place of the same stack, or refuses the image. Ours; see design.md, "Conversion".
 */
import { rm } from 'node:fs/promises';
import path from 'node:path';
import { setImmediate } from 'node:timers/promises';
import type { Digest } from '../../../base/digest.ts';
import { AppError } from '../../../base/errors.ts';
import { KIB, MIB, SECTOR_BYTES } from '../../../base/units.ts';
import { LayerBlobWriter } from '../../../file/layer-blob-writer.ts';
import { type DeviceExtent, writeLayer } from '../../../image/erofs/layer-writer.ts';
import { DEFAULT_GZIP_SPAN_BYTES } from '../../../image/gzip/gzip-index-writer.ts';
import { CommittedLayerWriter } from '../../../image/lsmt/committed-writer.ts';
import { ANNOTATION, DIFF_ID_ANNOTATION, LAYER_VERSION } from '../../../image/oci/annotations.ts';
import { MEDIA_TYPE } from '../../../image/oci/media-types.ts';
import { CHUNK_DIGESTS_NAME } from '../../../image/turbo/chunk-digests.ts';
import { EROFS_META_NAME, GZIP_INDEX_NAME, TURBO_MARKER } from '../../../image/turbo/turbo-layer.ts';
import { ALGORITHM } from '../../../image/zfile/codec.ts';
import { loadCodec } from '../../../kernel/codecs.ts';
import type { FullLayers } from '../full-layer.ts';
import type { ImageModel } from '../image-model.ts';
import { LayerApplier } from '../layer-applier.ts';
import { checkDigests, inLayer, warningsOf } from '../layer-errors.ts';
import { deviceSizeFor } from '../layer-stream.ts';
import { type ConvertedLayer, type ConvertOptions, DEFAULT_MAX_LAYER_BYTES, type SourceLayer } from '../options.ts';
import { IndexContent } from './index-content.ts';
import type { ScannedLayer, ScanRequest, ScanResult } from './layer-scanner.ts';
import { ScanThread } from './scan-thread.ts';
import { readRecords } from './tar-records.ts';
import { type BlobEntry, writeTurboBlob } from './turbo-blob.ts';

/**
 * Files up to this size lie behind their inodes, inside the index, and are read without a fetch. Of 28,417 files of headers, programs and
 * node_modules (247 MB as tar.gz) these are a tenth, and cost 0.08 % of the image; up to 1 KiB it is 0.25 %, up to 2 KiB 0.8 %.
 */
const INLINE_LIMIT_BYTES = 512;
/** The reference's form of the metadata. */
const METADATA_FORM = { compression: { algorithm: ALGORITHM.lz4, blockSizeBytes: 4 * KIB }, wrapper: 'none' } as const;
/** Readers take MAX_TURBO_BLOB_BYTES; the rest is for inodes and names. */
const MAX_INDEX_BYTES = 48 * MIB;
/** Scanned layers that wait for their turn, beside those being scanned; each costs its staging files. */
const MAX_WAITING = 2;

interface ScanJob {
  layer: SourceLayer;
  request: ScanRequest;
  outcome: Promise<{ result: ScanResult } | { error: unknown }>;
}

type Build = { completion: Promise<ConvertedLayer> };

export class IndexLayers implements AsyncDisposable {
  private readonly options: ConvertOptions;
  private readonly model: ImageModel;
  private readonly fullLayers: () => FullLayers;
  private readonly maxThreads: number;
  private readonly threads: ScanThread[] = [];
  private readonly idle: ScanThread[] = [];
  private readonly waiting: ((thread: ScanThread) => void)[] = [];
  private readonly ended = new AbortController();
  private readonly signal: AbortSignal;
  private readonly running = new Set<Promise<unknown>>();
  private scanCount = 0;
  /** No layer comes after those that are being scanned or wait for a thread. */
  private isLast = false;

  /** `fullLayers` builds on the same model. */
  constructor(options: ConvertOptions, threads: number, model: ImageModel, fullLayers: () => FullLayers) {
    this.options = options;
    this.model = model;
    this.fullLayers = fullLayers;
    this.maxThreads = threads;
    this.signal = AbortSignal.any([options.signal, this.ended.signal]);
  }

  /** Builds all layers in order. Rejects with an AppError that names the layer. */
  async *buildAll(layers: Iterable<SourceLayer> | AsyncIterable<SourceLayer>): AsyncGenerator<Build> {
    const source = Symbol.asyncIterator in layers ? layers[Symbol.asyncIterator]() : layers[Symbol.iterator]();
    const jobs: ScanJob[] = [];
    // One ahead, because the last layer is scanned differently.
    let next = await source.next();
    for (;;) {
      while (next.done !== true && jobs.length < this.maxThreads + MAX_WAITING) {
        const layer = next.value;
        next = await source.next();
        this.isLast = next.done === true;
        jobs.push(this.startScan(layer));
      }
      const job = jobs.shift();
      if (job === undefined) return;
      const outcome = await job.outcome;
      if ('error' in outcome) throw inLayer(outcome.error, job.layer.name);
      yield await this.build(job, outcome.result);
    }
  }

  /** Ends all threads and removes what scans left. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.ended.abort();
    await Promise.all(this.threads.map((thread) => thread[Symbol.asyncDispose]()));
    await Promise.all(this.running);
    for (let i = 0; i < this.scanCount; i += 1) await this.removeStaging(this.requestOf(i, ''));
  }

  private startScan(layer: SourceLayer): ScanJob {
    const index = this.scanCount++;
    const request = this.requestOf(index, layer.name);
    const outcome = this.scan(layer, index, request).then(
      (result) => ({ result }),
      (error: unknown) => ({ error }),
    );
    this.running.add(outcome);
    return { layer, request, outcome };
  }

  private requestOf(index: number, subject: string): ScanRequest {
    const file = (name: string): string => path.join(this.options.stagingDirectory, `scan-${index}.${name}`);
    return {
      subject,
      recordsPath: file('records'),
      gzipIndexPath: file('gzip'),
      chunkDigestsPath: file('digests'),
      inlineLimitBytes: INLINE_LIMIT_BYTES,
      spanBytes: DEFAULT_GZIP_SPAN_BYTES,
      maxLayerBytes: this.options.maxLayerBytes ?? DEFAULT_MAX_LAYER_BYTES,
      maxIndexBytes: MAX_INDEX_BYTES,
    };
  }

  private async scan(layer: SourceLayer, index: number, request: ScanRequest): Promise<ScanResult> {
    const thread = await this.takeThread();
    this.signal.throwIfAborted();
    const { onProgress } = this.options;
    const isAlone = this.isLast && this.waiting.length === 0;
    const result = await thread.scan(layer, request, isAlone, this.signal, (progress) => onProgress?.({ layer: index, ...progress }));
    const next = this.waiting.shift();
    if (next === undefined) this.idle.push(thread);
    else next(thread);
    return result;
  }

  private async takeThread(): Promise<ScanThread> {
    const idle = this.idle.pop();
    if (idle !== undefined) return idle;
    if (this.threads.length < this.maxThreads) {
      const thread = new ScanThread();
      this.threads.push(thread);
      return thread;
    }
    return new Promise((resolve, reject) => {
      this.waiting.push(resolve);
      this.signal.addEventListener('abort', () => reject(this.signal.reason), { once: true });
    });
  }

  private async build(job: ScanJob, result: ScanResult): Promise<Build> {
    const { layer, request } = job;
    if ('reason' in result) {
      await this.removeStaging(request);
      if (this.options.unindexable === 'refuse') {
        throw new AppError('Unimplemented', { op: 'index', subject: layer.name, what: result.reason });
      }
      const { completion } = await this.fullLayers().build(layer);
      const warning = `it was converted in full: ${result.reason}`;
      return { completion: completion.then((built) => ({ ...built, warnings: [warning, ...built.warnings] })) };
    }
    const metadataPath = `${request.recordsPath}.erofs`;
    try {
      const described = await this.apply(layer, request, result, metadataPath);
      return { completion: this.complete(layer, request, result, metadataPath, described) };
    } catch (error) {
      await rm(metadataPath, { force: true });
      throw inLayer(error, layer.name);
    }
  }

  /** Applies the layer to the tree and writes its metadata. */
  private async apply(layer: SourceLayer, request: ScanRequest, scanned: ScannedLayer, metadataPath: string): Promise<Described> {
    checkDigests(layer, scanned);
    const { model, signal } = this;
    const index = model.beginLayer(layer.name);
    const content = new IndexContent(model.files, INLINE_LIMIT_BYTES);
    const applier = new LayerApplier(model.tree, model.space, content);
    for (const batch of readRecords(request.recordsPath)) {
      for (const record of batch) {
        if (record === null) applier.entryEnd();
        else if ('bytes' in record) applier.content(Buffer.from(record.bytes), record.fileOffset);
        else applier.entry(record);
      }
      // Scans of other layers are fed from this thread.
      await setImmediate();
      signal.throwIfAborted();
    }
    const { chainId, uuid, parentUuid } = model.chain(scanned.diffId);
    const regionStart = model.space.endBytes;
    const extents = writeLayer(model.sources(chainId));
    // The layout is made when the first block is asked for, and with it the device's end.
    const first = extents.next();
    const identity = { virtualSizeBytes: deviceSizeFor(model.space.endBytes), uuid, ...(parentUuid === undefined ? {} : { parentUuid }) };
    const lsmt = new CommittedLayerWriter(identity, 'warp');
    await using blob = await LayerBlobWriter.create(metadataPath, METADATA_FORM, loadCodec());
    await blob.write(lsmt.header());
    let dataBytes = 0;
    let metadataBytes = 0;
    let isContentWritten = false;
    const writeContent = async (): Promise<void> => {
      isContentWritten = true;
      for (const bytes of content.emit(lsmt)) {
        dataBytes += bytes.length;
        await blob.write(bytes);
      }
    };
    for (let next: IteratorResult<DeviceExtent, void> = first; next.done !== true; next = extents.next()) {
      const { offsetBytes, bytes } = next.value;
      // Blocks of lower layers that changed, the layer's content, its own metadata: so they lie on the device.
      if (!isContentWritten && offsetBytes >= regionStart) await writeContent();
      model.metadata.write(offsetBytes, bytes, regionStart);
      lsmt.addData(offsetBytes / SECTOR_BYTES, bytes.length / SECTOR_BYTES);
      metadataBytes += bytes.length;
      await blob.write(bytes);
      signal.throwIfAborted();
    }
    if (!isContentWritten) await writeContent();
    model.endLayer();
    await blob.write(lsmt.finish());
    const { sizeBytes } = await blob.finish(signal);
    return {
      index,
      chainId,
      metadataFileBytes: sizeBytes,
      statistics: {
        entries: applier.entryCount,
        readBytes: scanned.readBytes,
        tarBytes: scanned.tarBytes,
        dataBytes,
        metadataBytes,
        deviceBytes: model.space.endBytes,
      },
      warnings: warningsOf(applier.skippedXattrs),
    };
  }

  private async complete(
    layer: SourceLayer,
    request: ScanRequest,
    scanned: ScannedLayer,
    metadataPath: string,
    described: Described,
  ): Promise<ConvertedLayer> {
    const target = path.join(this.options.stagingDirectory, `layer-${described.index}.blob`);
    const entries: BlobEntry[] = [
      { name: EROFS_META_NAME, sizeBytes: described.metadataFileBytes, path: metadataPath },
      { name: TURBO_MARKER, sizeBytes: 0 },
    ];
    if (scanned.gzipIndexBytes !== undefined) {
      entries.push({ name: GZIP_INDEX_NAME, sizeBytes: scanned.gzipIndexBytes, path: request.gzipIndexPath });
    }
    entries.push({ name: CHUNK_DIGESTS_NAME, sizeBytes: scanned.chunkDigestsBytes, path: request.chunkDigestsPath });
    try {
      const { digest, diffId, sizeBytes } = await writeTurboBlob(target, entries, this.options.signal);
      return {
        path: target,
        digest,
        sizeBytes,
        kind: 'index',
        sourceDiffId: scanned.diffId,
        sourceDigest: scanned.digest,
        sourceChainId: described.chainId,
        annotations: {
          [ANNOTATION.blobDigest]: digest,
          [ANNOTATION.blobSize]: String(sizeBytes),
          [ANNOTATION.version]: LAYER_VERSION.turbo,
          [ANNOTATION.turboTargetDigest]: scanned.digest,
          [ANNOTATION.turboTargetMediaType]: targetMediaType(layer.mediaType, scanned.compression),
          [DIFF_ID_ANNOTATION]: diffId,
        },
        statistics: described.statistics,
        warnings: described.warnings,
      };
    } catch (error) {
      await rm(target, { force: true });
      throw inLayer(error, layer.name);
    } finally {
      await rm(metadataPath, { force: true });
      await this.removeStaging(request);
    }
  }

  private async removeStaging({ recordsPath, gzipIndexPath, chunkDigestsPath }: ScanRequest): Promise<void> {
    for (const file of [recordsPath, gzipIndexPath, chunkDigestsPath]) await rm(file, { force: true });
  }
}

interface Described extends Pick<ConvertedLayer, 'statistics' | 'warnings'> {
  index: number;
  chainId: Digest;
  metadataFileBytes: number;
}

/** The original's media type by what its bytes are, in its own family. */
function targetMediaType(mediaType: string | undefined, compression: ScannedLayer['compression']): string {
  if (mediaType?.startsWith('application/vnd.docker.') === true) {
    return compression === 'gzip' ? MEDIA_TYPE.dockerLayerGzip : MEDIA_TYPE.dockerLayerTar;
  }
  return compression === 'gzip' ? MEDIA_TYPE.ociLayerGzip : MEDIA_TYPE.ociLayerTar;
}
