/** Index-only conversion of the fixture layers: the same tree as full mode on every prefix, from tar and from tar.gz, reproducibly. */
import { gunzipSync, gzipSync, zstdCompressSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { sha256 } from '../../../../../plugin/base/digest.ts';
import { parseChunkDigests } from '../../../../../plugin/image/turbo/chunk-digests.ts';
import { parseTurboLayer } from '../../../../../plugin/image/turbo/turbo-layer.ts';
import { readFixture } from '../../../../support/fixtures.ts';
import { type BuiltLayer, buildLayers, deviceReader, type StackLayer } from './converted-device.ts';
import { listTree } from './listed-tree.ts';

const NAMES = ['l1', 'l2', 'l3'];
const tars = (): Buffer[] => NAMES.map((name) => readFixture(`oci/${name}.tar`));
const gzips = (): Buffer[] => NAMES.map((name) => readFixture(`oci/${name}.tar.gz`));

const stackOf = (built: readonly BuiltLayer[], sources: readonly Buffer[]): StackLayer[] =>
  built.map((layer, i) => ({ built: layer, source: sources[i]! }));

describe('index-only conversion', () => {
  it('shows the tree of full mode on every prefix, over tar, tar.gz and a mixture', async () => {
    const full = await buildLayers(tars());
    const inputs = [tars(), gzips(), [tars()[0]!, gzips()[1]!, tars()[2]!], [gzips()[0]!, zstdCompressSync(tars()[1]!), gzips()[2]!]];
    for (const sources of inputs) {
      const built = await buildLayers(sources, { mode: 'index-only' });
      for (let count = 1; count <= NAMES.length; count += 1) {
        const found = listTree(deviceReader(stackOf(built, sources).slice(0, count)));
        expect(found).toEqual(listTree(deviceReader(full.slice(0, count).map((layer) => layer.blob))));
        expect(found.size).toBeGreaterThan(100);
      }
    }
  });
});
