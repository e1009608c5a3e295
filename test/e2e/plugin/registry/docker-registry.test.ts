/**
 * The client against Debian's docker-registry: an image made by skopeo-compatible tools is pushed, read and deleted through it, with Basic
 * logins, ranges, the referrers tag (this registry has no referrers API) and an upload that breaks and goes on.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { type Digest, sha256 } from '../../../../plugin/base/digest.ts';
import { encodeManifest, parseManifest } from '../../../../plugin/image/oci/manifest.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../../../plugin/image/oci/media-types.ts';
import type { RegistryClient } from '../../../../plugin/registry/client.ts';
import { dockerConfigSource } from '../../../../plugin/registry/docker-config.ts';
import { DockerRegistry } from '../../../support/docker-registry.ts';
import { failureOf, randomBlob, testClient } from '../../../support/registry-client.ts';
import { type RegistryProxy, startRegistryProxy } from '../../../support/registry-proxy.ts';

const USER = { username: 'tester', password: 'a long password' };
let dir: string;
let registry: DockerRegistry;
let proxy: RegistryProxy;
let client: RegistryClient;
const repository = () => ({ host: registry.host, repository: 'team/app' });

beforeAll(async () => {
  dir = mkdtempSync(join(tmpdir(), 'obd-registry-e2e-'));
  registry = await DockerRegistry.start({ htpasswd: USER });
  proxy = await startRegistryProxy({ upstream: registry.host, faults: [] });
  const config = { auths: Object.fromEntries([registry.host, proxy.host].map((host) => [host, USER])) };
  writeFileSync(join(dir, 'config.json'), JSON.stringify(config));
  client = testClient({ credentials: dockerConfigSource(join(dir, 'config.json')) });
});
afterAll(async () => {
  await client?.close();
  await proxy?.close();
  await registry?.[Symbol.asyncDispose]();
  rmSync(dir, { recursive: true, force: true });
});

/** An OCI layout with one layer of files, made by umoci. */
function makeLayout(): { blob: (digest: Digest) => Buffer; manifest: Buffer } {
  const layout = join(dir, 'layout');
  const files = join(dir, 'files');
  mkdirSync(files);
  for (let i = 0; i < 20; i += 1) writeFileSync(join(files, `file-${i}`), randomBlob(100_000));
  const umoci = (...args: string[]) => execFileSync('umoci', args, { stdio: ['ignore', 'ignore', 'pipe'] });
  umoci('init', '--layout', layout);
  umoci('new', '--image', `${layout}:v1`);
  umoci('insert', '--image', `${layout}:v1`, files, '/files');
  const blob = (digest: Digest) => readFileSync(join(layout, 'blobs', 'sha256', digest.slice('sha256:'.length)));
  const index = JSON.parse(readFileSync(join(layout, 'index.json'), 'utf8')) as { manifests: { digest: Digest }[] };
  return { blob, manifest: blob(index.manifests[0]!.digest) };
}

test('an image is pushed, resolved, read by ranges and as a whole, found by skopeo, and deleted', async () => {
  const { blob, manifest } = makeLayout();
  const parsed = parseManifest(manifest, MEDIA_TYPE.ociManifest, 'layout');
  for (const descriptor of [parsed.config, ...parsed.layers]) {
    const bytes = blob(descriptor.digest);
    const readAt = async (offset: number, length: number) => bytes.subarray(offset, offset + length);
    expect(await client.uploadBlob(repository(), descriptor, readAt)).toBe('uploaded');
    expect(await client.uploadBlob(repository(), descriptor, readAt)).toBe('existed');
  }
  const digest = await client.putManifest(repository(), 'v1', manifest, MEDIA_TYPE.ociManifest);
  expect(await client.listTags(repository())).toEqual(['v1']);
  expect(await client.resolve(repository(), 'v1')).toEqual({ mediaType: MEDIA_TYPE.ociManifest, digest, sizeBytes: manifest.length });
  expect(Buffer.from((await client.getManifest(repository(), digest)).bytes).equals(manifest)).toBe(true);

  const [layer] = parsed.layers;
  const bytes = blob(layer!.digest);
  for (const [offset, length] of [
    [0, 1],
    [65_536, 65_536],
    [bytes.length - 7, 7],
    [0, bytes.length],
  ] as const) {
    const range = await client.fetchRange(repository(), layer!.digest, layer!.sizeBytes, offset, length);
    expect(Buffer.from(range.bytes).equals(bytes.subarray(offset, offset + length))).toBe(true);
  }
  const chunks: Uint8Array[] = [];
  for await (const chunk of client.streamBlob(repository(), layer!)) chunks.push(chunk);
  expect(Buffer.concat(chunks).equals(bytes)).toBe(true);

  const inspected = execFileSync(
    'skopeo',
    ['inspect', '--raw', '--tls-verify=false', `--creds=${USER.username}:${USER.password}`, `docker://${registry.host}/team/app:v1`],
    { stdio: ['ignore', 'pipe', 'pipe'] },
  );
  expect(inspected.equals(manifest)).toBe(true);

  await client.deleteManifest(repository(), digest);
  expect((await failureOf(client.resolve(repository(), 'v1'))).code).toBe('NotFound');
});

