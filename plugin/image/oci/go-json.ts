/**
 * Compact JSON with the same bytes as Go's encoding/json, so that a config or manifest that both write has one digest. Fields keep the
 * order they are given in (Go structs); the keys of maps are sorted by their UTF-8 bytes. Source: overlaybd-formats.md 4.2.
 */

/** A value to write. A Map keeps its order (a Go struct); a plain object is a Go map and is sorted. */
export type GoJson = string | number | boolean | readonly GoJson[] | ReadonlyMap<string, GoJson> | { readonly [key: string]: GoJson };

/** A Go struct: fields in order, those that are undefined left out (`omitempty`). */
export function goObject(fields: readonly (readonly [string, GoJson | undefined])[]): ReadonlyMap<string, GoJson> {
  const map = new Map<string, GoJson>();
  for (const [key, value] of fields) if (value !== undefined) map.set(key, value);
  return map;
}

/** Go's `omitempty`: empty strings, arrays and maps, false and zero are left out. */
export function omitEmpty<T extends GoJson>(value: T | undefined): T | undefined {
  if (value === undefined || value === '' || value === false || value === 0) return undefined;
  if (typeof value !== 'object') return value;
  const count = value instanceof Map ? value.size : Object.keys(value).length;
  return count === 0 ? undefined : value;
}

/** `<`, `>`, `&` and the two line separators are written as escapes for the sake of HTML; Go does the same. */
const GO_ESCAPED = /[<>&\u2028\u2029\b\f]|\\[bf]/g;

function escapeChar(match: string): string {
  // JSON.stringify writes \b and \f in short form; Go up to 1.21, which wrote the artifacts in use, writes the long one.
  const code = match === '\\b' ? 8 : match === '\\f' ? 12 : match.charCodeAt(0);
  return `\\u${code.toString(16).padStart(4, '0')}`;
}

function writeString(text: string): string {
  // JSON.stringify escapes a backslash of the text as two, so `\\b` cannot be confused with the escape of U+0008 when pairs go first.
  return JSON.stringify(text.toWellFormed())
    .split('\\\\')
    .map((part) => part.replace(GO_ESCAPED, escapeChar))
    .join('\\\\');
}

function write(value: GoJson): string {
  if (typeof value === 'string') return writeString(value);
  if (typeof value === 'number') {
    if (!Number.isSafeInteger(value)) throw new RangeError(`${value} is not a whole number below 2^53`);
    return String(value);
  }
  if (typeof value === 'boolean') return String(value);
  if (Array.isArray(value)) return `[${value.map(write).join(',')}]`;
  const entries =
    value instanceof Map
      ? [...(value as ReadonlyMap<string, GoJson>)]
      : Object.entries(value as { readonly [key: string]: GoJson }).sort(([a], [b]) => Buffer.compare(Buffer.from(a), Buffer.from(b)));
  return `{${entries.map(([key, member]) => `${writeString(key)}:${write(member)}`).join(',')}}`;
}

/** UTF-8 bytes of a document, without a final newline. Numbers must be whole and below 2^53 (RangeError otherwise). */
export function encodeGoJson(value: GoJson): Uint8Array {
  return new TextEncoder().encode(write(value));
}
