/** An image in a layout and in an archive of `docker save` becomes the same blobs; what comes out is a layout again. */
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type Digest, sha256 } from '../../../../../plugin/base/digest.ts';
import { convertLayers } from '../../../../../plugin/convert/build/convert-layers.ts';
import { convertedImage } from '../../../../../plugin/convert/build/converted-image.ts';
import { convertImage } from '../../../../../plugin/convert/convert-image.ts';
import { DockerArchive } from '../../../../../plugin/convert/source/docker-archive.ts';
import { OciLayout } from '../../../../../plugin/convert/source/oci-layout.ts';
import { ANNOTATION } from '../../../../../plugin/image/oci/annotations.ts';
import { parseImageConfig } from '../../../../../plugin/image/oci/config.ts';
import { parseManifest } from '../../../../../plugin/image/oci/manifest.ts';
import { ARTIFACT_TYPE, MEDIA_TYPE } from '../../../../../plugin/image/oci/media-types.ts';
import { readFixture } from '../../../../support/fixtures.ts';
import { type RawEntry, rawTar } from '../../image/tar/raw-tar.ts';

const signal = new AbortController().signal;
let scratch: string;

beforeEach(async () => {
  scratch = await mkdtemp(path.join(tmpdir(), 'obd-source-'));
  await mkdir(path.join(scratch, 'staging'));
});
afterEach(() => rm(scratch, { recursive: true }));

const tars = (): Buffer[] => ['l1', 'l2', 'l3'].map((name) => readFixture(`oci/${name}.tar`));

const configOf = (layers: readonly Buffer[]): Buffer =>
  Buffer.from(
    JSON.stringify({
      architecture: 'amd64',
      os: 'linux',
      config: { Cmd: ['/bin/tool'], Env: ['A=<&>'] },
      rootfs: { type: 'layers', diff_ids: layers.map((tar) => sha256(tar)) },
      history: [{ created_by: 'a && b' }],
    }),
  );

/** Writes a layout with one gzip image named `v1`; returns the digest of its manifest. */
async function writeLayout(directory: string): Promise<Digest> {
  const blobs = path.join(directory, 'blobs', 'sha256');
  await mkdir(blobs, { recursive: true });
  const put = async (bytes: Buffer, mediaType: string) => {
    await writeFile(path.join(blobs, sha256(bytes).slice(7)), bytes);
    return { mediaType, digest: sha256(bytes), size: bytes.length };
  };
  const layers = [];
  for (const tar of tars()) layers.push(await put(gzipSync(tar), MEDIA_TYPE.ociLayerGzip));
  const config = await put(configOf(tars()), MEDIA_TYPE.ociConfig);
  const manifest = { schemaVersion: 2, mediaType: MEDIA_TYPE.ociManifest, config, layers, annotations: { kept: 'yes' } };
  const entry = await put(Buffer.from(JSON.stringify(manifest)), MEDIA_TYPE.ociManifest);
  await writeFile(path.join(directory, 'oci-layout'), '{"imageLayoutVersion":"1.0.0"}');
  const index = { schemaVersion: 2, manifests: [{ ...entry, annotations: { 'org.opencontainers.image.ref.name': 'v1' } }] };
  await writeFile(path.join(directory, 'index.json'), JSON.stringify(index));
  return entry.digest;
}

