/** OCI documents: what is accepted, what is refused and by which name, and that the writer's bytes equal Go's. */
import { describe, expect, test } from 'vitest';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { encodeImageConfig, parseImageConfig } from '../../../../../plugin/image/oci/config.ts';
import type { Descriptor } from '../../../../../plugin/image/oci/descriptor.ts';
import { encodeGoJson } from '../../../../../plugin/image/oci/go-json.ts';
import {
  encodeManifest,
  MAX_MANIFEST_LAYERS,
  parseIndex,
  parseManifest,
  parseManifestOrIndex,
} from '../../../../../plugin/image/oci/manifest.ts';
import { layerCompression, MEDIA_TYPE } from '../../../../../plugin/image/oci/media-types.ts';

const json = (value: unknown) => new TextEncoder().encode(typeof value === 'string' ? value : JSON.stringify(value));
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const raw = (more: object = {}) => ({ mediaType: MEDIA_TYPE.ociLayerTar, digest: sha256('layer'), size: 5, ...more });
const manifest = (more: object = {}) => ({ schemaVersion: 2, mediaType: MEDIA_TYPE.ociManifest, config: raw(), layers: [raw()], ...more });
const refusal = (action: () => unknown): unknown => {
  try {
    action();
  } catch (error) {
    return error;
  }
  throw new Error('was accepted');
};

describe('Go’s JSON', () => {
  test.each([
    ['a<b>&c', '"a\\u003cb\\u003e\\u0026c"'],
    ['\u2028\u2029', '"\\u2028\\u2029"'],
    ['tab\tnewline\nreturn\r', '"tab\\tnewline\\nreturn\\r"'],
    ['\b\f\u0000\u001f', '"\\u0008\\u000c\\u0000\\u001f"'],
    ['\\b \\f \\\\b', '"\\\\b \\\\f \\\\\\\\b"'],
    ['"\\', '"\\"\\\\"'],
    ['é 漢 😀 \u007f', '"é 漢 😀 \u007f"'],
    ['\ud800', '"\ufffd"'],
  ])('%j is written as %s', (value, expected) => {
    expect(text(encodeGoJson(value))).toBe(expected);
  });

  test('maps are sorted by UTF-8 bytes, structs keep their order', () => {
    expect(text(encodeGoJson({ '\uffff': 1, '😀': 2, b: 3, a: 4, B: 5 }))).toBe('{"B":5,"a":4,"b":3,"\uffff":1,"😀":2}');
    expect(
      text(
        encodeGoJson(
          new Map([
            ['b', 1],
            ['a', 2],
          ]),
        ),
      ),
    ).toBe('{"b":1,"a":2}');
  });

  test('numbers that Go would write otherwise are refused', () => {
    for (const value of [0.5, Number.NaN, 2 ** 53, 1e21]) expect(() => encodeGoJson(value)).toThrow(RangeError);
  });
});

