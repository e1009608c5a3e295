/**
 * Digests that a conversion must give for ever and everywhere: a change here means that every image converted before is converted again.
 * zstd comes with Node and lz4 from the system, so the blobs' digests are kept for zstd; that of the device holds for any compression.
 */
import { execFileSync } from 'node:child_process';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { fixturePath, readFixture } from '../../../support/fixtures.ts';
import { buildLayers, deviceReader } from '../../../unit/plugin/convert/build/converted-device.ts';

const NAMES = ['l1', 'l2', 'l3'];

const BLOBS = [
  'sha256:49a2f0eaddc0eba909f3125e76a87c6dac07f147dfcaeed9df2eef21041d74c7',
  'sha256:be334975d70b45b17f1e136fdb78d9e0be8849e5463cf4e270adef7c57c85b83',
  'sha256:ba23fc784a4f02b6ff5e60a26cc9314fc3f38a353d1c851e734fa770ea2d5908',
];
const DEVICE = 'sha256:285285a67006e9bc48c729e59622a3de153446c0fb4ef59ce485c799eeb83322';

/** Of index-only mode over the tar.gz: the compressor is the zlib inside Node, so a new Node may give others. */
const INDEX_BLOBS = [
  'sha256:048840cb1eaab7e84e6920d7e308a4ec31175664a91f493ed24665f4fa851258',
  'sha256:2cf6829931ed13c081e5a1e89e00034844fead8ed444fea93f59820c2113c972',
  'sha256:4f80b6bbca0889a2e1b5e8a886c37360709595088d5c80736deeb70c24ac327b',
];

describe('golden conversion', () => {
  it('gives the kept digests for the fixture layers', async () => {
    const layers = await buildLayers(NAMES.map((name) => readFixture(`oci/${name}.tar`)));
    expect(layers.map((layer) => layer.digest)).toEqual(BLOBS);
    const device = deviceReader(layers.map((layer) => layer.blob))(0, layers[2]!.statistics.deviceBytes);
    expect(sha256(device)).toBe(DEVICE);
  });

  it('gives the kept digests of index-only mode', async () => {
    const layers = await buildLayers(
      NAMES.map((name) => readFixture(`oci/${name}.tar.gz`)),
      { mode: 'index-only' },
    );
    expect(layers.map((layer) => layer.digest)).toEqual(INDEX_BLOBS);
  });

  it('gives them in another time zone and language, with another umask and working directory, in another process', () => {
    const script = path.join(import.meta.dirname, 'print-digests.ts');
    const command = `umask 077; cd /; exec "$0" "$@"`;
    const output = execFileSync(
      '/bin/sh',
      ['-c', command, process.execPath, script, ...NAMES.map((name) => fixturePath(`oci/${name}.tar.gz`))],
      {
        env: { PATH: process.env.PATH, TZ: 'Pacific/Kiritimati', LC_ALL: 'tr_TR.UTF-8', LANG: 'tr_TR.UTF-8' },
        encoding: 'utf8',
      },
    );
    expect(output.trim().split('\n')).toEqual(BLOBS);
  });
});
