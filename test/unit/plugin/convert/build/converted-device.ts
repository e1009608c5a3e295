/** Converts tars with the whole pipeline and joins the blobs to devices, through the product's own readers. */
import { closeSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { gunzipSync } from 'node:zlib';
import { expect } from 'vitest';
import { type AppError, isAppError } from '../../../../../plugin/base/errors.ts';
import { convertLayers } from '../../../../../plugin/convert/build/convert-layers.ts';
import type { ConvertedLayer, ConvertOptions, SourceLayer } from '../../../../../plugin/convert/build/options.ts';
import { MissingList } from '../../../../../plugin/file/file.ts';
import { parseTurboLayer } from '../../../../../plugin/image/turbo/turbo-layer.ts';
import { type MemoryLayer, memoryDevice, openMemoryDevice } from '../../../../support/devices.ts';

export interface BuiltLayer extends ConvertedLayer {
  blob: Buffer;
}

async function* cut(bytes: Uint8Array, chunkBytes: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += chunkBytes) yield bytes.subarray(at, at + chunkBytes);
}

/** Converts layers given as bytes; `chunkBytes`: how the input arrives. Leaves no file behind. */
export async function buildLayers(
  tars: readonly Uint8Array[],
  options: Partial<Omit<ConvertOptions, 'stagingDirectory'>> & { chunkBytes?: number } = {},
): Promise<BuiltLayer[]> {
  const { chunkBytes = 65_536, ...rest } = options;
  const stagingDirectory = await mkdtemp(path.join(tmpdir(), 'obd-build-'));
  try {
    const layers = tars.map((tar, i) => ({ name: `layer ${i}`, open: () => cut(tar, chunkBytes) }));
    const built: BuiltLayer[] = [];
    for await (const layer of convertLayers(layers, { signal: new AbortController().signal, ...rest, stagingDirectory })) {
      built.push({ ...layer, blob: readFileSync(layer.path) });
    }
    return built;
  } finally {
    await rm(stagingDirectory, { recursive: true });
  }
}

/** How the conversion of layers fails; it leaves no file. Throws when it does not, or not with an AppError. */
export async function conversionFailure(layers: readonly SourceLayer[], options: Partial<ConvertOptions>): Promise<AppError> {
  const stagingDirectory = await mkdtemp(path.join(tmpdir(), 'obd-fail-'));
  try {
    const defaults = { signal: new AbortController().signal, maxLayerBytes: 2 ** 22 };
    for await (const _ of convertLayers(layers, { ...defaults, ...options, stagingDirectory }));
  } catch (error) {
    expect(await readdir(stagingDirectory)).toEqual([]);
    if (isAppError(error)) return error;
    throw error;
  } finally {
    await rm(stagingDirectory, { recursive: true });
  }
  throw new Error('it was converted');
}

/** A layer's source that gives bytes in one piece. */
export const sourceOf = (content: Uint8Array): SourceLayer['open'] =>
  async function* () {
    yield content;
  };

/** A layer of a stack: a blob, or a built layer with the source that it was made from, which index-only layers read. */
export type StackLayer = Uint8Array | { built: BuiltLayer; source: Uint8Array };

function memoryLayer(layer: StackLayer): MemoryLayer {
  if (layer instanceof Uint8Array) return layer;
  const { built, source } = layer;
  if (built.kind === 'full') return built.blob;
  const parts = parseTurboLayer(gunzipSync(built.blob), built.digest);
  const meta = parts.metaByFsType.get('erofs');
  if (meta === undefined) throw new Error('no metadata of erofs');
  return { meta, target: source, ...(parts.gzipIndex === undefined ? {} : { gzipIndex: parts.gzipIndex }) };
}

/** A function that reads the device of a stack of layers. */
export function deviceReader(layers: readonly StackLayer[]): (offset: number, length: number) => Buffer {
  const { file } = openMemoryDevice(memoryDevice(layers.map(memoryLayer)));
  return (offset, length) => {
    const target = Buffer.alloc(length);
    if (!file.readSync(offset, length, target, 0, new MissingList())) throw new Error('bytes are not local');
    return target;
  };
}

/** fsck.erofs 1.5 looks for attributes behind every inode, also behind one without any that ends with the last block. */
const ROOM_BEHIND_BYTES = 4096;

/** Writes the device of a stack of layers, of which `sizeBytes` are used, as a sparse file; devices are always larger than that. */
export function writeDevice(layers: readonly StackLayer[], sizeBytes: number, target: string): void {
  const read = deviceReader(layers);
  const fd = openSync(target, 'w');
  ftruncateSync(fd, sizeBytes + ROOM_BEHIND_BYTES);
  const step = 1024 * 1024;
  const zeros = Buffer.alloc(step);
  for (let at = 0; at < sizeBytes; at += step) {
    const bytes = read(at, Math.min(step, sizeBytes - at));
    if (!bytes.equals(zeros.subarray(0, bytes.length))) writeSync(fd, bytes, 0, bytes.length, at);
  }
  closeSync(fd);
}
