/**
 * OCI image layout directories, as a source of images to convert and as a place to put results. Source: OCI image-spec, image-layout.md.
 */
import { createReadStream } from 'node:fs';
import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { isDigest, sha256 } from '../../base/digest.ts';
import { AppError, errnoOf } from '../../base/errors.ts';
import { KIB, MIB } from '../../base/units.ts';
import type { Descriptor } from '../../image/oci/descriptor.ts';
import { encodeManifest, type Index, parseIndex } from '../../image/oci/manifest.ts';
import { MEDIA_TYPE } from '../../image/oci/media-types.ts';
import type { ConvertedImage } from '../build/converted-image.ts';
import type { ConvertedLayer } from '../build/options.ts';
import { type BlobReader, checkDocumentSize } from './image-source.ts';

/** Names an entry of `index.json`: a tag, or a whole reference. */
const REF_NAME = 'org.opencontainers.image.ref.name';

export class OciLayout implements BlobReader {
  readonly directory: string;

  constructor(directory: string) {
    this.directory = directory;
  }

  /** The layout's `index.json`. Rejects with NotFound when the directory is no layout. */
  async index(): Promise<Index> {
    const file = path.join(this.directory, 'index.json');
    return parseIndex(await this.readSmall(file, 8 * MIB), MEDIA_TYPE.ociIndex, file);
  }

  /** The entry of `index.json` with this name, or the only one when no name is given. Rejects with NotFound or InvalidArgument. */
  async find(name?: string): Promise<Descriptor> {
    const { manifests } = await this.index();
    const found = name === undefined ? manifests : manifests.filter((entry) => entry.annotations?.[REF_NAME] === name);
    if (found.length === 1) return found[0]!;
    const names = manifests.map((entry) => entry.annotations?.[REF_NAME] ?? entry.digest).slice(0, 10);
    const what = `${found.length} images ${name === undefined ? 'are in it' : `are named ${JSON.stringify(name)}`}; there are: ${names.join(', ')}`;
    throw new AppError(found.length === 0 ? 'NotFound' : 'InvalidArgument', { op: 'find image in', subject: this.directory, what });
  }

  async readDocument(descriptor: Descriptor, signal: AbortSignal): Promise<Uint8Array> {
    signal.throwIfAborted();
    checkDocumentSize(descriptor);
    const bytes = await this.readSmall(this.pathOf(descriptor), descriptor.sizeBytes);
    if (sha256(bytes) !== descriptor.digest) {
      throw new AppError('DataLoss', {
        op: 'read document',
        subject: descriptor.digest,
        what: `its bytes have the digest ${sha256(bytes)}`,
      });
    }
    return bytes;
  }

  async *openBlob(descriptor: Descriptor, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    try {
      yield* createReadStream(this.pathOf(descriptor), { highWaterMark: 256 * KIB, signal });
    } catch (cause) {
      if (errnoOf(cause) !== 'ENOENT') throw cause;
      throw new AppError('NotFound', { op: 'read blob', subject: descriptor.digest, what: `it is not in ${this.directory}`, cause });
    }
  }

  /**
   * Adds a converted image under a name, making the layout if there is none; the layers' files, on the same file system, become its blobs.
   * An entry of the same name is replaced.
   */
  async add(image: ConvertedImage, layers: readonly ConvertedLayer[], name: string): Promise<void> {
    await mkdir(path.join(this.directory, 'blobs', 'sha256'), { recursive: true });
    for (const layer of layers) await rename(layer.path, this.pathOf(layer));
    await this.put(image.config.descriptor, image.config.bytes);
    await this.put(image.manifest.descriptor, image.manifest.bytes);
    const isLayout = await exists(path.join(this.directory, 'oci-layout'));
    const others = isLayout ? (await this.index()).manifests.filter((entry) => entry.annotations?.[REF_NAME] !== name) : [];
    const entry = { ...image.manifest.descriptor, annotations: { [REF_NAME]: name } };
    const index = encodeManifest({ kind: 'index', mediaType: MEDIA_TYPE.ociIndex, manifests: [...others, entry] });
    await replaceFile(path.join(this.directory, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
    await replaceFile(path.join(this.directory, 'index.json'), index);
  }

  private put(descriptor: Descriptor, bytes: Uint8Array): Promise<void> {
    return replaceFile(this.pathOf(descriptor), bytes);
  }

  private pathOf({ digest }: { digest: string }): string {
    if (!isDigest(digest)) throw new AppError('InvalidArgument', { op: 'read blob', subject: digest, what: 'not a SHA-256 digest' });
    return path.join(this.directory, 'blobs', 'sha256', digest.slice(7));
  }

  private async readSmall(file: string, maxBytes: number): Promise<Buffer> {
    try {
      const { size } = await stat(file);
      if (size > maxBytes)
        throw new AppError('InvalidArgument', { op: 'read', subject: file, what: `${size} bytes, at most ${maxBytes} are expected` });
      return await readFile(file);
    } catch (cause) {
      if (errnoOf(cause) !== 'ENOENT') throw cause;
      throw new AppError('NotFound', { op: 'read', subject: file, what: 'there is no such file', cause });
    }
  }
}

async function exists(file: string): Promise<boolean> {
  try {
    await stat(file);
    return true;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
}

async function replaceFile(file: string, bytes: Uint8Array | string): Promise<void> {
  await writeFile(`${file}.new`, bytes);
  await rename(`${file}.new`, file);
}
