/** Deleting images through us: refused exactly while something on this node would suffer (R17–R19, C3), and complete when it is done. */
import { afterEach, beforeEach, expect, test } from 'vitest';
import { type Digest, sha256 } from '../../../../../plugin/base/digest.ts';
import type { Runtime } from '../../../../../plugin/convert/publish/tag-names.ts';
import { type RemovedImage, removeImage } from '../../../../../plugin/convert/remove/image-remover.ts';
import { ARTIFACT_TYPE } from '../../../../../plugin/image/oci/media-types.ts';
import type { RegistryClient } from '../../../../../plugin/registry/client.ts';
import { type FaultRegistry, startFaultRegistry } from '../../../../support/fault-registry.ts';
import { buildImage, type Image, layerOfTar, MEDIA_TYPE } from '../../../../support/oci-image.ts';
import { failureOf, testClient } from '../../../../support/registry-client.ts';
import { asArtifact } from '../../../../support/twin-image.ts';

const REPOSITORY = 'team/app';
let registry: FaultRegistry;
let client: RegistryClient;
/** Keys of users by the digest they need. */
let users: Map<string, string[]>;
let makers: Map<string, Runtime>;

beforeEach(async () => {
  users = new Map();
  makers = new Map();
  client = testClient();
  registry = await startFaultRegistry({ referrersApi: false });
});
afterEach(async () => {
  await client?.close();
  await registry?.stop();
});

const imageOf = (name: string): Image => buildImage([layerOfTar(Buffer.alloc(1024, name))]);
const full = (name: string, subject: Image): Image => asArtifact(imageOf(name), ARTIFACT_TYPE.native, subject);
const index = (name: string, subject: Image): Image => asArtifact(imageOf(name), ARTIFACT_TYPE.turbo, subject);

/** Through the client, so that artifacts are entered into the fallback tag. */
async function push(image: Image, ...tags: string[]): Promise<Digest> {
  const repository = { host: registry.host, repository: REPOSITORY };
  const { bytes, mediaType, digest } = image.manifest;
  for (const tag of [digest, ...tags]) await client.putManifest(repository, tag, bytes, mediaType);
  return digest;
}

/** An index over images, with the subject of a converted one. */
function indexOf(images: readonly Image[], artifact?: { artifactType: string; subject: Image }): Image {
  const descriptor = ({ manifest }: Image) => ({ mediaType: manifest.mediaType, digest: manifest.digest, size: manifest.bytes.length });
  const more = artifact === undefined ? {} : { artifactType: artifact.artifactType, subject: descriptor(artifact.subject) };
  const bytes = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: MEDIA_TYPE.index, manifests: images.map(descriptor), ...more }));
  return { ...imageOf('none'), manifest: { bytes, digest: sha256(bytes), mediaType: MEDIA_TYPE.index } };
}

function remove(object: string): Promise<RemovedImage> {
  const parts = {
    client,
    usersOf: (digest: string, limit: number) => (users.get(digest) ?? []).slice(0, limit).map((key) => ({ kind: 'active', key })),
    runtimeOf: (_: unknown, digest: Digest) => makers.get(digest),
  };
  return removeImage(`${registry.host}/${REPOSITORY}${object}`, parts, AbortSignal.timeout(30_000));
}

const isThere = (digest: Digest): boolean => registry.api.manifests.has(`${REPOSITORY}@${digest}`);
/** What the fallback tag of a subject lists. */
function referrers(subject: Digest): string[] {
  const list = registry.api.tags.get(`${REPOSITORY}:${subject.replace(':', '-')}`)!;
  const { bytes } = registry.api.manifests.get(`${REPOSITORY}@${list}`)!;
  return (JSON.parse(bytes.toString()) as { manifests: { digest: string }[] }).manifests.map((entry) => entry.digest);
}

test('a converted image goes when nobody uses it, out of the list of referrers too; while used it stays, and the users are named', async () => {
  const original = imageOf('original');
  const base = await push(original, '1');
  const twin = await push(full('full', original), '1_containerd_accelerated');
  users.set(twin, ['pod-a', 'pod-b']);
  const refused = await failureOf(remove(':1_containerd_accelerated'));
  expect(refused.code).toBe('FailedPrecondition');
  expect(refused.message).toMatch(/it is in use by active pod-a, active pod-b$/);
  expect((await failureOf(remove(`@${twin}`))).code).toBe('FailedPrecondition');
  expect(isThere(twin)).toBe(true);
  expect(referrers(base)).toEqual([twin]);

  users.clear();
  const tags = ['1_containerd_accelerated'];
  expect(await remove(':1_containerd_accelerated')).toMatchObject({ kind: 'full', digest: twin, tags, manifests: [twin] });
  expect([isThere(twin), isThere(base)]).toEqual([false, true]);
  expect(referrers(base)).toEqual([]);
  expect((await failureOf(remove(`@${twin}`))).code).toBe('NotFound');
});

test.each([
  ['index-only', '1_accelerated', index, false],
  ['full for containerd alone', '1_containerd_accelerated', full, false],
  ['full for Docker and containerd', '1_accelerated', full, true],
] as const)('the original of a twin in use that is %s', async (_, tag, make, mayGo) => {
  const original = imageOf('original');
  const base = await push(original, '1', 'latest');
  const twin = await push(make('twin', original), tag);
  // The pod named the ordinary image: it needs both.
  users.set(twin, ['pod']).set(base, ['pod']);
  if (mayGo) {
    expect(await remove(`@${base}`)).toMatchObject({ kind: 'original', tags: ['1', 'latest'], manifests: [base] });
    expect([isThere(base), isThere(twin)]).toEqual([false, true]);
  } else {
    expect((await failureOf(remove(`@${base}`))).message).toMatch(/its accelerated image is in use by active pod$/);
    expect(isThere(base)).toBe(true);
    users.clear();
    await remove(`@${base}`);
    expect(isThere(base)).toBe(false);
  }
});

