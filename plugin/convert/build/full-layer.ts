/**
 * One layer in full mode: it is read once, its file data goes straight through the compressors, its metadata follows, and while the blob
 * is completed the next layer is read. Ours; see design.md, "Conversion".
 */
import { createHash } from 'node:crypto';
import path from 'node:path';
import type { Digest } from '../../base/digest.ts';
import { KIB } from '../../base/units.ts';
import { writeLayer } from '../../image/erofs/layer-writer.ts';
import { ANNOTATION, LAYER_VERSION } from '../../image/oci/annotations.ts';
import { CHUNK_LIST_ANNOTATION, encodeChunkList } from '../../image/oci/chunk-list.ts';
import { TarReader } from '../../image/tar/reader.ts';
import { BlobWriter, type WrittenBlob } from './blob-writer.ts';
import type { CompressPool } from './compress-pool.ts';
import { decompress } from './decompress.ts';
import { FullContent } from './full-content.ts';
import type { ImageModel } from './image-model.ts';
import { LayerApplier } from './layer-applier.ts';
import { checkDigests, inEntry, inLayer, warningsOf } from './layer-errors.ts';
import { LayerStream } from './layer-stream.ts';
import { type ConvertedLayer, type ConvertOptions, DEFAULT_COMPRESSION, DEFAULT_MAX_LAYER_BYTES, type SourceLayer } from './options.ts';

/** Input is applied in steps of this, so that what arrives while the compressors are busy stays small. */
const PUSH_BYTES = 256 * KIB;

interface SourceSums {
  digest: Digest;
  diffId: Digest;
  readBytes: number;
  tarBytes: number;
}

type Described = Omit<ConvertedLayer, 'path' | 'digest' | 'sizeBytes' | 'annotations'>;

export class FullLayers {
  private readonly options: ConvertOptions;
  private readonly pool: CompressPool;
  private readonly model: ImageModel;

  constructor(options: ConvertOptions, pool: CompressPool, model: ImageModel) {
    this.options = options;
    this.pool = pool;
    this.model = model;
  }

  /** Reads a layer to its end and writes its metadata; `completion` is the rest, which needs the model no more. */
  async build(layer: SourceLayer): Promise<{ completion: Promise<ConvertedLayer> }> {
    const index = this.model.beginLayer(layer.name);
    const { stagingDirectory, compression = DEFAULT_COMPRESSION } = this.options;
    const blob = await BlobWriter.create(path.join(stagingDirectory, `layer-${index}.blob`), this.pool, compression);
    try {
      const described = await this.fill(layer, index, blob);
      return { completion: complete(blob, described) };
    } catch (error) {
      await blob.discard();
      throw inLayer(error, layer.name);
    }
  }

  private async fill(layer: SourceLayer, index: number, blob: BlobWriter): Promise<Described> {
    const { model } = this;
    const { tree, space } = model;
    const stream = new LayerStream(blob, space.endBytes);
    const applier = new LayerApplier(tree, space, new FullContent(stream, model.files));
    const source = await this.readTar(layer, index, applier, blob);
    const { chainId, uuid, parentUuid } = model.chain(source.diffId);
    const fileBytes = stream.dataBytes;
    const regionStart = space.endBytes;
    for (const extent of writeLayer(model.sources(chainId))) {
      model.metadata.write(extent.offsetBytes, extent.bytes, regionStart);
      stream.append(extent.offsetBytes, extent.bytes);
      await blob.ready();
      this.options.signal.throwIfAborted();
    }
    model.endLayer();
    await stream.finish({ deviceBytes: space.endBytes, uuid, parentUuid });
    await blob.ready();
    return {
      kind: 'full',
      sourceDiffId: source.diffId,
      sourceDigest: source.digest,
      sourceChainId: chainId,
      statistics: {
        entries: applier.entryCount,
        readBytes: source.readBytes,
        tarBytes: source.tarBytes,
        dataBytes: fileBytes,
        metadataBytes: stream.dataBytes - fileBytes,
        deviceBytes: space.endBytes,
      },
      warnings: warningsOf(applier.skippedXattrs),
    };
  }

  private async readTar(layer: SourceLayer, index: number, applier: LayerApplier, blob: BlobWriter): Promise<SourceSums> {
    const { signal, onProgress, maxLayerBytes = DEFAULT_MAX_LAYER_BYTES } = this.options;
    const stored = createHash('sha256');
    const tar = createHash('sha256');
    const reader = new TarReader(applier);
    let readBytes = 0;
    let tarBytes = 0;
    const onCompressed = (chunk: Uint8Array): void => {
      stored.update(chunk);
      readBytes += chunk.length;
    };
    try {
      for await (const chunk of decompress(layer.open(signal), layer.name, { maxBytes: maxLayerBytes }, onCompressed, signal)) {
        signal.throwIfAborted();
        tarBytes += chunk.length;
        tar.update(chunk);
        for (let at = 0; at < chunk.length; at += PUSH_BYTES) {
          reader.push(chunk.subarray(at, at + PUSH_BYTES));
          await blob.ready();
        }
        onProgress?.({ layer: index, readBytes, tarBytes, entries: applier.entryCount });
      }
    } catch (error) {
      throw inEntry(error, reader.entryName);
    }
    reader.end();
    const sums: SourceSums = { digest: `sha256:${stored.digest('hex')}`, diffId: `sha256:${tar.digest('hex')}`, readBytes, tarBytes };
    checkDigests(layer, sums);
    return sums;
  }
}

async function complete(blob: BlobWriter, described: Described): Promise<ConvertedLayer> {
  const { path, digest, sizeBytes, chunkList } = await finishOrDiscard(blob);
  return {
    path,
    digest,
    sizeBytes,
    ...described,
    annotations: {
      [ANNOTATION.blobDigest]: digest,
      [ANNOTATION.blobSize]: String(sizeBytes),
      [ANNOTATION.version]: LAYER_VERSION.native,
      [ANNOTATION.blobFsType]: 'erofs',
      [CHUNK_LIST_ANNOTATION]: encodeChunkList(chunkList),
    },
  };
}

async function finishOrDiscard(blob: BlobWriter): Promise<WrittenBlob> {
  try {
    return await blob.finish();
  } catch (error) {
    await blob.discard();
    throw error;
  }
}
