/**
 * The golden files of the reference implementation. They lie outside the repository: `OVERLAYBD_FIXTURES`, or
 * `../shared/fixtures/overlaybd` beside it. A test that needs them fails, saying where they are expected, when they are missing.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

const ROOT = resolve(import.meta.dirname, '../..');

/** Absolute path of the fixtures' directory; whether it exists is checked on use. */
export const FIXTURES_DIR = resolve(ROOT, process.env.OVERLAYBD_FIXTURES ?? '../shared/fixtures/overlaybd');

export interface FixtureDevice {
  device_size: number;
  device_sha256: string;
  merged_segments_as_upstream?: string[];
}

export interface FixtureFile {
  size: number;
  sha256: string;
  what?: string;
  /** Hostile files: `accepts`, `rejects`, `CRASH: …`, `hangs …`. */
  upstream?: string;
  device_size?: number;
  device_sha256?: string;
  device?: FixtureDevice;
  segments_as_upstream_loads_them?: string[];
  original_size?: number;
  original_sha256?: string;
  decompresses_to?: string;
  virtual_size?: number;
}

export interface FixtureManifest {
  devices: Record<string, FixtureDevice>;
  files: Record<string, FixtureFile>;
  synth_operations: Record<string, string[]>;
  image: { diff_ids: string[]; chain_ids: string[]; layer_uuids_as_convertor_would_set: string[] };
}

/** Absolute path of one fixture. Throws, naming the place, when it is missing. */
export function fixturePath(name: string): string {
  const path = join(FIXTURES_DIR, name);
  if (existsSync(path)) return path;
  throw new Error(`fixture ${name} is missing: expected at ${path} (set OVERLAYBD_FIXTURES to the directory that holds manifest.json)`);
}

export function readFixture(name: string): Buffer {
  return readFileSync(fixturePath(name));
}

let manifest: FixtureManifest | undefined;

export function fixtureManifest(): FixtureManifest {
  manifest ??= JSON.parse(readFixture('manifest.json').toString('utf8')) as FixtureManifest;
  return manifest;
}

/** The manifest's entry of one file. */
export function fixtureFile(name: string): FixtureFile {
  const entry = fixtureManifest().files[name];
  if (entry === undefined) throw new Error(`manifest.json in ${FIXTURES_DIR} does not name ${name}`);
  return entry;
}

/** Names of the manifest's files that begin with `prefix`. */
export function fixtureNames(prefix: string): string[] {
  return Object.keys(fixtureManifest().files).filter((name) => name.startsWith(prefix));
}
