/** Labels of pulls: what is read from them, and that malformed ones are named. */
import { expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { chainIdOf } from '../../../../plugin/snapshotter/chain-id.ts';
import { hostRootOf } from '../../../../plugin/snapshotter/id-mapping.ts';
import { checkLabels, readLayerMarks, readPullRequest } from '../../../../plugin/snapshotter/labels.ts';

const P = 'containerd.io/snapshot/';
const BLOB = { [`${P}overlaybd/blob-digest`]: sha256('b'), [`${P}overlaybd/blob-size`]: '46912000' };

test('a pull names its chain, image, manifest and layer; the reference of CRI wins', () => {
  const pull = readPullRequest({
    ...BLOB,
    'containerd.io/snapshot.ref': 'sha256:c',
    [`${P}cri.image-ref`]: 'r.example/a:1',
    [`${P}image-ref`]: 'other',
    [`${P}cri.manifest-digest`]: sha256('m'),
  });
  expect(pull).toEqual({
    chainRef: 'sha256:c',
    image: 'r.example/a:1',
    manifestDigest: sha256('m'),
    layerDigest: sha256('b'),
    layer: { blobDigest: sha256('b'), blobSizeBytes: 46912000, fsType: 'ext4', isAccelerationLayer: false, wantsDownload: false },
  });
});

test('no reference: no pull; no blob digest: an ordinary layer', () => {
  expect(readPullRequest(BLOB)).toBeUndefined();
  expect(readPullRequest({ 'containerd.io/snapshot.ref': 'x' })?.layer).toBeUndefined();
});

test.each([
  [{ [`${P}overlaybd/turbo-oci/target-digest`]: sha256('t') }, { target: { digest: sha256('t'), mediaType: '' } }],
  [
    { [`${P}overlaybd/fastoci/target-digest`]: sha256('t'), [`${P}overlaybd/fastoci/target-media-type`]: 'application/x' },
    { target: { digest: sha256('t'), mediaType: 'application/x' } },
  ],
  [{ [`${P}overlaybd/version`]: '0.1.0-turbo.ociv1' }, { fsType: 'ext4' }],
  [{ [`${P}overlaybd/blob-fs-type`]: 'erofs;ro' }, { fsType: 'erofs' }],
  [{ [`${P}overlaybd/acceleration-layer`]: 'yes' }, { isAccelerationLayer: true }],
  [{ [`${P}overlaybd/download-remote-blob`]: 'download' }, { wantsDownload: true }],
])('%j is seen as %j', (labels, marks) => {
  const found = readLayerMarks({ ...BLOB, ...labels } as Record<string, string>);
  expect(found).toMatchObject(marks);
  expect(found !== undefined && 'target' in found).toBe('target' in marks);
});

test('a layer digest of another algorithm is passed over, since ordinary layers may have one', () => {
  const labels = { 'containerd.io/snapshot.ref': 'x', [`${P}cri.layer-digest`]: `sha512:${'0'.repeat(128)}` };
  expect(readPullRequest(labels)?.layerDigest).toBeUndefined();
  expect(readPullRequest({ ...labels, [`${P}cri.layer-digest`]: sha256('l') })?.layerDigest).toBe(sha256('l'));
});

test.each([
  [{ [`${P}overlaybd/blob-digest`]: 'sha256:short' }, /blob-digest/],
  [{ [`${P}overlaybd/blob-digest`]: sha256('b') }, /blob-size/],
  [{ ...BLOB, [`${P}overlaybd/blob-size`]: '-1' }, /blob-size/],
  [{ ...BLOB, [`${P}overlaybd/turbo-oci/target-digest`]: 'x' }, /target-digest/],
  [{ ...BLOB, [`${P}overlaybd/blob-size`]: '0' }, /blob-size/],
  [{ ...BLOB, [`${P}overlaybd/blob-size`]: '1e9' }, /blob-size/],
  [{ ...BLOB, [`${P}overlaybd/blob-size`]: '99999999999999999999' }, /blob-size/],
])('%j is refused by name', (labels, message) => {
  expect(() => readLayerMarks(labels as Record<string, string>)).toThrowError(expect.objectContaining({ code: 'InvalidArgument' }));
  expect(() => readLayerMarks(labels as Record<string, string>)).toThrowError(message);
});

test('limits of labels and references hold', () => {
  expect(() => checkLabels({ k: 'x'.repeat(4096) })).toThrowError(/4096/);
  expect(() => readPullRequest({ 'containerd.io/snapshot.ref': 'x', [`${P}image-ref`]: 'x'.repeat(513) })).toThrowError(/512/);
});

test('chain ids follow the OCI rule', () => {
  const [a, b, c] = [sha256('a'), sha256('b'), sha256('c')];
  expect(chainIdOf([a])).toBe(a);
  expect(chainIdOf([a, b, c])).toBe(sha256(`${sha256(`${a} ${b}`)} ${c}`));
});

test('the mapped root is read from a mapping; others are refused', () => {
  expect(hostRootOf('0:100000:65536', 'l')).toBe(100000);
  expect(hostRootOf('1:5:1,0:7:1', 'l')).toBe(7);
  for (const wrong of ['', '1:5:1', '0:x:1', '0:1', 'a,b']) expect(() => hostRootOf(wrong, 'l')).toThrowError(/label l/);
});
