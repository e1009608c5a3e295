/**
 * What callers may do. A token carries scopes: `read` sees, `cache` changes image caches, `convert` starts conversions, `admin` does
 * everything. Every token may read. What no rule names takes `admin`, so that a forgotten route is closed, not open.
 */
export const SCOPES = ['read', 'cache', 'convert', 'admin'] as const;
export type Scope = (typeof SCOPES)[number];

/** Who calls: the root-only socket, or a token by its id. */
export interface Caller {
  /** `socket`, or `token <id> (<name>)`. */
  name: string;
  scopes: readonly Scope[];
}

/** Somebody without a token, who sees the empty status page and nothing else. */
export const NOBODY: Caller = { name: 'nobody', scopes: [] };

/** Whoever can open the socket is root already. */
export const SOCKET_CALLER: Caller = { name: 'socket', scopes: ['admin'] };

const READING = new Set(['GET', 'HEAD', 'OPTIONS']);

/** First match decides. Reads by default take `read`, changes `admin`. */
const RULES: readonly { reading?: boolean; path: RegExp; scope: Scope | 'handler' }[] = [
  // The status page, which holds nothing, and the vendor's actions, which ask for their own scope when their name is known.
  { path: /^\/$/, scope: 'handler' },
  { path: /^\/v1\/tokens(?:\/|$)/, scope: 'admin' },
  { reading: true, path: /^/, scope: 'read' },
  // Explaining a match changes nothing; it is a POST since the question is long.
  { path: /^\/v1\/image-caches:match$/, scope: 'read' },
  { path: /^\/v1\/image-caches(?:\/|$)/, scope: 'cache' },
  { path: /^\/v1\/materialize$/, scope: 'cache' },
  { path: /^\/v1\/(?:convert|conversions|conversion-rules)(?:\/|:|$)/, scope: 'convert' },
];

/** The scope that a request takes; `handler`: its handler decides. `path` is the one that the router sees, decoded. */
export function scopeOf(method: string, path: string): Scope | 'handler' {
  const isReading = READING.has(method);
  const rule = RULES.find(({ reading, path: pattern }) => (reading === undefined || reading === isReading) && pattern.test(path));
  return rule?.scope ?? 'admin';
}

/** True for requests that change nothing. */
export function isReading(method: string, path: string): boolean {
  return READING.has(method) || ['read', 'handler'].includes(scopeOf(method, path));
}

export function mayDo({ scopes }: Caller, scope: Scope | 'handler'): boolean {
  if (scope === 'handler') return true;
  return scope === 'read' ? scopes.length > 0 : scopes.includes(scope) || scopes.includes('admin');
}