test('which tag names a twin does not matter once the tag has moved: what it was made for is remembered, else it is guarded', async () => {
  const [original, later] = [imageOf('original'), imageOf('later')];
  const base = await push(original);
  const former = await push(full('former', original));
  await push(full('newer', later), '1_accelerated');
  await push(later, '1');
  users.set(former, ['pod']).set(base, ['pod']);
  expect((await failureOf(remove(`@${base}`))).code).toBe('FailedPrecondition');
  makers.set(former, 'docker-and-containerd');
  await remove(`@${base}`);
  expect(isThere(base)).toBe(false);
});

test('users of the former image under the same tag do not hold the present one, nor do those of another tag that begins alike', async () => {
  const [original, former, other] = [imageOf('original'), imageOf('former'), imageOf('other')];
  const base = await push(original, '1');
  await push(former);
  await push(other, '10');
  users.set(await push(index('of former', former), '1_accelerated'), ['pod']);
  users.set(await push(index('of other', other), '10_accelerated'), ['pod']);
  await remove(':1');
  expect(isThere(base)).toBe(false);
});

test('a twin that was found by its tag alone, and one whose manifest is lost, hold the original too', async () => {
  const original = imageOf('original');
  const base = await push(original, '1');
  const twin = imageOf('by tag');
  const document = { ...(JSON.parse(twin.manifest.bytes.toString()) as object), artifactType: ARTIFACT_TYPE.turbo };
  const bytes = Buffer.from(JSON.stringify(document));
  users.set(await push({ ...twin, manifest: { ...twin.manifest, bytes, digest: sha256(bytes) } }, '1_accelerated'), ['pod']);
  expect((await failureOf(remove(':1'))).code).toBe('FailedPrecondition');
  users.clear();
  const lost = await push(index('lost', original));
  registry.api.manifests.delete(`${REPOSITORY}@${lost}`);
  users.set(lost, ['pod']);
  expect((await failureOf(remove(':1'))).code).toBe('FailedPrecondition');
  expect(isThere(base)).toBe(true);
});

test('an index: users of its images hold it; its converted images go with it, but those that another index shares and what was never converted stay', async () => {
  const [amd, arm, attestation] = [imageOf('amd'), imageOf('arm'), imageOf('attestation')];
  for (const image of [amd, arm, attestation]) await push(image);
  const original = indexOf([amd, arm, attestation]);
  const base = await push(original, '1');
  const [amdTwin, armTwin] = [index('amd twin', amd), index('arm twin', arm)];
  for (const image of [amdTwin, armTwin]) await push(image);
  const twin = await push(
    indexOf([amdTwin, armTwin, attestation], { artifactType: ARTIFACT_TYPE.turbo, subject: original }),
    '1_accelerated',
  );
  await push(indexOf([armTwin], { artifactType: ARTIFACT_TYPE.turbo, subject: arm }), '2_accelerated');

  users.set(amdTwin.manifest.digest, ['pod']);
  expect((await failureOf(remove(':1'))).code).toBe('FailedPrecondition');
  expect((await failureOf(remove(':1_accelerated'))).code).toBe('FailedPrecondition');
  users.clear();
  expect(await remove(':1_accelerated')).toMatchObject({ kind: 'index-only', manifests: [amdTwin.manifest.digest, twin] });
  expect([amdTwin, armTwin, attestation, amd].map((image) => isThere(image.manifest.digest))).toEqual([false, true, true, true]);
  expect(referrers(amd.manifest.digest)).toEqual([]);
  expect(referrers(arm.manifest.digest)).toContain(armTwin.manifest.digest);
  await remove(':1');
  expect([isThere(base), isThere(amd.manifest.digest)]).toEqual([false, true]);
});

test('an image with several tags loses the tag alone, used or not; a registry that cannot do that is said so, and nothing goes', async () => {
  const digest = await push(imageOf('original'), '1', 'latest');
  users.set(digest, ['pod']);
  registry.inject({ method: 'DELETE', path: /manifests/, effect: { kind: 'status', status: 405 } });
  expect((await failureOf(remove(':latest'))).message).toMatch(/1 names the same image, and the registry deletes no tag alone/);
  expect(registry.api.tags.get(`${REPOSITORY}:latest`)).toBe(digest);
  expect(await remove(':latest')).toMatchObject({ tags: ['latest'], manifests: [] });
  expect(isThere(digest)).toBe(true);
  expect(registry.api.tags.has(`${REPOSITORY}:latest`)).toBe(false);
});

test('a registry without deletion, a tag that names another digest, and what is not there are refused with the reason', async () => {
  const digest = await push(imageOf('original'), '1');
  const other = await push(imageOf('other'));
  expect((await failureOf(remove(`:1@${other}`))).code).toBe('Conflict');
  expect((await failureOf(remove(':2'))).code).toBe('NotFound');
  registry.inject({ method: 'DELETE', path: /manifests/, effect: { kind: 'status', status: 405 } });
  expect((await failureOf(remove(':1'))).message).toMatch(/the registry does not allow deletion/);
  expect(isThere(digest)).toBe(true);
});
