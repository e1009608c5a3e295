/**
 * Container images made without docker: layers from tars (in memory or on disk), a config, a manifest, and a push over plain HTTP. Source:
 * OCI image-spec (manifest, config), OCI distribution-spec (push); descriptors of overlaybd layers as the reference implementation's convertor
 * writes them.
 */
import { createReadStream } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { request } from 'undici';
import { type Digest, sha256 } from '../../plugin/base/digest.ts';
import { digestOfFile, type TarEntry, tarOf } from './tar.ts';

export const MEDIA_TYPE = {
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  config: 'application/vnd.oci.image.config.v1+json',
  tar: 'application/vnd.oci.image.layer.v1.tar',
  tarGzip: 'application/vnd.oci.image.layer.v1.tar+gzip',
  index: 'application/vnd.oci.image.index.v1+json',
} as const;

export interface Layer {
  mediaType: string;
  digest: Digest;
  sizeBytes: number;
  /** SHA-256 of the uncompressed tar. */
  diffId: Digest;
  annotations?: Readonly<Record<string, string>>;
  /** The blob: bytes, or the path of a file. */
  blob: Uint8Array | string;
}

export interface ImageConfig {
  entrypoint?: readonly string[];
  cmd?: readonly string[];
  env?: readonly string[];
  workingDir?: string;
  user?: string;
  labels?: Readonly<Record<string, string>>;
}

export interface Image {
  layers: readonly Layer[];
  config: { bytes: Buffer; digest: Digest };
  manifest: { bytes: Buffer; digest: Digest; mediaType: string };
  /** Sum of the layers' blobs, which is what a full pull fetches. */
  layersSizeBytes: number;
}

export interface PushedImage extends Image {
  /** `127.0.0.1:5000/app:v1` */
  reference: string;
  repository: string;
}

/** A layer from the bytes of a tar. */
export function layerOfTar(tar: Uint8Array, options: { gzip?: boolean } = {}): Layer {
  const diffId = sha256(tar);
  if (options.gzip !== true) return { mediaType: MEDIA_TYPE.tar, digest: diffId, sizeBytes: tar.length, diffId, blob: tar };
  const blob = gzipSync(tar);
  return { mediaType: MEDIA_TYPE.tarGzip, digest: sha256(blob), sizeBytes: blob.length, diffId, blob };
}

/** A layer from tar entries. */
export async function layerOfEntries(entries: readonly TarEntry[], options: { gzip?: boolean } = {}): Promise<Layer> {
  return layerOfTar(await tarOf(entries), options);
}

/** A layer from a tar file; `gzipPath` is the same compressed, which then is what the image holds. */
export async function layerOfTarFile(tarPath: string, gzipPath?: string): Promise<Layer> {
  const tar = await digestOfFile(tarPath);
  if (gzipPath === undefined) return { ...tar, mediaType: MEDIA_TYPE.tar, diffId: tar.digest, blob: tarPath };
  return { ...(await digestOfFile(gzipPath)), mediaType: MEDIA_TYPE.tarGzip, diffId: tar.digest, blob: gzipPath };
}

/**
 * A layer that is an overlaybd blob (tar wrapper around ZFile or LSMT): its digest is its diffID, and the annotations say what it is.
 * `fsType` is written only where it is not the reference's default.
 */
export async function layerOfOverlaybdBlob(blob: string | Uint8Array, options: { fsType?: string } = {}): Promise<Layer> {
  const { digest, sizeBytes } = typeof blob === 'string' ? await digestOfFile(blob) : { digest: sha256(blob), sizeBytes: blob.length };
  const prefix = 'containerd.io/snapshot/overlaybd';
  return {
    mediaType: MEDIA_TYPE.tar,
    digest,
    sizeBytes,
    diffId: digest,
    blob,
    annotations: {
      [`${prefix}/blob-digest`]: digest,
      ...(options.fsType === undefined ? {} : { [`${prefix}/blob-fs-type`]: options.fsType }),
      [`${prefix}/blob-size`]: String(sizeBytes),
      [`${prefix}/version`]: '0.1.0',
    },
  };
}

