/**
 * The stanza that makes containerd use the snapshotter: what must be set in which version of its configuration, and how an existing file
 * takes it. Used by install.sh. Source of the keys: containerd's docs (man/containerd-config.toml, cri/config) for versions 1 to 4.
 */
import fs from 'node:fs';
import path from 'node:path';
import { parse, TomlError } from 'smol-toml';
import { AppError } from '../../plugin/base/errors.ts';
import { applySettings, isSame, removeSettings, type TomlSetting, type TomlTable, valueAt } from './toml-edit.ts';

export interface StanzaOptions {
  /** The snapshotter's socket. */
  socket: string;
  /** The snapshotter's root, which kubelet's accounting looks at. */
  root: string;
  /** Whether CRI (Kubernetes) uses the snapshotter by default. */
  isCri: boolean;
  /** Tells containerd (2.x; older ones do not read it) that the snapshotter maps user ids. */
  mayRemapIds: boolean;
  /** Version of a file that is made new: 2 for containerd 1.x, 3 for 2.x. */
  newFileVersion: 2 | 3;
}

export interface StanzaEdit {
  text: string;
  /** What a person should know: keys in imported files, CRI switched off. */
  notices: string[];
}

/** Files read through `imports`; containerd has no limit, a node has a handful. */
const MAX_IMPORTS = 100;

const NAME = 'overlaybd';
const CRI_TABLE: Readonly<Record<number, readonly string[]>> = {
  1: ['plugins', 'cri', 'containerd'],
  2: ['plugins', 'io.containerd.grpc.v1.cri', 'containerd'],
  3: ['plugins', 'io.containerd.cri.v1.images'],
  4: ['plugins', 'io.containerd.cri.v1.images'],
};
const CRI_PLUGINS = ['cri', 'io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images'];

function refuse(file: string, what: string, cause?: unknown): AppError {
  return new AppError('FailedPrecondition', { op: 'edit', subject: file, what, ...(cause === undefined ? {} : { cause }) });
}

function parsed(text: string, file: string): TomlTable {
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    throw refuse(file, `line ${error.line}, column ${error.column} is not TOML; nothing was changed`, error);
  }
}

function settingsFor(version: number, options: StanzaOptions): TomlSetting[] {
  const proxy = ['proxy_plugins', NAME];
  const settings: TomlSetting[] = [
    { table: [...proxy, 'exports'], key: 'root', value: options.root },
    { table: proxy, key: 'address', value: options.socket },
    { table: proxy, key: 'type', value: 'snapshot' },
  ];
  if (options.mayRemapIds) settings.push({ table: proxy, key: 'capabilities', value: ['remap-ids'] });
  if (options.isCri) {
    const table = CRI_TABLE[version]!;
    settings.push({ table, key: 'disable_snapshot_annotations', value: false }, { table, key: 'snapshotter', value: NAME });
  }
  return settings;
}

/** The text that the stanza stands for, for people who add it by hand. */
export function stanzaText(version: 2 | 3, options: StanzaOptions): string {
  return applySettings(`version = ${version}\n`, settingsFor(version, options)) ?? '';
}

function importedFiles(document: TomlTable, file: string): string[] {
  const imports = Array.isArray(document.imports) ? document.imports.filter((entry) => typeof entry === 'string') : [];
  const found = imports.flatMap((pattern) => fs.globSync(path.resolve(path.dirname(file), pattern)));
  return found.filter((entry) => path.resolve(entry) !== path.resolve(file)).slice(0, MAX_IMPORTS);
}

function checkImports(document: TomlTable, file: string, settings: readonly TomlSetting[]): string[] {
  const notices: string[] = [];
  for (const imported of importedFiles(document, file)) {
    const other = parsed(fs.readFileSync(imported, 'utf8'), imported);
    for (const { table, key, value } of settings) {
      const there = valueAt(other, [...table, key]);
      if (there === undefined || isSame(there, value)) continue;
      if (table[0] === 'proxy_plugins') {
        throw refuse(
          imported,
          `${[...table, key].join('.')} is ${JSON.stringify(there)} already, for another snapshotter; remove it first`,
        );
      }
      notices.push(`${imported} sets ${[...table, key].join('.')} to ${JSON.stringify(there)} and overrides ${file}; change it there`);
    }
  }
  return notices;
}

/**
 * The file with the stanza in it; the same text when it has it already. `text` is undefined when there is no file yet. Throws
 * FailedPrecondition, with nothing changed, when the file is no TOML, names another snapshotter `overlaybd`, or is written so that it
 * cannot be edited safely.
 */
export function addStanza(text: string | undefined, file: string, options: StanzaOptions): StanzaEdit {
  if (text === undefined) {
    const created = applySettings('', [
      { table: [], key: 'version', value: options.newFileVersion },
      ...settingsFor(options.newFileVersion, options),
    ]);
    if (created === undefined) throw refuse(file, 'a new file could not be written');
    return { text: created, notices: [] };
  }
  const document = parsed(text, file);
  const version = document.version ?? 1;
  if (typeof version !== 'number' || CRI_TABLE[version] === undefined) {
    throw refuse(file, `version ${JSON.stringify(version)} is not one of 1, 2, 3, 4`);
  }
  const address = valueAt(document, ['proxy_plugins', NAME, 'address']);
  if (address !== undefined && address !== options.socket) {
    throw refuse(file, `proxy_plugins.${NAME} points to ${JSON.stringify(address)}, another snapshotter; remove that stanza first`);
  }
  const settings = settingsFor(version, options);
  const notices = checkImports(document, file, settings);
  const disabled = Array.isArray(document.disabled_plugins) ? document.disabled_plugins : [];
  if (options.isCri && disabled.some((name) => CRI_PLUGINS.includes(String(name)))) {
    notices.push(`${file} disables the CRI plugin (disabled_plugins); Kubernetes cannot use this containerd until that changes`);
  }
  const edited = applySettings(text, settings);
  if (edited === undefined) {
    throw refuse(
      file,
      `dotted keys or inline tables stand where the stanza belongs; add it by hand:\n${stanzaText(version >= 3 ? 3 : 2, options)}`,
    );
  }
  return { text: edited, notices };
}

/** The file without the stanza; undefined when nothing is left of it, since it was made by the installation. */
export function removeStanza(text: string): string | undefined {
  const rest = removeSettings(text);
  return rest.trim() === '' && rest !== text ? undefined : rest;
}
