/**
 * `npm run demo`: a container starts from an image that is still in the registry. Starts a registry, the product and containerd in scratch
 * directories, converts and pushes an image built from Debian packages, starts it lazily and prints when what happened; then the same
 * program in the ordinary way. Nothing is left behind but the cached image. `--lazy-only` leaves the comparison out.
 */
import { parseArgs } from 'node:util';
import { formatBytes } from '../../plugin/base/units.ts';
import { convertTars } from '../support/converted-image.ts';
import { DEBIAN_IMAGE_READY, debianImage } from '../support/debian-image.ts';
import { LazyHost, SNAPSHOTTER } from '../support/lazy-host.ts';
import { pushImage } from '../support/oci-image.ts';
import { Scratch } from '../support/scratch.ts';
import { type TimedStart, timedStart } from '../support/timed-start.ts';

const { values } = parseArgs({ options: { 'lazy-only': { type: 'boolean', default: false } } });

const seconds = (ms: number): string => `${(ms / 1000).toFixed(2)} s`;

function say(text = ''): void {
  process.stdout.write(`${text}\n`);
}

/** Does one step of the preparation and prints how long it took. */
async function step<T>(what: string, run: () => Promise<T>): Promise<T> {
  process.stdout.write(`  ${what.padEnd(58)}`);
  const started = performance.now();
  const result = await run();
  say(seconds(performance.now() - started).padStart(9));
  return result;
}

function timeline(title: string, start: TimedStart, imageBytes: number): void {
  const share = (bytes: number): string =>
    `${formatBytes(bytes)} (${((100 * bytes) / imageBytes).toFixed(1)} % of ${formatBytes(imageBytes)})`;
  say();
  say(title);
  say(`  ${seconds(start.pullMs).padStart(9)}  image pulled             fetched ${share(start.bytesAtPull)}`);
  const total = start.pullMs + start.firstOutputMs;
  say(`  ${seconds(total).padStart(9)}  first output of program  fetched ${share(start.bytesAtFirstOutput)}`);
  say(`             it says: ${start.output}`);
}

async function main(): Promise<void> {
  await using scratch = await Scratch.create('demo');
  say('Preparing');
  const source = await step('image from Debian packages (cached after the first time)', debianImage);
  const stagingDirectory = scratch.join('converted');
  const converted = await step(`conversion of ${formatBytes(source.tarsSizeBytes)}`, () =>
    convertTars(source.tarPaths, { config: source.config, stagingDirectory }),
  );
  await using host = await step('registry, overlaybd-sidecar and containerd', () => LazyHost.start());
  const lazy = await step('push of the converted image', () => pushImage(host.registry, 'demo/app', 'overlaybd', converted));

  const common = { registry: host.registry, containerd: host.containerd, ready: DEBIAN_IMAGE_READY };
  const first = await timedStart({ ...common, snapshotter: SNAPSHOTTER, reference: lazy.reference, name: 'demo-1' });
  timeline('Lazy start, the image is in the registry', first, converted.layersSizeBytes);
  const second = await timedStart({ ...common, snapshotter: SNAPSHOTTER, reference: lazy.reference, name: 'demo-2' });
  timeline('Second container of the same image', second, converted.layersSizeBytes);
  if (!values['lazy-only']) {
    const plain = await pushImage(host.registry, 'demo/app', 'plain', source.image);
    const ordinary = await timedStart({ ...common, snapshotter: 'overlayfs', reference: plain.reference, name: 'demo-3' });
    timeline("The ordinary way: containerd's overlayfs, full pull of tar.gz layers", ordinary, source.image.layersSizeBytes);
  }
  say();
  say('Cleaning up');
}

await main();
