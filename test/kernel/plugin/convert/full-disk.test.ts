/** A staging directory that fills up: the conversion ends with ResourceExhausted, soon, and leaves no file behind. */
import { randomFillSync } from 'node:crypto';
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { convertLayers } from '../../../../plugin/convert/build/convert-layers.ts';
import type { SourceLayer } from '../../../../plugin/convert/build/options.ts';
import { mount } from '../../../../plugin/kernel/mount.ts';
import { Scratch } from '../../../support/scratch.ts';
import { rawEntry } from '../../../unit/plugin/image/tar/raw-tar.ts';

function layerOf(content: Buffer, count: number): SourceLayer {
  return {
    name: `${count} files`,
    async *open() {
      for (let i = 0; i < count; i += 1) yield rawEntry({ name: `file-${i}`, content });
    },
  };
}

describe('a full disk', () => {
  it('fails the conversion whether the blob, the spool or the metadata meets it, with layers before and behind', async () => {
    await using scratch = await Scratch.create('full');
    const stagingDirectory = await scratch.dir('staging');
    mount({ source: 'tmpfs', target: stagingDirectory, fsType: 'tmpfs', flags: 0, options: 'size=8m' });
    const cases = [
      [layerOf(randomFillSync(Buffer.alloc(100_000)), 200)],
      [layerOf(Buffer.alloc(2000, 'small'), 8000)],
      [layerOf(Buffer.alloc(1000), 10), layerOf(randomFillSync(Buffer.alloc(100_000)), 200), layerOf(Buffer.alloc(1000), 10)],
    ];
    for (const layers of cases) {
      const done: string[] = [];
      const convert = async (): Promise<void> => {
        for await (const layer of convertLayers(layers, { stagingDirectory, signal: AbortSignal.timeout(120_000) })) done.push(layer.path);
      };
      await expect(convert()).rejects.toMatchObject({ code: 'ResourceExhausted' });
      const left = readdirSync(stagingDirectory).map((name) => `${stagingDirectory}/${name}`);
      expect(left.filter((file) => !done.includes(file))).toEqual([]);
    }
  });
});
