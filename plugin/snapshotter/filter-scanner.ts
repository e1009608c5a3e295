/**
 * Tokens of containerd's filter language. Source: containerd's public package `filters` (grammar in its documentation):
 *   selectors = selector {"," selector}      selector = fieldpath [operator value]
 *   fieldpath = field {"." field}            field    = quoted | [A-Za-z0-9_]+
 *   operator  = "==" | "!=" | "~="           value    = quoted | [^\s,]+
 *   quoted    = a Go string literal in "…"; after "~=" also /…/ or |…|
 */
import { AppError } from '../base/errors.ts';

export type Token =
  | { type: 'end' }
  | { type: 'field' | 'value' | 'separator' | 'operator'; text: string; at: number }
  | { type: 'quoted'; text: string; quote: string; at: number };

const SIMPLE_ESCAPES: Readonly<Record<string, string>> = {
  a: '\x07',
  b: '\b',
  f: '\f',
  n: '\n',
  r: '\r',
  t: '\t',
  v: '\v',
  '\\': '\\',
};

/** Digits and base of numeric escapes. */
const NUMERIC_ESCAPES: Readonly<Record<string, { digits: RegExp; base: number }>> = {
  x: { digits: /[0-9a-fA-F]{2}/y, base: 16 },
  u: { digits: /[0-9a-fA-F]{4}/y, base: 16 },
  U: { digits: /[0-9a-fA-F]{8}/y, base: 16 },
};

export class FilterScanner {
  private readonly input: string;
  private position = 0;

  constructor(input: string) {
    this.input = input;
  }

  fail(at: number, what: string): AppError {
    return new AppError('InvalidArgument', { op: 'parse filter', subject: JSON.stringify(this.input), what: `${what} at offset ${at}` });
  }

  /** The next token; `isValue` says that the grammar wants a value here. */
  next(isValue = false): Token {
    const { input } = this;
    while (/\s/.test(input[this.position] ?? '')) this.position += 1;
    const at = this.position;
    const ch = input[at];
    if (ch === undefined) return { type: 'end' };
    if (ch === '"' || ch === '/' || ch === '|') return { type: 'quoted', text: this.quoted(ch), quote: ch, at };
    if (ch === ',' || ch === '.') return this.take('separator', /[,.]/y, at);
    if (/[=!~]/.test(ch)) return this.take('operator', /[=!~]+/y, at);
    if (isValue) return this.take('value', /[^\s,\p{Cc}]+/uy, at);
    if (/[A-Za-z0-9_]/.test(ch)) return this.take('field', /[A-Za-z0-9_]+/y, at);
    throw this.fail(at, `unexpected ${JSON.stringify(ch)}`);
  }

  private take(type: 'field' | 'value' | 'separator' | 'operator', pattern: RegExp, at: number): Token {
    pattern.lastIndex = at;
    const text = pattern.exec(this.input)?.[0];
    if (text === undefined) throw this.fail(at, `unexpected ${JSON.stringify(this.input[at])}`);
    this.position = at + text.length;
    return { type, text, at };
  }

  private quoted(quote: string): string {
    const start = this.position;
    let text = '';
    let at = start + 1;
    for (;;) {
      const ch = this.input[at];
      if (ch === undefined || ch === '\n') throw this.fail(start, 'quoted text does not end');
      if (ch === quote) break;
      if (ch === '\\') {
        const escaped = this.escape(at, quote);
        text += escaped.text;
        at = escaped.end;
      } else {
        text += ch;
        at += 1;
      }
    }
    this.position = at + 1;
    return text;
  }

  private escape(at: number, quote: string): { text: string; end: number } {
    const ch = this.input[at + 1] ?? '';
    if (ch === quote) return { text: quote, end: at + 2 };
    const simple = SIMPLE_ESCAPES[ch];
    if (simple !== undefined) return { text: simple, end: at + 2 };
    const numeric = NUMERIC_ESCAPES[ch] ?? (/[0-7]/.test(ch) ? { digits: /[0-7]{3}/y, base: 8 } : undefined);
    if (numeric === undefined) throw this.fail(at, 'unknown escape');
    const from = numeric.base === 8 ? at + 1 : at + 2;
    numeric.digits.lastIndex = from;
    const digits = numeric.digits.exec(this.input)?.[0];
    const code = Number.parseInt(digits ?? '', numeric.base);
    if (digits === undefined || code > 0x10ffff) throw this.fail(at, 'malformed escape');
    return { text: String.fromCodePoint(code), end: from + digits.length };
  }
}
