/**
 * Which images a pattern covers: kubelet's rules for credential providers (`matchImages`), with whole path components. Parts of the host
 * may hold `*`, each for one part; ports must be equal; a path covers all below it.
 *
 *   *.dkr.ecr.*.amazonaws.com      registry.example:5000/team      registry.example/team/*
 */

const MAX_PATTERN_CHARS = 512;

function splitName(name: string): { parts: string[]; port: string; path: string } {
  const slash = name.indexOf('/');
  const authority = slash === -1 ? name : name.slice(0, slash);
  const colon = authority.lastIndexOf(':');
  const port = colon === -1 ? '' : authority.slice(colon + 1);
  const host = colon === -1 ? authority : authority.slice(0, colon);
  return { parts: host.toLowerCase().split('.'), port, path: slash === -1 ? '' : name.slice(slash + 1) };
}

/** One part of a host name: `*` stands for any run of characters. */
function matchesPart(pattern: string, text: string): boolean {
  const pieces = pattern.split('*');
  if (pieces.length === 1) return pattern === text;
  let at = pieces[0]!.length;
  if (!text.startsWith(pieces[0]!)) return false;
  for (const piece of pieces.slice(1, -1)) {
    const found = text.indexOf(piece, at);
    if (found === -1) return false;
    at = found + piece.length;
  }
  const last = pieces.at(-1)!;
  return text.length - last.length >= at && text.endsWith(last);
}

/** `name` is `host[:port]/path`, without tag and digest. */
export function matchesPattern(pattern: string, name: string): boolean {
  if (pattern === '*') return true;
  if (pattern.length > MAX_PATTERN_CHARS) return false;
  const wanted = splitName(pattern.replace(/^https?:\/\//, '').replace(/\/+\*?$/, ''));
  const given = splitName(name);
  if (wanted.port !== given.port || wanted.parts.length !== given.parts.length) return false;
  if (!wanted.parts.every((part, i) => matchesPart(part, given.parts[i]!))) return false;
  return wanted.path === '' || given.path === wanted.path || given.path.startsWith(`${wanted.path}/`);
}

/** The longest pattern that covers `name`; undefined when none does. */
export function longestMatch<T>(entries: Iterable<readonly [pattern: string, value: T]>, name: string): readonly [string, T] | undefined {
  let best: readonly [string, T] | undefined;
  for (const entry of entries) {
    if (matchesPattern(entry[0], name) && (best === undefined || entry[0].length > best[0].length)) best = entry;
  }
  return best;
}
