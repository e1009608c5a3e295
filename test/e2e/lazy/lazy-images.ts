/** Small lazy images for the tests of this folder: tars in memory, converted by our own builder. */

import { createCipheriv, randomBytes } from 'node:crypto';
import { writeFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type ConvertTarsOptions, convertTars, indexTars } from '../../support/converted-image.ts';
import type { LazyHost } from '../../support/lazy-host.ts';
import { SNAPSHOTTER } from '../../support/lazy-host.ts';
import type { Image, ImageConfig, Layer } from '../../support/oci-image.ts';
import { run } from '../../support/process.ts';
import type { Scratch } from '../../support/scratch.ts';
import { busyboxLayer } from '../../support/small-images.ts';

export const OBDCTL = resolve(import.meta.dirname, '../../../admin/obdctl.ts');

/** Converts layers whose blobs are uncompressed tars in memory, bottom to top. */
export async function convertedImage(
  scratch: Scratch,
  layers: readonly Layer[],
  config: ImageConfig,
  options: Pick<ConvertTarsOptions, 'compression'> = {},
): Promise<Image> {
  const { paths, stagingDirectory } = await writeLayers(scratch, layers);
  return convertTars(paths, { config, stagingDirectory, ...options });
}

/** Small blobs over layers whose blobs are in memory, as an image. */
export async function indexedImage(scratch: Scratch, layers: readonly Layer[], config: ImageConfig): Promise<Image> {
  const { paths, stagingDirectory } = await writeLayers(scratch, layers);
  return indexTars(paths, { config, stagingDirectory });
}

async function writeLayers(scratch: Scratch, layers: readonly Layer[]): Promise<{ paths: string[]; stagingDirectory: string }> {
  const directory = await scratch.dir(`image-${randomBytes(4).toString('hex')}`);
  const paths: string[] = [];
  for (const [index, layer] of layers.entries()) {
    const path = join(directory, `layer${index}.tar`);
    await writeFile(path, layer.blob);
    paths.push(path);
  }
  return { paths, stagingDirectory: join(directory, 'converted') };
}

/** busybox with layers on top, converted. */
export async function lazyBusybox(
  scratch: Scratch,
  above: readonly Layer[] = [],
  config: ImageConfig = { cmd: ['/bin/sh'] },
): Promise<Image> {
  return convertedImage(scratch, [await busyboxLayer(), ...above], config);
}

/** `obdctl` against the host's own admin socket, with the tables that a person sees. Exit codes other than 0 are not failures of the call. */
export async function obdctl(host: LazyHost, ...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return run(process.execPath, [OBDCTL, '--socket', host.sidecar.adminSocket, '-o', 'table', ...args], { okCodes: [0, 1, 2, 3, 4] });
}

/** Runs a command in a new container and returns what it prints. */
export async function runOnce(host: LazyHost, reference: string, name: string, ...command: string[]): Promise<string> {
  return (await host.containerd.ctr(['run', '--rm', '--snapshotter', SNAPSHOTTER, reference, name, ...command])).stdout;
}

/** Bytes that do not compress and are equal for equal seeds. */
export function filledBytes(sizeBytes: number, seed: number): Buffer {
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16, seed), Buffer.alloc(16));
  return cipher.update(Buffer.alloc(sizeBytes));
}
