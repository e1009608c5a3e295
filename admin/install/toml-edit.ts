/**
 * Edits a TOML file as text, so that comments, order and layout stay, and so that every edit can be taken back without a memory of its
 * own: each change carries a mark. Ours.
 *
 *   replaced   #overlaybd-sidecar-was:  snapshotter = "overlayfs"     the old line, kept as a comment …
 *                snapshotter = "overlaybd" #overlaybd-sidecar         … above the new one
 *   added        disable_snapshot_annotations = false #overlaybd-sidecar
 *   new tables #overlaybd-sidecar-begin … #overlaybd-sidecar-end      at the end of the file
 *
 * Statement borders are found with the parser itself: text up to a border is a valid document, text cut inside a string or array is not.
 */
import { parse } from 'smol-toml';

const LINE_MARK = ' #overlaybd-sidecar';
const WAS_MARK = '#overlaybd-sidecar-was:';
const BEGIN_MARK = '#overlaybd-sidecar-begin';
const END_MARK = '#overlaybd-sidecar-end';
/** On the begin mark when the file did not end in a line break before. */
const NO_BREAK = ' (no line break before)';

/** What can be set: scalars, and lists of text. */
export type TomlValue = string | boolean | number | readonly string[];
export type TomlTable = { [key: string]: unknown };

/** One value to set: the table's path, the key in it, and the value. */
export interface TomlSetting {
  table: readonly string[];
  key: string;
  value: TomlValue;
}

function parses(text: string): boolean {
  try {
    parse(text);
    return true;
  } catch (error) {
    if (error instanceof Error) return false;
    throw error;
  }
}

/** The value at a path of a parsed document; undefined when a part of the path is missing or no table. */
export function valueAt(document: unknown, path: readonly string[]): unknown {
  let value = document;
  for (const part of path) {
    if (typeof value !== 'object' || value === null || Array.isArray(value) || !Object.hasOwn(value, part)) return undefined;
    value = (value as TomlTable)[part];
  }
  return value;
}

/** The path of a `[table]` line; undefined for other lines, arrays of tables included (they end a table all the same). */
function headerPath(line: string): { path: string[] | undefined } | undefined {
  const text = line.trim();
  if (!text.startsWith('[')) return undefined;
  if (text.startsWith('[[')) return { path: undefined };
  const path: string[] = [];
  let value: unknown;
  try {
    value = parse(text);
  } catch (error) {
    if (error instanceof Error) return undefined;
    throw error;
  }
  while (typeof value === 'object' && value !== null) {
    const [key] = Object.keys(value);
    if (key === undefined) break;
    path.push(key);
    value = (value as TomlTable)[key];
  }
  return { path };
}

const samePath = (a: readonly string[] | undefined, b: readonly string[]): boolean =>
  a !== undefined && a.length === b.length && a.every((part, index) => part === b[index]);

const isBorder = (lines: readonly string[], index: number): boolean => parses(lines.slice(0, index).join('\n'));

/** The lines of a table's own body, `[from, to)`; undefined when no header names it. The top level is the empty path. */
function tableBody(lines: readonly string[], path: readonly string[]): { from: number; to: number } | undefined {
  let from = path.length === 0 ? 0 : -1;
  for (let index = 0; index < lines.length; index += 1) {
    const header = headerPath(lines[index]!);
    if (header === undefined || !isBorder(lines, index)) continue;
    if (from >= 0) return { from, to: index };
    if (samePath(header.path, path)) from = index + 1;
  }
  return from >= 0 ? { from, to: lines.length } : undefined;
}

/** The line that sets `key` in a body; undefined when no single line does. */
function settingLine(lines: readonly string[], body: { from: number; to: number }, key: string): number | undefined {
  for (let index = body.from; index < body.to; index += 1) {
    const line = lines[index]!.trim();
    if (line === '' || line.startsWith('#') || !line.includes('=') || !parses(line)) continue;
    if (Object.keys(parse(line)).includes(key) && isBorder(lines, index)) return index;
  }
  return undefined;
}