/** Puts layers and a config together; nothing is sent anywhere. Equal input gives equal digests. */
export function buildImage(layers: readonly Layer[], options: ImageConfig = {}): Image {
  const configBytes = Buffer.from(
    JSON.stringify({
      created: '2023-11-14T22:13:20Z',
      architecture: 'amd64',
      os: 'linux',
      config: {
        ...(options.user === undefined ? {} : { User: options.user }),
        Env: options.env ?? ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
        ...(options.entrypoint === undefined ? {} : { Entrypoint: options.entrypoint }),
        ...(options.cmd === undefined ? {} : { Cmd: options.cmd }),
        ...(options.workingDir === undefined ? {} : { WorkingDir: options.workingDir }),
        ...(options.labels === undefined ? {} : { Labels: options.labels }),
      },
      rootfs: { type: 'layers', diff_ids: layers.map((layer) => layer.diffId) },
      history: layers.map(() => ({ created: '2023-11-14T22:13:20Z', created_by: 'test' })),
    }),
  );
  const config = { bytes: configBytes, digest: sha256(configBytes) };
  const manifestBytes = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: MEDIA_TYPE.manifest,
      config: { mediaType: MEDIA_TYPE.config, digest: config.digest, size: configBytes.length },
      layers: layers.map((layer) => ({
        mediaType: layer.mediaType,
        digest: layer.digest,
        size: layer.sizeBytes,
        ...(layer.annotations === undefined ? {} : { annotations: layer.annotations }),
      })),
    }),
  );
  return {
    layers,
    config,
    manifest: { bytes: manifestBytes, digest: sha256(manifestBytes), mediaType: MEDIA_TYPE.manifest },
    layersSizeBytes: layers.reduce((sum, layer) => sum + layer.sizeBytes, 0),
  };
}

/** Where images go: a registry of plain HTTP. */
export interface PushTarget {
  url: string;
  host: string;
  authorization?: string | undefined;
}

const PUSH_LIMIT_MS = 300_000;

async function send(
  target: PushTarget,
  method: 'HEAD' | 'POST' | 'PUT',
  url: string,
  expected: readonly number[],
  body?: { bytes: Uint8Array | string; sizeBytes: number; contentType: string },
): Promise<{ status: number; location: string }> {
  const headers: Record<string, string> = {};
  if (target.authorization !== undefined) headers.authorization = target.authorization;
  if (body !== undefined) {
    headers['content-type'] = body.contentType;
    headers['content-length'] = String(body.sizeBytes);
  }
  const response = await request(url, {
    method,
    headers,
    body: body === undefined ? null : typeof body.bytes === 'string' ? createReadStream(body.bytes) : Buffer.from(body.bytes),
    signal: AbortSignal.timeout(PUSH_LIMIT_MS),
  });
  const text = await response.body.text();
  if (!expected.includes(response.statusCode)) throw new Error(`${method} ${url}: status ${response.statusCode} ${text.slice(0, 500)}`);
  return { status: response.statusCode, location: String(response.headers.location ?? '') };
}

/** Sends a blob unless the repository has it. */
export async function pushBlob(
  target: PushTarget,
  repository: string,
  digest: Digest,
  sizeBytes: number,
  blob: Uint8Array | string,
): Promise<void> {
  const base = `${target.url}/v2/${repository}/blobs`;
  if ((await send(target, 'HEAD', `${base}/${digest}`, [200, 404])).status === 200) return;
  const { location } = await send(target, 'POST', `${base}/uploads/`, [202]);
  const url = new URL(location, target.url);
  url.searchParams.set('digest', digest);
  await send(target, 'PUT', url.href, [201], { bytes: blob, sizeBytes, contentType: 'application/octet-stream' });
}

/** Sends an image; returns it with its reference. */
export async function pushImage(target: PushTarget, repository: string, tag: string, image: Image): Promise<PushedImage> {
  for (const layer of image.layers) await pushBlob(target, repository, layer.digest, layer.sizeBytes, layer.blob);
  await pushBlob(target, repository, image.config.digest, image.config.bytes.length, image.config.bytes);
  const { bytes, mediaType } = image.manifest;
  await send(target, 'PUT', `${target.url}/v2/${repository}/manifests/${tag}`, [201], {
    bytes,
    sizeBytes: bytes.length,
    contentType: mediaType,
  });
  return { ...image, repository, reference: `${target.host}/${repository}:${tag}` };
}
