/** Names of results, and what is never an input (R5–R8, R28). */
import { expect, test } from 'vitest';
import { isConverted, platformText, reasonToLeave } from '../../../../../plugin/convert/publish/classify.ts';
import { acceleratedTag, isOutputTag } from '../../../../../plugin/convert/publish/tag-names.ts';
import type { Manifest } from '../../../../../plugin/image/oci/manifest.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../../../../plugin/image/oci/media-types.ts';

const digest = `sha256:${'0'.repeat(64)}` as const;
const manifest: Manifest = {
  kind: 'manifest',
  mediaType: MEDIA_TYPE.ociManifest,
  config: { mediaType: MEDIA_TYPE.ociConfig, digest, sizeBytes: 2 },
  layers: [{ mediaType: MEDIA_TYPE.ociLayerGzip, digest, sizeBytes: 5 }],
};

test('the tag tells mode and runtime; the tag of a result, or one that gets too long, is refused', () => {
  expect(acceleratedTag('1.0', 'full', 'containerd')).toBe('1.0_containerd_accelerated');
  expect(acceleratedTag('1.0', 'full', 'docker-and-containerd')).toBe('1.0_accelerated');
  expect(acceleratedTag('1.0', 'index-only', 'containerd')).toBe('1.0_accelerated');
  expect(() => acceleratedTag('1.0_accelerated', 'full', 'containerd')).toThrowError(/converted image already/);
  expect(() => acceleratedTag('x'.repeat(120), 'full', 'containerd')).toThrowError(/too long/);
});

test('tags of results and of referrer lists are known as such', () => {
  const tags = [
    '1_accelerated',
    '1_containerd_accelerated',
    `sha256-${'a'.repeat(64)}`,
    `sha256-${'a'.repeat(64)}.sig`,
    'accelerated',
    'sha256-x',
  ];
  expect(tags.map(isOutputTag)).toEqual([true, true, true, true, false, false]);
});

test('a result is known by artifact type or by the annotations of its layers, ours and the reference’s', () => {
  expect(isConverted(manifest)).toBe(false);
  expect(isConverted({ ...manifest, artifactType: ARTIFACT_TYPE.turbo })).toBe(true);
  const annotations = { 'containerd.io/snapshot/overlaybd/blob-digest': digest };
  expect(isConverted({ ...manifest, layers: [{ ...manifest.layers[0]!, annotations }] })).toBe(true);
  expect(isConverted({ kind: 'index', mediaType: MEDIA_TYPE.ociIndex, manifests: [], artifactType: ARTIFACT_TYPE.native })).toBe(true);
});

test('what is no image is left alone, with the reason', () => {
  const entry = { mediaType: MEDIA_TYPE.ociManifest, digest, sizeBytes: 3 };
  expect(reasonToLeave(manifest, entry)).toBeUndefined();
  expect(reasonToLeave(manifest, { ...entry, annotations: { 'vnd.docker.reference.type': 'attestation-manifest' } })).toMatch(
    /attestation/,
  );
  expect(reasonToLeave({ ...manifest, artifactType: 'application/x' })).toMatch(/application\/x/);
  expect(reasonToLeave({ ...manifest, config: { ...manifest.config, mediaType: 'application/vnd.cncf.helm.config.v1+json' } })).toMatch(
    /helm/,
  );
  expect(reasonToLeave({ ...manifest, layers: [] })).toMatch(/no layers/);
  expect(reasonToLeave({ ...manifest, layers: [{ ...manifest.layers[0]!, mediaType: 'text/plain' }] })).toMatch(/text\/plain/);
  expect(platformText({ ...entry, platform: { os: 'linux', architecture: 'arm', variant: 'v7' } })).toBe('linux/arm/v7');
});