const bareKey = (key: string): string => (/^[A-Za-z0-9_-]+$/.test(key) ? key : JSON.stringify(key));
const indentOf = (line: string): string => /^\s*/.exec(line)?.[0] ?? '';

function setOne(lines: string[], setting: TomlSetting, appended: string[]): void {
  const assignment = `${bareKey(setting.key)} = ${JSON.stringify(setting.value)}`;
  const body = tableBody(lines, setting.table);
  if (body === undefined) {
    const header = `[${setting.table.map(bareKey).join('.')}]`;
    if (!appended.includes(header)) appended.push(header);
    appended.splice(appended.indexOf(header) + 1, 0, `  ${assignment}`);
    return;
  }
  const at = settingLine(lines, body, setting.key);
  if (at !== undefined) {
    const old = lines[at]!;
    lines.splice(at, 1, WAS_MARK + old, `${indentOf(old)}${assignment}${LINE_MARK}`);
    return;
  }
  const header = setting.table.length === 0 ? '' : lines[body.from - 1]!;
  lines.splice(body.from, 0, `${indentOf(header)}${setting.table.length === 0 ? '' : '  '}${assignment}${LINE_MARK}`);
}

/**
 * Sets values, skipping those that are so already. The result is checked: it parses, has every value, and differs from the
 * original nowhere else. Returns undefined when the text cannot be edited so (dotted keys or inline tables stand in the way).
 */
export function applySettings(text: string, settings: readonly TomlSetting[]): string | undefined {
  const before = parse(text);
  const missing = settings.filter(({ table, key, value }) => !isSame(valueAt(before, [...table, key]), value));
  if (missing.length === 0) return text;
  const hasBreak = text === '' || text.endsWith('\n');
  const lines = text.split('\n');
  if (hasBreak) lines.pop();
  const appended: string[] = [];
  for (const setting of missing) setOne(lines, setting, appended);
  let result = lines.map((line) => `${line}\n`).join('');
  if (appended.length > 0) {
    result += `${BEGIN_MARK}${hasBreak ? '' : NO_BREAK}\n${appended.map((line) => `${line}\n`).join('')}${END_MARK}\n`;
  } else if (!hasBreak) {
    result = result.slice(0, -1);
  }
  return parses(result) && isExactly(parse(result), before, missing) && removeSettings(result) === text ? result : undefined;
}

/** True when a parsed value is what a setting asks for. */
export function isSame(there: unknown, value: TomlValue): boolean {
  return JSON.stringify(there) === JSON.stringify(value);
}

function isExactly(after: TomlTable, before: TomlTable, settings: readonly TomlSetting[]): boolean {
  const expected = structuredClone(before);
  for (const { table, key, value } of settings) {
    let target: TomlTable = expected;
    for (const part of table) {
      if (!Object.hasOwn(target, part)) target[part] = {};
      const next = target[part];
      if (typeof next !== 'object' || next === null) return false;
      target = next as TomlTable;
    }
    target[key] = typeof value === 'object' ? [...value] : value;
  }
  return canonical(after) === canonical(expected);
}

function canonical(value: unknown): string {
  return JSON.stringify(value, (_, inner: unknown) =>
    typeof inner === 'object' && inner !== null && !Array.isArray(inner) && !(inner instanceof Date)
      ? Object.fromEntries(Object.entries(inner).sort(([a], [b]) => (a < b ? -1 : 1)))
      : inner,
  );
}

/** Takes every marked change back; text without marks is returned as it is. */
export function removeSettings(text: string): string {
  const kept: string[] = [];
  let isInBlock = false;
  let hadBreak = true;
  for (const line of text.split('\n')) {
    if (line.startsWith(BEGIN_MARK)) {
      isInBlock = true;
      hadBreak = line !== BEGIN_MARK + NO_BREAK;
    } else if (isInBlock) {
      isInBlock = line !== END_MARK;
    } else if (line.startsWith(WAS_MARK)) {
      kept.push(line.slice(WAS_MARK.length));
    } else if (!line.endsWith(LINE_MARK)) {
      kept.push(line);
    }
  }
  const result = kept.join('\n');
  return hadBreak ? result : result.replace(/\n$/, '');
}
