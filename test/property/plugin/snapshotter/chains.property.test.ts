/**
 * Random images over few base layers, pulled in random order with layers that cannot be opened, an absent registry, removals and
 * restarts: a container always stands on exactly the layers of its own image, bottom to top, or is refused.
 */
import fs from 'node:fs/promises';
import path from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isAppError } from '../../../../plugin/base/errors.ts';
import { type FakeLayer, ordinaryLayer, overlaybdLayer } from '../../../support/fake-image-resolver.ts';
import { forTime } from '../../../support/for-time.ts';
import { SnapshotterHarness } from '../../../support/snapshotter-harness.ts';

const TIME_MS = 8_000;

/** Marks what is unpacked, so that a directory tells which layer it holds. */
async function unpack(directory: string, layer: FakeLayer): Promise<void> {
  const isBlock = Object.keys(layer.annotations).length > 0;
  await fs.writeFile(path.join(directory, isBlock ? 'overlaybd.commit' : 'layer'), layer.digest);
}

/** The digests that a container sees, bottom to top: its device's layers, then its directories. */
async function seen(harness: SnapshotterHarness, lowers: string[]): Promise<string[]> {
  const digests: string[] = [];
  for (const lower of lowers.toReversed()) {
    const device = harness.devices.attached.get(path.basename(lower));
    if (device === undefined) digests.push(await fs.readFile(path.join(lower, 'layer'), 'utf8'));
    for (const layer of device?.layers ?? []) {
      if (layer.kind !== 'full') throw new Error('only full layers are pulled here');
      if (layer.blob.localPath !== undefined) expect(await fs.readFile(layer.blob.localPath, 'utf8')).toBe(layer.blob.digest);
      digests.push(layer.blob.digest);
    }
  }
  return digests;
}

// Few names, so that images share bases; block layers below, ordinary ones on top, as builders make them.
const image = fc.record({
  block: fc.array(fc.constantFrom('p', 'q', 'r'), { maxLength: 3 }),
  ordinary: fc.array(fc.constantFrom('x', 'y'), { maxLength: 2 }),
  bad: fc.option(fc.constantFrom('p', 'q', 'r'), { nil: undefined }),
  isRegistryAway: fc.boolean(),
  hasManifestDigest: fc.boolean(),
  restartsAfter: fc.boolean(),
});

test('every container sees its own image', async () => {
  let servedCount = 0;
  await forTime(
    TIME_MS,
    fc.asyncProperty(fc.array(image, { minLength: 1, maxLength: 6 }), async (images) => {
      await using harness = await SnapshotterHarness.open();
      for (const [index, { block, ordinary, bad, isRegistryAway, hasManifestDigest, restartsAfter }] of images.entries()) {
        const layers = [...block.map((name) => overlaybdLayer(name)), ...ordinary.map((name) => ordinaryLayer(name))];
        if (layers.length === 0) continue;
        const reference = `r.example/image-${index}:1`;
        const manifestDigest = harness.resolver.add(reference, layers);
        harness.resolver.isAway = isRegistryAway;
        if (bad !== undefined) harness.devices.badBlobs.add(overlaybdLayer(bad).digest);
        try {
          const { top } = await harness.pull(reference, layers, { unpack, ...(hasManifestDigest ? { manifestDigest } : {}) });
          harness.devices.badBlobs.clear();
          const lowers = await harness.container(`container ${index}`, top);
          expect(await seen(harness, lowers)).toEqual(layers.map((layer) => layer.digest));
          servedCount += 1;
        } catch (error) {
          // Broken, or an ordinary layer goes on top of a lazy one whose blob turned bad: refused, never something else.
          if (!isAppError(error, 'FailedPrecondition', 'DataLoss')) throw error;
        }
        harness.devices.badBlobs.clear();
        if (restartsAfter) await harness.restart();
      }
    }),
    { isEnough: () => servedCount > 20 },
  );
});
