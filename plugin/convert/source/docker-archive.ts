/**
 * Archives that `docker save` and `podman save` write: a tar with `manifest.json`, configurations and layer tars. Read in place, by the
 * positions of its entries; nothing is unpacked. Source: moby, image/tarexport (manifest.json: Config, RepoTags, Layers).
 */
import { type FileHandle, open } from 'node:fs/promises';
import { z } from 'zod';
import { AppError, errnoOf } from '../../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../../base/limits.ts';
import { KIB } from '../../base/units.ts';
import { parseImageConfig } from '../../image/oci/config.ts';
import { MEDIA_TYPE } from '../../image/oci/media-types.ts';
import { TarReader } from '../../image/tar/reader.ts';
import type { SourceManifest } from '../build/converted-image.ts';
import { detectCompression } from '../build/decompress.ts';
import type { SourceLayer } from '../build/options.ts';

const READ_BYTES = 256 * KIB;
const MAGIC_BYTES = 4;
/** Entries of one archive: some a layer, 255 layers, a few images. */
const MAX_ENTRIES = 100_000;

const manifestSchema = z.array(
  z.object({
    Config: z.string().max(4096),
    RepoTags: z.array(z.string().max(4096)).nullish(),
    Layers: z.array(z.string().max(4096)).max(4096),
  }),
);

/** Where an entry's content lies in the archive. */
interface Place {
  offsetBytes: number;
  sizeBytes: number;
}

export interface ArchivedImage {
  /** `name:tag`, as many as the archive gives it. */
  tags: string[];
  /** There is no manifest in such an archive, so no subject either. */
  source: SourceManifest;
  layers: SourceLayer[];
}

export class DockerArchive {
  private readonly file: FileHandle;
  private readonly path: string;
  private readonly places: ReadonlyMap<string, Place>;

  private constructor(file: FileHandle, path: string, places: ReadonlyMap<string, Place>) {
    this.file = file;
    this.path = path;
    this.places = places;
  }

