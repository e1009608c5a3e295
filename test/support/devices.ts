/** Devices over bytes in memory, for tests: descriptions from layers, opening in rounds, reading and hashing whole files. */
import { createHash } from 'node:crypto';
import { sha256 } from '../../plugin/base/digest.ts';
import { blobsOf, createDeviceFile, DeviceOpener, type DeviceTables, type PastTarget } from '../../plugin/file/device-file.ts';
import type { BlobSource, DeviceSpec, LayerSpec } from '../../plugin/file/device-spec.ts';
import { MemoryFile, MissingList, type MissingRanges, type RandomAccessFile } from '../../plugin/file/file.ts';
import { createContentFile, openContent } from '../../plugin/file/open-layer.ts';
import { loadCodec } from '../../plugin/kernel/codecs.ts';

/** A description together with the bytes of its blobs. */
export interface MemoryDevice {
  spec: DeviceSpec;
  bytesByDigest: Map<string, Uint8Array>;
}

/** A layer as bytes. */
export type MemoryLayer = Uint8Array | { meta: Uint8Array; target: Uint8Array; gzipIndex?: Uint8Array; chunkDigests?: Uint8Array };

/** Describes a stack of layers, bottom to top. */
export function memoryDevice(layers: readonly MemoryLayer[]): MemoryDevice {
  const bytesByDigest = new Map<string, Uint8Array>();
  const blob = (bytes: Uint8Array): BlobSource => {
    const digest = sha256(bytes);
    bytesByDigest.set(digest, bytes);
    return { digest, sizeBytes: bytes.length, repositories: [] };
  };
  const specOf = (layer: MemoryLayer): LayerSpec => {
    if (layer instanceof Uint8Array) return { kind: 'full', blob: blob(layer) };
    const { meta, target, gzipIndex, chunkDigests } = layer;
    const index = gzipIndex === undefined ? {} : { gzipIndex: blob(gzipIndex) };
    const checked = chunkDigests === undefined ? {} : { chunkDigests: blob(chunkDigests) };
    return { kind: 'index', meta: blob(meta), target: blob(target), ...index, ...checked };
  };
  return { spec: { version: 1, id: 'test', image: 'test', layers: layers.map(specOf) }, bytesByDigest };
}

/** A blob of which only some 4 KiB units are local; fetch() makes ranges local. Counts what was asked for. */
export class PartialFile implements RandomAccessFile {
  readonly sizeBytes: number;
  readonly present: Set<number> = new Set();
  private readonly bytes: Uint8Array;
  private readonly blobId: number;

  constructor(bytes: Uint8Array, blobId: number) {
    this.bytes = bytes;
    this.blobId = blobId;
    this.sizeBytes = bytes.length;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    let isComplete = true;
    for (let unit = Math.floor(offsetBytes / 4096); unit * 4096 < offsetBytes + lengthBytes; unit++) {
      if (!this.present.has(unit)) isComplete = false;
    }
    if (isComplete) target.set(this.bytes.subarray(offsetBytes, offsetBytes + lengthBytes), targetOffset);
    else missing.add(this.blobId, offsetBytes, lengthBytes);
    return isComplete;
  }

  fetch(offsetBytes: number, lengthBytes: number): void {
    for (let unit = Math.floor(offsetBytes / 4096); unit * 4096 < offsetBytes + lengthBytes; unit++) this.present.add(unit);
  }
}

/** Opens a device whose blobs are wholly local. Throws what opening throws. */
export function openMemoryDevice(
  device: MemoryDevice,
  options: { pastTarget?: PastTarget } = {},
): { tables: DeviceTables; files: RandomAccessFile[]; file: RandomAccessFile } {
  const files = blobsOf(device.spec).map((blob) => new MemoryFile(device.bytesByDigest.get(blob.digest)!));
  const tables = new DeviceOpener(device.spec, files, loadCodec(), options).tryOpen(new MissingList());
  if (tables === undefined) throw new Error('nothing can be missing in memory');
  return { tables, files, file: createDeviceFile(tables, files, loadCodec()) };
}

/** SHA-256 (hex) of a whole file, read in pieces of `chunkBytes`. */
export function hashFile(file: RandomAccessFile, chunkBytes = 1024 * 1024): string {
  const hash = createHash('sha256');
  const chunk = Buffer.alloc(chunkBytes);
  for (let at = 0; at < file.sizeBytes; at += chunkBytes) {
    const size = Math.min(chunkBytes, file.sizeBytes - at);
    if (!file.readSync(at, size, chunk, 0, new MissingList())) throw new Error(`bytes at ${at} are not local`);
    hash.update(chunk.subarray(0, size));
  }
  return hash.digest('hex');
}

/** All bytes of a (small) file. */
export function readWhole(file: RandomAccessFile): Uint8Array {
  const bytes = Buffer.alloc(file.sizeBytes);
  if (!file.readSync(0, bytes.length, bytes, 0, new MissingList())) throw new Error('bytes are not local');
  return bytes;
}

/** The content of a blob without its tar and ZFile wrappers. */
export function contentFile(blob: Uint8Array): RandomAccessFile {
  const file = new MemoryFile(blob);
  const content = openContent(file, 0, sha256(blob), new MissingList());
  if (content === undefined) throw new Error('nothing can be missing in memory');
  return createContentFile(content, file, loadCodec());
}