test('a large blob in several requests, broken in the middle, arrives whole', async () => {
  const bytes = randomBlob(12_000_000);
  const blob = { digest: sha256(bytes), sizeBytes: bytes.length };
  proxy.inject({ method: 'PATCH', path: /uploads/, effect: { kind: 'reset' } });
  const through = { host: proxy.host, repository: 'team/large' };
  const readAt = async (offset: number, length: number) => bytes.subarray(offset, offset + length);
  expect(await client.uploadBlob(through, blob, readAt, { chunkBytes: 5_000_000 })).toBe('uploaded');
  const direct = { host: registry.host, repository: 'team/large' };
  const range = await client.fetchRange(direct, blob.digest, blob.sizeBytes, 4_900_000, 200_000);
  expect(Buffer.from(range.bytes).equals(bytes.subarray(4_900_000, 5_100_000))).toBe(true);
  // The registry mounts it into another repository without a byte being sent.
  const never = async (): Promise<Uint8Array> => {
    throw new Error('must not be read');
  };
  expect(await client.uploadBlob({ ...direct, repository: 'team/copy' }, blob, never, { mountFrom: ['team/large'] })).toBe('mounted');
  expect(await client.statBlob({ ...direct, repository: 'team/copy' }, blob.digest)).toBe(blob.sizeBytes);
});

test('an artifact with a subject is listed through the referrers tag', async () => {
  const empty = Buffer.from('{}');
  const config = { mediaType: MEDIA_TYPE.ociEmpty, digest: sha256(empty), sizeBytes: empty.length };
  await client.uploadBlob(repository(), config, async () => empty);
  const image = encodeManifest({ kind: 'manifest', mediaType: MEDIA_TYPE.ociManifest, config, layers: [config] });
  const digest = await client.putManifest(repository(), 'base', image, MEDIA_TYPE.ociManifest);
  const subject = { mediaType: MEDIA_TYPE.ociManifest, digest, sizeBytes: image.length };
  for (const artifactType of [ARTIFACT_TYPE.native, ARTIFACT_TYPE.turbo]) {
    const artifact = encodeManifest({
      kind: 'manifest',
      mediaType: MEDIA_TYPE.ociManifest,
      artifactType,
      config,
      layers: [config],
      subject,
    });
    await client.putManifest(repository(), sha256(artifact), artifact, MEDIA_TYPE.ociManifest);
  }
  expect((await client.listReferrers(repository(), digest)).length).toBe(2);
  const [turbo, ...rest] = await client.listReferrers(repository(), digest, { artifactType: ARTIFACT_TYPE.turbo });
  expect([turbo?.artifactType, rest.length]).toEqual([ARTIFACT_TYPE.turbo, 0]);
  const fetched = await client.getManifest(repository(), turbo!.digest);
  expect(parseManifest(fetched.bytes, fetched.descriptor.mediaType, 'artifact').subject?.digest).toBe(digest);

  // Deleted without a word to the list, which this registry then takes no longer as it is.
  await client.deleteManifest(repository(), turbo!.digest);
  const annotations = { made: 'later' };
  const later = encodeManifest({ kind: 'manifest', mediaType: MEDIA_TYPE.ociManifest, config, layers: [config], subject, annotations });
  await client.putManifest(repository(), sha256(later), later, MEDIA_TYPE.ociManifest);
  const listed = await client.listReferrers(repository(), digest);
  expect(listed.map((entry) => entry.annotations?.made ?? entry.artifactType)).toEqual([ARTIFACT_TYPE.native, 'later']);
});

test('wrong passwords are Unauthenticated', async () => {
  const wrong = testClient({ credentials: async () => ({ username: 'tester', password: 'wrong' }) });
  try {
    const error = await failureOf(wrong.getManifest(repository(), 'base'));
    expect(error.code).toBe('Unauthenticated');
  } finally {
    await wrong.close();
  }
});
