/**
 * Under what name a blob's bytes are kept. Until a blob is complete its digest proves nothing, so bytes are shared only between images
 * that believe the same witness: the list of chunk digests that their manifests name, or the registries that they name; and the same size.
 * Otherwise an image could have wrong bytes stored under the digest of a layer that another image uses, or have its right ones removed.
 *
 *   sha256:<digest>.<first 16 hex of the witness's SHA-256>      directory: the same without "sha256:"
 *   local:<digest>:<path>                                        a file that is not the store's
 */
import { hash } from 'node:crypto';
import type { Digest } from '../../base/digest.ts';
import type { BlobSource } from '../device-spec.ts';

const KEY_DIRECTORY = /^([0-9a-f]{64})\.[0-9a-f]{16}$/;

/** The key of a blob; equal keys share bytes. */
export function blobKeyOf(source: BlobSource): string {
  if (source.localPath !== undefined) return `local:${source.digest}:${source.localPath}`;
  const hosts = [...new Set(source.repositories.map((repository) => repository.host))].sort();
  const list = source.chunkList;
  const witness =
    list === undefined ? `from:${hosts.join(',')}` : `list:${list.digest},${list.offsetBytes},${list.sizeBytes},${list.chunkBytes}`;
  return `${source.digest}.${hash('sha256', `${witness} ${source.sizeBytes}`, 'hex').slice(0, 16)}`;
}

/** The digest in a stored blob's key. */
export function digestOfKey(key: string): Digest {
  return key.slice(0, key.indexOf('.')) as Digest;
}

/** The directory name of a stored blob's key. */
export function directoryOfKey(key: string): string {
  return key.slice('sha256:'.length);
}

/** What a directory name says, or undefined when it is none of ours. */
export function keyOfDirectory(name: string): { key: string; digest: Digest } | undefined {
  const match = KEY_DIRECTORY.exec(name);
  return match === null ? undefined : { key: `sha256:${name}`, digest: `sha256:${match[1]}` };
}
