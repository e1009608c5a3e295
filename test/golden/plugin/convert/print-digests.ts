/** Converts the layers named on the command line and prints a digest a line; run by digests.test.ts in strange surroundings. */
import { readFileSync } from 'node:fs';
import { buildLayers } from '../../../unit/plugin/convert/build/converted-device.ts';

for (const layer of await buildLayers(process.argv.slice(2).map((file) => readFileSync(file)))) console.log(layer.digest);