describe('manifests', () => {
  test('the reference converter’s descriptor is written byte for byte', () => {
    const digest = `sha256:${'a6'.repeat(32)}` as const;
    const prefix = 'containerd.io/snapshot/overlaybd/';
    const layer: Descriptor = {
      mediaType: MEDIA_TYPE.dockerLayerTar,
      digest,
      sizeBytes: 46912000,
      annotations: { [`${prefix}version`]: '0.1.0', [`${prefix}blob-size`]: '46912000', [`${prefix}blob-digest`]: digest },
    };
    const written = text(encodeManifest({ kind: 'manifest', mediaType: MEDIA_TYPE.dockerManifest, config: layer, layers: [layer] }));
    const expected = `{"mediaType":"application/vnd.docker.image.rootfs.diff.tar","digest":"${digest}","size":46912000,"annotations":{"${prefix}blob-digest":"${digest}","${prefix}blob-size":"46912000","${prefix}version":"0.1.0"}}`;
    expect(written).toBe(`{"schemaVersion":2,"mediaType":"${MEDIA_TYPE.dockerManifest}","config":${expected},"layers":[${expected}]}`);
  });

  test('all fields survive parsing and writing, in Go’s order', () => {
    const full = `{"schemaVersion":2,"mediaType":"${MEDIA_TYPE.ociIndex}","artifactType":"a/b","manifests":[{"mediaType":"m","digest":"${sha256('x')}","size":1,"urls":["u"],"annotations":{"a":"1","b":"2"},"data":"eA==","platform":{"architecture":"arm","os":"linux","os.version":"1","os.features":["f"],"variant":"v7"},"artifactType":"t"}],"subject":{"mediaType":"m","digest":"${sha256('y')}","size":2},"annotations":{"k":"v"}}`;
    expect(text(encodeManifest(parseIndex(json(full), MEDIA_TYPE.ociIndex, 'x')))).toBe(full);
  });

  test('a type comes from the announcement, else from the document, else from its shape', () => {
    expect(parseManifest(json(manifest({ mediaType: undefined })), MEDIA_TYPE.ociManifest, 'x').mediaType).toBe(MEDIA_TYPE.ociManifest);
    expect(parseManifest(json(manifest()), `${MEDIA_TYPE.ociManifest}; charset=utf-8`, 'x').layers.length).toBe(1);
    expect(parseManifest(json(manifest()), 'application/json', 'x').mediaType).toBe(MEDIA_TYPE.ociManifest);
    expect(parseManifestOrIndex(json({ schemaVersion: 2, manifests: [] }), '', 'x').kind).toBe('index');
  });

  test.each<[string, unknown, string, string]>([
    ['no JSON', '{', MEDIA_TYPE.ociManifest, 'not a JSON document'],
    ['a byte that is not UTF-8', new Uint8Array([0x7b, 0xff, 0x7d]), MEDIA_TYPE.ociManifest, 'not a JSON document'],
    ['an array', '[]', MEDIA_TYPE.ociManifest, 'not an object'],
    ['null', 'null', MEDIA_TYPE.ociManifest, 'not an object'],
    ['deep nesting', '['.repeat(100_000), MEDIA_TYPE.ociManifest, 'not a JSON document'],
    ['schema 1', { schemaVersion: 1, layers: [] }, MEDIA_TYPE.ociManifest, 'schemaVersion'],
    ['layers and manifests', manifest({ manifests: [] }), MEDIA_TYPE.ociManifest, 'both layers and manifests'],
    ['another type inside', manifest({ mediaType: MEDIA_TYPE.ociIndex }), MEDIA_TYPE.ociManifest, 'announced as'],
    ['no layers', manifest({ layers: undefined }), MEDIA_TYPE.ociManifest, 'layers: missing'],
    ['layers that are a text', manifest({ layers: 'x' }), MEDIA_TYPE.ociManifest, 'layers: not an array'],
    [
      'too many layers',
      manifest({ layers: Array.from({ length: MAX_MANIFEST_LAYERS + 1 }, () => raw()) }),
      MEDIA_TYPE.ociManifest,
      'more than 4096',
    ],
    ['no config', manifest({ config: undefined }), MEDIA_TYPE.ociManifest, 'config: not an object'],
    ['a null layer', manifest({ layers: [raw(), null] }), MEDIA_TYPE.ociManifest, 'layers[1]: not an object'],
    ['a path as digest', manifest({ layers: [raw({ digest: 'sha256:../../etc' })] }), MEDIA_TYPE.ociManifest, 'layers[0].digest'],
    [
      'an upper-case digest',
      manifest({ layers: [raw({ digest: sha256('x').toUpperCase() })] }),
      MEDIA_TYPE.ociManifest,
      'layers[0].digest',
    ],
    ['a negative size', manifest({ layers: [raw({ size: -1 })] }), MEDIA_TYPE.ociManifest, 'layers[0].size'],
    ['a size as text', manifest({ layers: [raw({ size: '5' })] }), MEDIA_TYPE.ociManifest, 'layers[0].size'],
    ['a size with a fraction', manifest({ layers: [raw({ size: 1.5 })] }), MEDIA_TYPE.ociManifest, 'layers[0].size'],
    ['a huge size', manifest({ layers: [raw({ size: 1e18 })] }), MEDIA_TYPE.ociManifest, 'layers[0].size'],
    ['no media type', manifest({ layers: [raw({ mediaType: '' })] }), MEDIA_TYPE.ociManifest, 'layers[0].mediaType: missing'],
    ['a long media type', manifest({ layers: [raw({ mediaType: 'x'.repeat(5000) })] }), MEDIA_TYPE.ociManifest, 'layers[0].mediaType'],
    ['a number as annotation', manifest({ annotations: { a: 1 } }), MEDIA_TYPE.ociManifest, 'annotations.a'],
    ['a list as annotations', manifest({ annotations: [] }), MEDIA_TYPE.ociManifest, 'annotations: not an object'],
    ['a broken subject', manifest({ subject: {} }), MEDIA_TYPE.ociManifest, 'subject.digest'],
    ['an index for a manifest', { schemaVersion: 2, manifests: [] }, MEDIA_TYPE.ociIndex, 'an image manifest was expected'],
    ['nine megabytes', ' '.repeat(9 * 1024 * 1024), MEDIA_TYPE.ociManifest, 'more than 8388608'],
  ])('%s is InvalidArgument that names document and field', (_what, document, type, named) => {
    const bytes = document instanceof Uint8Array ? document : json(document);
    const error = refusal(() => parseManifest(bytes, type, 'registry.test/app'));
    expect(error).toMatchObject({ code: 'InvalidArgument', subject: 'registry.test/app' });
    expect((error as Error).message).toContain(named);
  });

  test('other documents are Unimplemented', () => {
    expect(
      refusal(() => parseManifest(json({ schemaVersion: 1 }), 'application/vnd.docker.distribution.manifest.v1+json', 'x')),
    ).toMatchObject({
      code: 'Unimplemented',
    });
  });

  test('names such as __proto__ are data', () => {
    const bytes = json(
      `{"schemaVersion":2,"config":${JSON.stringify(raw())},"layers":[],"annotations":{"__proto__":"x","constructor":"y"}}`,
    );
    const parsed = parseManifest(bytes, MEDIA_TYPE.ociManifest, 'x');
    expect(Object.entries(parsed.annotations ?? {})).toEqual([
      ['__proto__', 'x'],
      ['constructor', 'y'],
    ]);
    expect(parseManifest(json(manifest()), MEDIA_TYPE.ociManifest, 'x').annotations).toBeUndefined();
  });

  test('entries of an index that cannot be read are left out when asked', () => {
    const document = json({ schemaVersion: 2, manifests: [raw({ digest: `sha512:${'a'.repeat(128)}` }), raw()] });
    expect(parseIndex(document, MEDIA_TYPE.ociIndex, 'x', { unusableEntries: 'skip' }).manifests.length).toBe(1);
    expect(refusal(() => parseIndex(document, MEDIA_TYPE.ociIndex, 'x'))).toMatchObject({ code: 'InvalidArgument' });
  });
});