  /** Opens an uncompressed archive and finds its entries. Rejects with InvalidArgument when it is none; dispose it afterwards. */
  static async open(path: string, signal: AbortSignal): Promise<DockerArchive> {
    const file = await openFile(path);
    try {
      await refuseCompressed(file, path);
      return new DockerArchive(file, path, await findEntries(file, signal));
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** The images of the archive. Rejects with InvalidArgument for an archive that contradicts itself. */
  async images(signal: AbortSignal): Promise<ArchivedImage[]> {
    const parsed = manifestSchema.safeParse(parseJson(await this.readSmall('manifest.json', signal), this.path));
    if (!parsed.success) throw this.bad(`manifest.json is not what docker save writes: ${parsed.error.issues[0]?.message ?? ''}`);
    const images: ArchivedImage[] = [];
    for (const { Config, RepoTags, Layers } of parsed.data) {
      const config = parseImageConfig(await this.readSmall(Config, signal), Config);
      if (config.diffIds.length !== Layers.length) {
        throw this.bad(`${Config} has ${config.diffIds.length} diffIDs, manifest.json ${Layers.length} layers`);
      }
      const layers = Layers.map((name, i): SourceLayer => {
        const place = this.placeOf(name);
        return { name, open: (layerSignal) => this.read(place, layerSignal), diffId: config.diffIds[i]! };
      });
      const descriptors = Layers.map((name, i) => ({
        mediaType: MEDIA_TYPE.ociLayerTar,
        digest: config.diffIds[i]!,
        sizeBytes: this.placeOf(name).sizeBytes,
      }));
      images.push({ tags: RepoTags ?? [], source: { manifest: { layers: descriptors }, config }, layers });
    }
    return images;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.file.close();
  }

  private async *read({ offsetBytes, sizeBytes }: Place, signal: AbortSignal): AsyncGenerator<Uint8Array> {
    for (let done = 0; done < sizeBytes; ) {
      signal.throwIfAborted();
      const buffer = Buffer.allocUnsafe(Math.min(READ_BYTES, sizeBytes - done));
      const { bytesRead } = await this.file.read(buffer, 0, buffer.length, offsetBytes + done);
      if (bytesRead === 0) throw this.bad('it became shorter while it was read');
      done += bytesRead;
      yield buffer.subarray(0, bytesRead);
    }
  }

  private async readSmall(name: string, signal: AbortSignal): Promise<Buffer> {
    const place = this.placeOf(name);
    if (place.sizeBytes > MAX_MANIFEST_BYTES)
      throw this.bad(`${name} has ${place.sizeBytes} bytes, at most ${MAX_MANIFEST_BYTES} are expected`);
    const parts: Uint8Array[] = [];
    for await (const part of this.read(place, signal)) parts.push(part);
    return Buffer.concat(parts);
  }

  private placeOf(name: string): Place {
    const place = this.places.get(Buffer.from(name, 'utf8').toString('latin1'));
    if (place === undefined) throw this.bad(`${JSON.stringify(name.slice(0, 200))} is not in it`);
    return place;
  }

  private bad(what: string): AppError {
    return new AppError('InvalidArgument', { op: 'read archive', subject: this.path, what });
  }
}

async function openFile(path: string): Promise<FileHandle> {
  try {
    return await open(path, 'r');
  } catch (cause) {
    if (errnoOf(cause) !== 'ENOENT') throw cause;
    throw new AppError('NotFound', { op: 'read archive', subject: path, what: 'there is no such file', cause });
  }
}

/** Positions in a compressed archive lead nowhere. */
async function refuseCompressed(file: FileHandle, path: string): Promise<void> {
  const head = Buffer.alloc(MAGIC_BYTES);
  const { bytesRead } = await file.read(head, 0, head.length, 0);
  const kind = detectCompression(head.subarray(0, bytesRead));
  if (kind === 'none') return;
  throw new AppError('InvalidArgument', { op: 'read archive', subject: path, what: `it is compressed with ${kind}; decompress it first` });
}

/** Names (byte strings) and places of the files in the archive. Old archives repeat layers as links to one another. */
async function findEntries(file: FileHandle, signal: AbortSignal): Promise<Map<string, Place>> {
  const places = new Map<string, Place>();
  const links = new Map<string, string>();
  const reader = new TarReader({
    entry: ({ type, name, linkName, contentOffset, sizeBytes }) => {
      if (places.size + links.size > MAX_ENTRIES) {
        throw new AppError('ResourceExhausted', { op: 'read archive', subject: name, what: `more than ${MAX_ENTRIES} entries` });
      }
      if (type === 'file') places.set(name, { offsetBytes: contentOffset, sizeBytes });
      else if (type === 'symlink') links.set(name, resolveLink(name, linkName));
      else if (type === 'hardlink') links.set(name, linkName);
    },
    content: () => undefined,
    entryEnd: () => undefined,
  });
  const buffer = Buffer.allocUnsafe(READ_BYTES);
  for (let position = 0; ; ) {
    signal.throwIfAborted();
    const { bytesRead } = await file.read(buffer, 0, buffer.length, position);
    if (bytesRead === 0) break;
    reader.push(buffer.subarray(0, bytesRead));
    position += bytesRead;
  }
  reader.end();
  for (const [name, target] of links) {
    const place = places.get(target);
    if (place !== undefined) places.set(name, place);
  }
  return places;
}

/** `a/layer.tar` → `../b/layer.tar` is `b/layer.tar`. */
function resolveLink(name: string, target: string): string {
  const parts = name.split('/').slice(0, -1);
  for (const part of target.split('/')) {
    if (part === '..') parts.pop();
    else if (part !== '.' && part !== '') parts.push(part);
  }
  return parts.join('/');
}

function parseJson(bytes: Buffer, subject: string): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'));
  } catch (cause) {
    throw new AppError('InvalidArgument', { op: 'read archive', subject, what: 'manifest.json is not JSON', cause });
  }
}
