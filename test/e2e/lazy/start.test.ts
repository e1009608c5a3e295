/** What a lazy start costs the registry: its access log is the witness for the share of the image that was fetched before the program ran. */
import { expect, test } from 'vitest';
import { MIB } from '../../../plugin/base/units.ts';
import { convertTars } from '../../support/converted-image.ts';
import { DEBIAN_IMAGE_READY, debianImage } from '../../support/debian-image.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { pushImage } from '../../support/oci-image.ts';
import { Scratch } from '../../support/scratch.ts';
import { timedStart } from '../../support/timed-start.ts';

test('a program of a large image runs before 15 % of the image are fetched; its second container fetches nothing', async () => {
  await using scratch = await Scratch.create('start');
  const source = await debianImage();
  expect(source.tarsSizeBytes).toBeGreaterThan(200 * MIB);
  const converted = await convertTars(source.tarPaths, { config: source.config, stagingDirectory: scratch.join('converted') });
  await using host = await LazyHost.start();
  const image = await pushImage(host.registry, 'demo/app', 'overlaybd', converted);
  const common = { registry: host.registry, containerd: host.containerd, snapshotter: SNAPSHOTTER, reference: image.reference };
  const first = await timedStart({ ...common, name: 'first', ready: DEBIAN_IMAGE_READY });
  const share = first.bytesAtFirstOutput / image.layersSizeBytes;
  process.stdout.write(
    `lazy start: ${first.bytesAtFirstOutput} of ${image.layersSizeBytes} bytes (${(100 * share).toFixed(1)} %), at the pull ${first.bytesAtPull}; ` +
      `pull ${first.pullMs.toFixed(0)} ms, first output ${first.firstOutputMs.toFixed(0)} ms\n`,
  );
  expect(first.bytesAtFirstOutput).toBeGreaterThan(0);
  expect(share).toBeLessThanOrEqual(0.15);
  const second = await timedStart({ ...common, name: 'second', ready: DEBIAN_IMAGE_READY });
  expect(second.bytesAtFirstOutput).toBe(0);
});
