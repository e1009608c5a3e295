/**
 * Conversions one after the other in one process, each ended a little later in its life: while its threads start, load their libraries,
 * compress. Usage: stopped-conversions STAGING COUNT; prints how many of them ended in time. Started by the test of the same name.
 */
import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { convertLayers } from '../../../../plugin/convert/build/convert-layers.ts';
import { tarOf } from '../../../support/tar.ts';

const [staging, count] = [process.argv[2]!, Number(process.argv[3])];
const tar = await tarOf([{ name: 'file', content: Buffer.alloc(6_000_000, 'some text that repeats ') }]);

async function* slowly(): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < tar.length; at += 100_000) {
    yield tar.subarray(at, at + 100_000);
    await delay(1);
  }
}

/** True when the conversion was done before it was ended. */
async function convertAndEnd(i: number): Promise<boolean> {
  const stagingDirectory = join(staging, String(i));
  await mkdir(stagingDirectory);
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(new Error('ended')), i * 4);
  try {
    const mode = i % 2 === 0 ? 'full' : 'index-only';
    for await (const _ of convertLayers([{ name: 'layer', open: slowly }], { stagingDirectory, signal: stop.signal, mode, threads: 2 }));
    return true;
  } catch (error) {
    if (error !== stop.signal.reason) throw error;
    if ((await readdir(stagingDirectory)).length > 0) throw new Error(`conversion ${i} left files`);
    return false;
  } finally {
    clearTimeout(timer);
  }
}

let done = 0;
for (let i = 0; i < count; i += 1) if (await convertAndEnd(i)) done += 1;
process.stdout.write(`${JSON.stringify({ ended: count - done, done })}\n`);
