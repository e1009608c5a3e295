/** Whether what a cache made is there, by asking who keeps it: the data plane, containerd, the disk. Ours. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { errnoOf } from '../../base/errors.ts';
import type { BlobSource } from '../../file/device-spec.ts';
import type { ImageClient } from '../../snapshotter/containerd/image-client.ts';
import { recordsOf } from './image-records.ts';
import type { OwnedImage } from './owned.ts';
import type { PinnedBlob } from './ports.ts';
import { resourcesOf } from './record-keeper.ts';

/** Index-only layers have files of metadata, which lie outside the store of blobs and are small. */
export function isFile({ localPath }: BlobSource): boolean {
  return localPath !== undefined;
}

/** Names the first thing that is not there; undefined when all is. Errors: containerd's. */
export async function missingOf(
  image: OwnedImage,
  kept: { pinned: readonly PinnedBlob[]; client: ImageClient; namespace: string; snapshotter: string; mayBePartial: boolean },
  signal: AbortSignal,
): Promise<string | undefined> {
  const { client, namespace, snapshotter, mayBePartial } = kept;
  const pinned = new Map(kept.pinned.map(({ digest, isWhole }) => [digest, isWhole]));
  for (const { digest } of image.blobs.filter((blob) => !isFile(blob))) {
    const isWhole = pinned.get(digest);
    if (isWhole === undefined || (!isWhole && !mayBePartial)) return `blob ${digest}`;
  }
  for (const { localPath, digest } of image.blobs) {
    if (localPath !== undefined && !(await hasDigest(localPath, digest))) return `index file ${digest}`;
  }
  for (const { type, id } of resourcesOf(image, snapshotter)) {
    const isThere =
      type === 'content'
        ? (await client.contentInfo(namespace, id, signal)) !== undefined
        : await client.hasSnapshot(namespace, snapshotter, id, signal);
    if (!isThere) return `${type} ${id}`;
  }
  const records = await recordsOf(client, namespace, signal);
  const name = image.names.find((one) => !records.has(one));
  return name === undefined ? undefined : `image record ${name}`;
}

/** True when a file is there and has the digest; read in pieces. Rejects with system errors other than that it is not there. */
async function hasDigest(path: string, digest: string): Promise<boolean> {
  const hash = createHash('sha256');
  try {
    for await (const chunk of createReadStream(path)) hash.update(chunk as Buffer);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return false;
    throw error;
  }
  return `sha256:${hash.digest('hex')}` === digest;
}