describe('configs', () => {
  const diff = sha256('diff');

  test('a docker config is written as Go writes the OCI structure of it', () => {
    const source = {
      architecture: 'amd64',
      config: {
        Hostname: 'x',
        User: '0',
        Env: ['A=1&2'],
        Cmd: null,
        Volumes: { '/b': {}, '/a': {} },
        Healthcheck: {},
        Labels: { z: '1', a: '2' },
        OnBuild: [],
      },
      container_config: {},
      created: '2024-01-02T03:04:05.120000000+00:00',
      history: [{ created: '2024-01-02T03:04:05Z', created_by: 'RUN a && b', empty_layer: true }, { comment: 'c' }],
      os: 'linux',
      rootfs: { type: 'layers', diff_ids: [diff] },
      variant: 'v8',
    };
    expect(text(encodeImageConfig(parseImageConfig(json(source), 'x')))).toBe(
      `{"created":"2024-01-02T03:04:05.12Z","architecture":"amd64","os":"linux","variant":"v8","config":{"User":"0","Env":["A=1\\u00262"],"Volumes":{"/a":{},"/b":{}},"Labels":{"a":"2","z":"1"}},"rootfs":{"type":"layers","diff_ids":["${diff}"]},"history":[{"created":"2024-01-02T03:04:05Z","created_by":"RUN a \\u0026\\u0026 b","empty_layer":true},{"comment":"c"}]}`,
    );
  });

  test.each<[string, unknown, string]>([
    ['no rootfs', {}, 'rootfs: not an object'],
    ['a broken diff id', { rootfs: { diff_ids: ['x'] } }, 'rootfs.diff_ids[0]'],
    ['a number in Env', { rootfs: {}, config: { Env: [1] } }, 'config.Env[0]'],
    ['a text as Volumes', { rootfs: {}, config: { Volumes: 'x' } }, 'config.Volumes'],
    ['a broken time', { rootfs: {}, created: 'yesterday' }, 'created'],
    ['a text in history', { rootfs: {}, history: ['x'] }, 'history[0]'],
  ])('%s is InvalidArgument that names the field', (_what, document, named) => {
    const error = refusal(() => parseImageConfig(json(document), 'config of x'));
    expect(error).toMatchObject({ code: 'InvalidArgument' });
    expect((error as Error).message).toContain(named);
  });
});

test('layers are known by their media type', () => {
  expect(layerCompression(MEDIA_TYPE.dockerLayerGzip)).toBe('gzip');
  expect(layerCompression(MEDIA_TYPE.ociLayerZstd)).toBe('zstd');
  expect(layerCompression(MEDIA_TYPE.ociLayerTar)).toBe('none');
  expect(layerCompression(MEDIA_TYPE.ociEmpty)).toBeUndefined();
});
