/**
 * Reads fields of parsed JSON that came from a registry. Every failure names the document and the field. Objects are read by own
 * property only, and maps are rebuilt with own properties, so that a key such as `__proto__` is data.
 */
import { AppError } from '../../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../../base/limits.ts';

export type JsonObject = Readonly<Record<string, unknown>>;

/** Longest string accepted in a media type, author, tag and the like: far above any real one, far below the document's own bound. */
const MAX_NAME_CHARS = 4096;

/** The position of a value in a document, for messages: `manifest sha256:…, layers[3].digest`. */
export interface At {
  document: string;
  path: string;
}

export function child(at: At, key: string | number): At {
  const step = typeof key === 'number' ? `[${key}]` : at.path === '' ? key : `.${key}`;
  return { document: at.document, path: `${at.path}${step}` };
}

export function bad(at: At, what: string): AppError {
  return new AppError('InvalidArgument', {
    op: 'read',
    subject: at.document.slice(0, 300),
    what: at.path === '' ? what : `${at.path}: ${what}`,
  });
}

/** Decodes a UTF-8 JSON object. Throws InvalidArgument when it is too large, not UTF-8, not JSON or not an object. */
export function parseJsonObject(bytes: Uint8Array, document: string): JsonObject {
  const at = { document, path: '' };
  if (bytes.length > MAX_MANIFEST_BYTES) throw bad(at, `${bytes.length} bytes, more than ${MAX_MANIFEST_BYTES}`);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (cause) {
    throw new AppError('InvalidArgument', { op: 'read', subject: document.slice(0, 300), what: 'not a JSON document in UTF-8', cause });
  }
  return asObject(value, at);
}

export function asObject(value: unknown, at: At): JsonObject {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw bad(at, 'not an object');
  return value as JsonObject;
}

/** The value of an own property; JSON null counts as absent, as in Go. */
export function own(object: JsonObject, key: string): unknown {
  const value = Object.hasOwn(object, key) ? object[key] : undefined;
  return value === null ? undefined : value;
}

export function optionalString(object: JsonObject, key: string, at: At, maxChars = MAX_NAME_CHARS): string | undefined {
  const value = own(object, key);
  if (value === undefined) return undefined;
  if (typeof value !== 'string') throw bad(child(at, key), 'not a string');
  if (value.length > maxChars) throw bad(child(at, key), `${value.length} characters, more than ${maxChars}`);
  return value;
}

export function requiredString(object: JsonObject, key: string, at: At): string {
  const value = optionalString(object, key, at);
  if (value === undefined || value === '') throw bad(child(at, key), 'missing');
  return value;
}

export function optionalBoolean(object: JsonObject, key: string, at: At): boolean | undefined {
  const value = own(object, key);
  if (value === undefined || typeof value === 'boolean') return value;
  throw bad(child(at, key), 'not true or false');
}

/** An array with at most `max` members; absent is undefined. */
export function optionalArray(object: JsonObject, key: string, at: At, max: number): readonly unknown[] | undefined {
  const value = own(object, key);
  if (value === undefined) return undefined;
  if (!Array.isArray(value)) throw bad(child(at, key), 'not an array');
  if (value.length > max) throw bad(child(at, key), `${value.length} entries, more than ${max}`);
  return value;
}

export function optionalStrings(object: JsonObject, key: string, at: At, max: number): string[] | undefined {
  return optionalArray(object, key, at, max)?.map((value, index) => {
    if (typeof value !== 'string') throw bad(child(child(at, key), index), 'not a string');
    return value;
  });
}

/** A map of strings; its total size is bounded by the document's. */
export function optionalStringMap(object: JsonObject, key: string, at: At): Readonly<Record<string, string>> | undefined {
  const value = own(object, key);
  if (value === undefined) return undefined;
  const where = child(at, key);
  const entries = Object.entries(asObject(value, where)).map(([name, text]): [string, string] => {
    if (typeof text !== 'string') throw bad(child(where, name.slice(0, 100)), 'not a string');
    return [name, text];
  });
  return Object.fromEntries(entries);
}

/** The keys of a Go `map[string]struct{}` (exposed ports, volumes). */
export function optionalKeySet(object: JsonObject, key: string, at: At): string[] | undefined {
  const value = own(object, key);
  return value === undefined ? undefined : Object.keys(asObject(value, child(at, key)));
}