describe('layouts', () => {
  it('are converted, and the result goes into a layout beside the original', async () => {
    const layout = new OciLayout(path.join(scratch, 'layout'));
    const original = await writeLayout(layout.directory);
    const seen: string[] = [];
    const result = await convertImage(layout, await layout.find('v1'), {
      stagingDirectory: path.join(scratch, 'staging'),
      signal,
      onLayer: (layer) => seen.push(layer.digest),
    });
    await layout.add(result.image, result.layers, 'v1_containerd_accelerated');
    expect(seen).toEqual(result.layers.map((layer) => layer.digest));

    const entry = await layout.find('v1_containerd_accelerated');
    const manifest = parseManifest(await layout.readDocument(entry, signal), entry.mediaType, 'result');
    expect(manifest).toMatchObject({ artifactType: ARTIFACT_TYPE.native, subject: { digest: original }, annotations: { kept: 'yes' } });
    expect(manifest.layers.map((layer) => layer.annotations?.[ANNOTATION.blobDigest])).toEqual(seen);
    const config = parseImageConfig(await layout.readDocument(manifest.config, signal), 'config');
    expect(config).toMatchObject({ diffIds: seen, process: { cmd: ['/bin/tool'], env: ['A=<&>'] }, history: [{ createdBy: 'a && b' }] });
    for (const layer of manifest.layers) {
      const bytes = await readFile(path.join(layout.directory, 'blobs', 'sha256', layer.digest.slice(7)));
      expect(sha256(bytes)).toBe(layer.digest);
    }
    expect((await layout.find('v1')).digest).toBe(original);
  });

  it('say what is missing, ambiguous or damaged', async () => {
    const layout = new OciLayout(path.join(scratch, 'layout'));
    await expect(layout.find()).rejects.toMatchObject({ code: 'NotFound' });
    const digest = await writeLayout(layout.directory);
    await expect(layout.find('v2')).rejects.toThrow(/0 images are named "v2"; there are: v1/);
    const entry = await layout.find();
    await writeFile(path.join(layout.directory, 'blobs', 'sha256', digest.slice(7)), 'x'.repeat(entry.sizeBytes));
    await expect(layout.readDocument(entry, signal)).rejects.toMatchObject({ code: 'DataLoss' });
    const options = { stagingDirectory: path.join(scratch, 'staging'), signal };
    await expect(convertImage(layout, { ...entry, mediaType: MEDIA_TYPE.ociIndex }, options)).rejects.toMatchObject({ code: 'DataLoss' });
  });
});

describe('archives of docker save', () => {
  const archive = async (entries: readonly RawEntry[]): Promise<string> => {
    const file = path.join(scratch, 'archive.tar');
    await writeFile(file, rawTar(entries));
    return file;
  };
  const manifest = (value: unknown): RawEntry => ({ name: 'manifest.json', content: JSON.stringify(value) });

  it('give the blobs that the layout gives, also where a layer is a link to another', async () => {
    const layout = new OciLayout(path.join(scratch, 'layout'));
    await writeLayout(layout.directory);
    const wanted = await convertImage(layout, await layout.find(), { stagingDirectory: path.join(scratch, 'staging'), signal });
    const file = await archive([
      ...tars().map((tar, i): RawEntry => ({ name: `l${i}/layer.tar`, content: tar })),
      { name: 'copy/layer.tar', type: '2', linkName: '../l2/layer.tar' },
      { name: 'config.json', content: configOf(tars()) },
      manifest([{ Config: 'config.json', RepoTags: ['app:v1'], Layers: ['l0/layer.tar', 'l1/layer.tar', 'copy/layer.tar'] }]),
    ]);
    await using opened = await DockerArchive.open(file, signal);
    const [image] = await opened.images(signal);
    await mkdir(path.join(scratch, 'staging2'));
    const layers = [];
    for await (const layer of convertLayers(image!.layers, { stagingDirectory: path.join(scratch, 'staging2'), signal }))
      layers.push(layer);
    expect(image!.tags).toEqual(['app:v1']);
    expect(layers.map((layer) => layer.digest)).toEqual(wanted.layers.map((layer) => layer.digest));
    expect(convertedImage(image!.source, layers).config.descriptor).toEqual(wanted.image.config.descriptor);
  });

  it('are refused when they are none or contradict themselves', async () => {
    const refused = async (entries: readonly RawEntry[], what: RegExp): Promise<void> => {
      await using opened = await DockerArchive.open(await archive(entries), signal);
      await expect(opened.images(signal)).rejects.toThrow(what);
    };
    await refused([{ name: 'something' }], /"manifest.json" is not in it/);
    await refused([{ name: 'manifest.json', content: '{' }], /not JSON/);
    await refused([manifest({})], /not what docker save writes/);
    await refused([manifest([{ Config: 'c', Layers: [] }])], /"c" is not in it/);
    await refused([{ name: 'c', content: configOf(tars()) }, manifest([{ Config: 'c', Layers: [] }])], /3 diffIDs, manifest.json 0 layers/);
    const packed = path.join(scratch, 'archive.tar.gz');
    await writeFile(packed, gzipSync(rawTar([{ name: 'manifest.json' }])));
    await expect(DockerArchive.open(packed, signal)).rejects.toThrow(/compressed with gzip; decompress it first/);
    await expect(DockerArchive.open(path.join(scratch, 'no-such-file'), signal)).rejects.toMatchObject({ code: 'NotFound' });
  });
});
