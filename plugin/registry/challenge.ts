/**
 * Reads WWW-Authenticate. Source: RFC 9110 11.6.1 (several challenges in one header, quoted strings), distribution's token
 * specification (Bearer with realm, service, scope).
 */

export interface Challenge {
  /** Lower case: `basic`, `bearer`. */
  readonly scheme: string;
  /** Names in lower case. */
  readonly parameters: ReadonlyMap<string, string>;
}

/** A header longer than this is refused as a whole; real ones have 300 bytes. */
const MAX_HEADER_CHARS = 8192;
const MAX_CHALLENGES = 16;

// Sticky and linear: each pattern consumes characters that the next cannot.
const TOKEN = /[!#$%&'*+.^_`|~0-9A-Za-z-]+/y;
const SEPARATORS = /[\s,]*/y;
const EQUALS = /\s*=\s*/y;
const QUOTED = /"((?:[^"\\]|\\.)*)"/y;
const BARE_VALUE = /[^\s,"]+/y;
const TOKEN68 = /[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))/y;

class Scanner {
  private readonly text: string;
  private position = 0;

  constructor(text: string) {
    this.text = text;
  }

  get isAtEnd(): boolean {
    return this.position >= this.text.length;
  }

  take(pattern: RegExp): RegExpExecArray | undefined {
    pattern.lastIndex = this.position;
    const match = pattern.exec(this.text);
    if (match === null) return undefined;
    this.position = pattern.lastIndex;
    return match;
  }

  mark(): number {
    return this.position;
  }

  back(mark: number): void {
    this.position = mark;
  }
}

function takeParameter(scanner: Scanner): [string, string] | undefined {
  const mark = scanner.mark();
  const name = scanner.take(TOKEN);
  if (name !== undefined && scanner.take(EQUALS) !== undefined) {
    const quoted = scanner.take(QUOTED);
    if (quoted !== undefined) return [name[0].toLowerCase(), quoted[1]!.replace(/\\(.)/g, '$1')];
    const bare = scanner.take(BARE_VALUE);
    if (bare !== undefined) return [name[0].toLowerCase(), bare[0]];
  }
  scanner.back(mark);
  return undefined;
}

/** All challenges in order. Text that is no challenge ends the list; it never throws. */
export function parseChallenges(header: string | readonly string[] | undefined): Challenge[] {
  const text = typeof header === 'string' ? header : (header ?? []).join(', ');
  if (text.length > MAX_HEADER_CHARS) return [];
  const scanner = new Scanner(text);
  const challenges: Challenge[] = [];
  while (challenges.length < MAX_CHALLENGES) {
    scanner.take(SEPARATORS);
    const scheme = scanner.isAtEnd ? undefined : scanner.take(TOKEN);
    if (scheme === undefined) break;
    const parameters = new Map<string, string>();
    scanner.take(SEPARATORS);
    if (scanner.take(TOKEN68) === undefined || scheme[0].toLowerCase() === 'bearer' || scheme[0].toLowerCase() === 'basic') {
      for (let pair = takeParameter(scanner); pair !== undefined; pair = takeParameter(scanner)) {
        if (!parameters.has(pair[0])) parameters.set(pair[0], pair[1]);
        scanner.take(SEPARATORS);
      }
    }
    challenges.push({ scheme: scheme[0].toLowerCase(), parameters });
  }
  return challenges;
}
