/** CRI messages on the wire: what is known is read and changed, everything else keeps its bytes, and nonsense is refused in bounded time. */
import { describe, expect, test } from 'vitest';
import { mapOf, numberField, readFields, textField, textOf } from '../../../../plugin/cri/wire/fields.ts';
import {
  readImageFilesystems,
  readImageSpecRequest,
  readImageStatusResponse,
  readPullImageRequest,
  withAuth,
  withFilesystems,
  withPinned,
} from '../../../../plugin/cri/wire/messages.ts';
import { IMAGE_METHODS } from '../../../support/cri-messages.ts';
import { decode, encode } from '../../../support/protobuf-table.ts';

/** Fields 1000 (text) and 1001 (number), which no CRI has. */
const UNKNOWN = Buffer.from('c23e03414243c83e2a', 'hex');

const sandboxConfig = {
  metadata: { name: 'web', uid: 'u-1', namespace: 'team', attempt: 2 },
  labels: { app: 'web', __proto__x: 'y' },
  annotations: { 'k8s.aliyun.com/eci-imc-id': 'imc-1', empty: '' },
};

describe('a pull', () => {
  const bytes = Buffer.concat([
    encode(IMAGE_METHODS.PullImage.request, {
      image: { image: 'r.example/a:1', annotations: { a: 'b' } },
      auth: { username: 'u', password: 'p', serverAddress: 'https://r.example' },
      sandboxConfig,
    }),
    UNKNOWN,
  ]);

  test('is read with its pod, annotations and credentials', () => {
    const { spec, auth, sandbox } = readPullImageRequest(bytes);
    expect(spec).toEqual({ image: 'r.example/a:1', annotations: { a: 'b' } });
    expect(auth).toMatchObject({ username: 'u', password: 'p', serverAddress: 'https://r.example', identityToken: '' });
    expect(sandbox).toEqual({
      name: 'web',
      uid: 'u-1',
      namespace: 'team',
      labels: sandboxConfig.labels,
      annotations: sandboxConfig.annotations,
    });
  });

  test('takes other credentials and keeps every other byte', () => {
    const changed = withAuth(bytes, { username: 'v', password: 'w' });
    expect(readPullImageRequest(changed).auth).toMatchObject({ username: 'v', password: 'w', serverAddress: '' });
    const others = (message: Uint8Array) =>
      readFields(message)
        .filter(({ number }) => number !== 2)
        .map(({ raw }) => Buffer.from(raw).toString('hex'));
    expect(others(changed)).toEqual(others(bytes));
  });

  test('without pod and credentials has none', () => {
    const { auth, sandbox } = readPullImageRequest(
      encode(IMAGE_METHODS.PullImage.request, { image: { image: 'a' }, auth: { serverAddress: 'x' } }),
    );
    expect(auth).toBeUndefined();
    expect(sandbox).toBeUndefined();
  });
});

test('images are pinned where they stand, and nothing else of the answer changes', () => {
  const images = ['one', 'two', 'three'].map((id) => ({ id, repoTags: [`${id}:1`], repoDigests: [`${id}@sha256:1`], size: 7 }));
  const bytes = Buffer.concat([encode(IMAGE_METHODS.ListImages.response, { images }), UNKNOWN]);
  const pinned = withPinned(bytes, ({ id, repoTags }) => id === 'two' && repoTags[0] === 'two:1');
  const shown = decode(IMAGE_METHODS.ListImages.response, pinned).images as Record<string, unknown>[];
  expect(shown.map(({ id, pinned: isPinned }) => [id, isPinned])).toEqual([
    ['one', undefined],
    ['two', true],
    ['three', undefined],
  ]);
  expect(Buffer.from(pinned).subarray(-UNKNOWN.length)).toEqual(UNKNOWN);
  expect(Buffer.from(withPinned(bytes, () => false))).toEqual(bytes);
  expect(readImageStatusResponse(encode(IMAGE_METHODS.ImageStatus.response, { image: images[0]! }))).toMatchObject({ id: 'one' });
  expect(readImageStatusResponse(new Uint8Array())).toBeUndefined();
  expect(readImageSpecRequest(new Uint8Array())).toEqual({ image: '', annotations: {} });
});

test('file systems get another place and other numbers, of images and of containers', () => {
  const usage = { timestamp: 5, fsId: { mountpoint: '/old' }, usedBytes: { value: 5_000_000_000 }, inodesUsed: { value: 3 } };
  const images = encode(IMAGE_METHODS.ImageFsInfo.response, { imageFilesystems: [usage] });
  // Field 2 has the same form.
  const containers = Buffer.from(images);
  containers[0] = 0x12;
  const bytes = Buffer.concat([images, containers, UNKNOWN]);
  const changed = withFilesystems(bytes, (one, of) => ({ mountpoint: `/new/${of}`, usedBytes: one.usedBytes + 1, inodesUsed: 0 }));
  expect(readImageFilesystems(changed)).toEqual([{ mountpoint: '/new/images', usedBytes: 5_000_000_001, inodesUsed: 0 }]);
  const [, second] = readFields(changed);
  const containerMessage = Buffer.concat([Buffer.from(second!.raw)]);
  containerMessage[0] = 0x0a;
  expect(readImageFilesystems(containerMessage)[0]?.mountpoint).toBe('/new/containers');
  expect(Buffer.from(changed).subarray(-UNKNOWN.length)).toEqual(UNKNOWN);
});

describe('bytes that are no message', () => {
  test.each([
    ['a cut tag', 'ff'],
    ['a field of number 0', '0000'],
    ['a group', '0b0c'],
    ['a length beyond the end', '0a05ff'],
    ['a length that no machine has', '0affffffffffffffffff01'],
    ['a varint of eleven bytes', '08ffffffffffffffffffffff01'],
    ['four bytes of which there are three', '0d010203'],
    ['a field number above the limit', 'f8ffffff7f00'],
  ])('are refused: %s', (_say, hex) => {
    expect(() => readFields(Buffer.from(hex, 'hex'))).toThrow(/read message/);
  });

  test('are refused when they have more fields than any message', () => {
    expect(() => readFields(Buffer.alloc(150_000, Buffer.from('0800', 'hex')))).toThrow(/more than 50000 fields/);
  });
});

test('texts that are no UTF-8 and maps of odd keys are read without harm', () => {
  const entry = Buffer.concat([textField(1, '__proto__'), textField(2, 'x')]);
  const fields = readFields(
    Buffer.concat([Buffer.from([0x0a, entry.length]), entry, Buffer.from('1202ff41', 'hex'), numberField(3, 2 ** 40)]),
  );
  expect(Object.entries(mapOf(fields, 1))).toEqual([['__proto__', 'x']]);
  expect(textOf(fields, 2)).toBe('\ufffdA');
  expect(fields[2]?.value).toBe(2 ** 40);
});
