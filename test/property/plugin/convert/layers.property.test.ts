/**
 * Random images, layer by layer: after each, the device read back with nothing but its bytes shows the tree that a plain model holds.
 * Inodes outgrow their places (attributes added through hard links, on directories, on the root), directories grow, shrink and split.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { forTime } from '../../../support/for-time.ts';
import { MemoryBuilder } from './builder.ts';
import { image, tarOfLayer } from './images.ts';
import { ModelTree } from './model.ts';

const TIME_MS = Number(process.env.OBD_PROPERTY_MS ?? 6000);

describe('layers of random edits', () => {
  it('shows the tree of the model on every prefix, whatever the limit for inline content and however the tar is cut', async () => {
    let cases = 0;
    await forTime(
      TIME_MS,
      fc.property(image, fc.constantFrom(0, 2048, 4096), fc.constantFrom(512, 1000, 100_000, 1 << 30), (layers, inlineLimit, chunk) => {
        cases += 1;
        const model = new ModelTree();
        const builder = new MemoryBuilder();
        for (const entries of layers) {
          builder.addLayer(tarOfLayer(model, entries), inlineLimit, chunk);
          expect(builder.list()).toEqual(model.list());
        }
      }),
      { isEnough: () => cases > 100 },
    );
  }, 300_000);

  it('shows it in index-only mode too, where content is mapped into the tar', async () => {
    let cases = 0;
    await forTime(
      TIME_MS,
      fc.property(image, fc.constantFrom(0, 512, 4096), fc.constantFrom(512, 1000, 1 << 30), (layers, inlineLimit, chunk) => {
        cases += 1;
        const model = new ModelTree();
        const builder = new MemoryBuilder();
        for (const entries of layers) {
          builder.addIndexLayer(tarOfLayer(model, entries), inlineLimit, chunk);
          expect(builder.list()).toEqual(model.list());
        }
      }),
      { isEnough: () => cases > 50 },
    );
  }, 300_000);

  it('goes on from a device that is read back as if it had never stopped', async () => {
    await forTime(
      TIME_MS,
      fc.property(image, (layers) => {
        const models = [new ModelTree(), new ModelTree()] as const;
        const through = new MemoryBuilder();
        const restored = new MemoryBuilder();
        for (const entries of layers) {
          through.addLayer(tarOfLayer(models[0], entries), 2048);
          restored.addLayer(tarOfLayer(models[1], entries), 2048);
          restored.restore();
          expect(restored.list()).toEqual(models[0].list());
        }
        expect(restored.deviceBytes).toBe(through.deviceBytes);
        const device = (builder: MemoryBuilder): string =>
          sha256(Buffer.concat([...builder.blocks].sort(([a], [b]) => a - b).map(([, block]) => block)));
        expect(device(restored)).toBe(device(through));
      }),
    );
  }, 60_000);

  it('writes one block for a layer that changes nothing', async () => {
    await forTime(
      1500,
      fc.property(image, (layers) => {
        const model = new ModelTree();
        const builder = new MemoryBuilder();
        for (const entries of layers) builder.addLayer(tarOfLayer(model, entries), 2048);
        builder.addLayer(Buffer.alloc(1024), 2048);
        expect(builder.writtenBlocks.at(-1)).toBe(1);
      }),
    );
  }, 60_000);
});
