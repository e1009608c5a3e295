/**
 * Images and their twins: the golden layers as ordinary image and as the reference's TurboOCI artifacts over them, and any image as an
 * artifact that refers to another. Source: overlaybd-formats.md 4.2 and 5.1; OCI distribution-spec v1.1 (referrers tag).
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import { request } from 'undici';
import { sha256 } from '../../plugin/base/digest.ts';
import { ARTIFACT_TYPE, type ArtifactType } from '../../plugin/image/oci/media-types.ts';
import { FIXTURES_DIR } from './fixtures.ts';
import { buildImage, type Image, type ImageConfig, type Layer, layerOfTar, MEDIA_TYPE, type PushTarget } from './oci-image.ts';
import { tarOf } from './tar.ts';

const PREFIX = 'containerd.io/snapshot/overlaybd';

/** The same image with another manifest: of this kind, referring to `subject`. */
export function asArtifact(image: Image, artifactType: ArtifactType, subject: Image): Image {
  const { mediaType, digest, bytes } = subject.manifest;
  const document = JSON.parse(image.manifest.bytes.toString()) as object;
  const changed = Buffer.from(JSON.stringify({ ...document, artifactType, subject: { mediaType, digest, size: bytes.length } }));
  return { ...image, manifest: { ...image.manifest, bytes: changed, digest: sha256(changed) } };
}

/** An index-only layer over `original`, from the bytes of its small blob. */
export function turboLayer(blob: Uint8Array, original: Layer): Layer {
  const digest = sha256(blob);
  return {
    mediaType: MEDIA_TYPE.tarGzip,
    digest,
    sizeBytes: blob.length,
    diffId: sha256(gunzipSync(blob)),
    blob,
    annotations: {
      [`${PREFIX}/blob-digest`]: digest,
      [`${PREFIX}/blob-size`]: String(blob.length),
      [`${PREFIX}/version`]: '0.1.0-turbo.ociv1',
      [`${PREFIX}/turbo-oci/target-digest`]: original.digest,
      [`${PREFIX}/turbo-oci/target-media-type`]: original.mediaType,
    },
  };
}

const fixture = (name: string): Promise<Buffer> => readFile(join(FIXTURES_DIR, name));

/** A layer whose blob is the golden tar.gz, byte for byte. */
async function goldenLayer(n: number, isGzip: boolean): Promise<Layer> {
  const tar = await fixture(`oci/l${n}.tar`);
  if (!isGzip) return layerOfTar(tar);
  const blob = await fixture(`oci/l${n}.tar.gz`);
  return { mediaType: MEDIA_TYPE.tarGzip, digest: sha256(blob), sizeBytes: blob.length, diffId: sha256(tar), blob };
}

export interface Twins {
  base: Image;
  /** The reference's index-only artifact of `base`. */
  turbo: Image;
}

/** The golden layers 1 to `count` as they are, and their ext4 TurboOCI layers; `config` tells images with the same layers apart. */
export async function goldenTwins(count: 1 | 2 | 3, options: { gzip: boolean; config?: ImageConfig }): Promise<Twins> {
  const originals: Layer[] = [];
  const layers: Layer[] = [];
  for (let n = 1; n <= count; n++) {
    const original = await goldenLayer(n, options.gzip);
    originals.push(original);
    layers.push(turboLayer(await fixture(`turbo/${options.gzip ? 'targz' : 'tar'}/l${n}.turboOCIv1.tar.gz`), original));
  }
  return twinsOf(originals, layers, options.config);
}

/** The small golden layers with EROFS metadata, their small blobs packed here. */
export async function goldenErofsTwins(): Promise<Twins> {
  const originals: Layer[] = [];
  const layers: Layer[] = [];
  for (const n of [1, 2, 3]) {
    const original = layerOfTar(await fixture(`oci/small/e${n}.tar`));
    const meta = await fixture(`turbo/erofs/e${n}.erofs.fs.meta`);
    const tar = await tarOf([
      { name: 'erofs.fs.meta', content: meta },
      { name: '.turbo.ociv1', content: '' },
    ]);
    originals.push(original);
    layers.push(turboLayer(gzipSync(tar), original));
  }
  return twinsOf(originals, layers, undefined);
}

function twinsOf(originals: readonly Layer[], layers: readonly Layer[], config: ImageConfig = { cmd: ['/bin/sh'] }): Twins {
  const base = buildImage(originals, config);
  return { base, turbo: asArtifact(buildImage(layers, config), ARTIFACT_TYPE.turbo, base) };
}

/** Enters artifacts into the referrers tag of `subject`, as a pusher does where the registry has no referrers API. */
export async function pushReferrersTag(target: PushTarget, repository: string, subject: Image, artifacts: readonly Image[]): Promise<void> {
  const manifests = artifacts.map((image) => {
    const { artifactType } = JSON.parse(image.manifest.bytes.toString()) as { artifactType: string };
    return { mediaType: image.manifest.mediaType, digest: image.manifest.digest, size: image.manifest.bytes.length, artifactType };
  });
  const response = await request(`${target.url}/v2/${repository}/manifests/${subject.manifest.digest.replace(':', '-')}`, {
    method: 'PUT',
    headers: { 'content-type': MEDIA_TYPE.index },
    body: JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPE.index, manifests }),
  });
  const text = await response.body.text();
  if (response.statusCode !== 201) throw new Error(`PUT of the referrers tag: status ${response.statusCode} ${text.slice(0, 300)}`);
}
