/**
 * Regular expressions that people write into rules and notifications, matched in time linear in the tag, whatever the expression: a
 * Thompson automaton, no backtracking. The usual subset: literals, `.`, classes, `\d \w \s`, groups, `|`, `* + ? {m,n}`, `^ $`. Ours.
 *
 *   text ─ parse ─► tree ─ emit ─► program of `char`, `split`, `jump`, `begin`, `end`, `match` ─ run: a set of positions per character
 */
import { AppError } from '../../base/errors.ts';

/** Longest expression; tags have 128 characters. */
export const MAX_PATTERN_CHARS = 256;
/** `{m,n}` copies its operand, so this bounds the work per character: 2000 steps × 128 characters are well below a millisecond. */
const MAX_PROGRAM = 2000;
const MAX_REPEAT = 128;
const MAX_DEPTH = 32;

type CharTest = (code: number) => boolean;
type Node =
  | { kind: 'char'; test: CharTest }
  | { kind: 'begin' | 'end' }
  | { kind: 'sequence' | 'choice'; parts: Node[] }
  | { kind: 'repeat'; part: Node; min: number; max: number };
type Step =
  | { kind: 'char'; test: CharTest }
  | { kind: 'split'; first: number; second: number }
  | { kind: 'jump'; to: number }
  | { kind: 'begin' | 'end' | 'match' };

const isDigit: CharTest = (c) => c >= 48 && c <= 57;
const isWord: CharTest = (c) => isDigit(c) || (c >= 65 && c <= 90) || (c >= 97 && c <= 122) || c === 95;
const isSpace: CharTest = (c) => c === 32 || (c >= 9 && c <= 13);
const CLASSES: Readonly<Record<string, CharTest>> = {
  d: isDigit,
  D: (c) => !isDigit(c),
  w: isWord,
  W: (c) => !isWord(c),
  s: isSpace,
  S: (c) => !isSpace(c),
};

/** A compiled expression. */
export class TagPattern {
  readonly source: string;
  private readonly program: readonly Step[];

  /** Throws InvalidArgument naming the expression and the position of what is not understood. */
  constructor(source: string) {
    this.source = source;
    const emitter = new Emitter(source);
    emitter.emit(new Parser(source).parse());
    emitter.program.push({ kind: 'match' });
    this.program = emitter.program;
  }

  /** True when the expression is found anywhere in the text, as usual; `^` and `$` tie it to the ends. */
  test(text: string): boolean {
    let current = new Set<number>();
    for (let at = 0; at <= text.length; at += 1) {
      const next = new Set<number>();
      const isFirst = at === 0;
      const isLast = at === text.length;
      // A match may begin at every position.
      if (this.follow(0, current, isFirst, isLast)) return true;
      if (isLast) break;
      const code = text.charCodeAt(at);
      for (const index of current) {
        const step = this.program[index]!;
        if (step.kind === 'char' && step.test(code) && this.follow(index + 1, next, false, at + 1 === text.length)) return true;
      }
      current = next;
    }
    return false;
  }

  /** Adds the positions reachable without a character; true when one of them is the end of the program. */
  private follow(start: number, into: Set<number>, isFirst: boolean, isLast: boolean): boolean {
    const pending = [start];
    for (let index = pending.pop(); index !== undefined; index = pending.pop()) {
      if (into.has(index)) continue;
      into.add(index);
      const step = this.program[index]!;
      if (step.kind === 'match') return true;
      if (step.kind === 'jump') pending.push(step.to);
      else if (step.kind === 'split') pending.push(step.second, step.first);
      else if ((step.kind === 'begin' && isFirst) || (step.kind === 'end' && isLast)) pending.push(index + 1);
    }
    return false;
  }
}

/** Turns the tree into steps; copies of a repeated part count even when they are empty. */
class Emitter {
  readonly program: Step[] = [];
  private readonly source: string;
  private emitted = 0;

  constructor(source: string) {
    this.source = source;
  }

  emit(node: Node): void {
    this.emitted += 1;
    if (this.emitted > MAX_PROGRAM) throw refuse(this.source, `repeats too much: more than ${MAX_PROGRAM} steps`);
    if (node.kind === 'char') this.program.push({ kind: 'char', test: node.test });
    else if (node.kind === 'begin' || node.kind === 'end') this.program.push({ kind: node.kind });
    else if (node.kind === 'sequence') for (const part of node.parts) this.emit(part);
    else if (node.kind === 'choice') this.emitChoice(node.parts);
    else if (node.kind === 'repeat') this.emitRepeat(node);
  }

  /** Leaves room for a step that is known only later; returns its index. */
  private reserve(): number {
    return this.program.push({ kind: 'match' }) - 1;
  }

  private emitChoice(parts: readonly Node[]): void {
    const jumps: number[] = [];
    for (const [i, part] of parts.entries()) {
      const isLast = i === parts.length - 1;
      const split = isLast ? -1 : this.reserve();
      this.emit(part);
      if (isLast) continue;
      jumps.push(this.reserve());
      this.program[split] = { kind: 'split', first: split + 1, second: this.program.length };
    }
    for (const at of jumps) this.program[at] = { kind: 'jump', to: this.program.length };
  }

  private emitRepeat({ part, min, max }: Node & { kind: 'repeat' }): void {
    for (let i = 0; i < min; i += 1) this.emit(part);
    if (max === Number.POSITIVE_INFINITY) {
      const split = this.reserve();
      this.emit(part);
      this.program.push({ kind: 'jump', to: split });
      this.program[split] = { kind: 'split', first: split + 1, second: this.program.length };
      return;
    }
    const splits: number[] = [];
    for (let i = min; i < max; i += 1) {
      splits.push(this.reserve());
      this.emit(part);
    }
    for (const at of splits) this.program[at] = { kind: 'split', first: at + 1, second: this.program.length };
  }
}

class Parser {
  private readonly text: string;
  private at = 0;

  constructor(text: string) {
    this.text = text;
    if (text === '' || text.length > MAX_PATTERN_CHARS)
      throw refuse(text, `has ${text.length} characters; 1 to ${MAX_PATTERN_CHARS} are allowed`);
  }

  parse(): Node {
    const node = this.choice(0);
    if (this.at < this.text.length) throw this.bad('a ")" without its "("');
    return node;
  }

  private choice(depth: number): Node {
    if (depth > MAX_DEPTH) throw this.bad(`more than ${MAX_DEPTH} groups inside each other`);
    const parts: Node[] = [this.sequence(depth)];
    while (this.text[this.at] === '|') {
      this.at += 1;
      parts.push(this.sequence(depth));
    }
    return parts.length === 1 ? parts[0]! : { kind: 'choice', parts };
  }

  private sequence(depth: number): Node {
    const parts: Node[] = [];
    for (let char = this.text[this.at]; char !== undefined && char !== '|' && char !== ')'; char = this.text[this.at]) {
      parts.push(this.repeated(this.atom(char, depth)));
    }
    return { kind: 'sequence', parts };
  }

  private atom(char: string, depth: number): Node {
    this.at += 1;
    if (char === '(') return this.group(depth);
    if (char === '[') return { kind: 'char', test: this.charClass() };
    if (char === '.') return { kind: 'char', test: () => true };
    if (char === '^') return { kind: 'begin' };
    if (char === '$') return { kind: 'end' };
    if (char === '*' || char === '+' || char === '?' || char === '{') throw this.bad(`"${char}" has nothing to repeat`, -1);
    if (char === '\\') return { kind: 'char', test: this.escape() };
    return literal(char);
  }

  private group(depth: number): Node {
    if (this.text.startsWith('?:', this.at)) this.at += 2;
    else if (this.text[this.at] === '?') throw this.bad('look-around and named groups are not supported');
    const node = this.choice(depth + 1);
    if (this.text[this.at] !== ')') throw this.bad('a "(" without its ")"');
    this.at += 1;
    return node;
  }

  private escape(): CharTest {
    const char = this.text[this.at];
    if (char === undefined) throw this.bad('ends with a backslash');
    this.at += 1;
    const known = CLASSES[char];
    if (known !== undefined) return known;
    if (/[A-Za-z0-9]/.test(char)) throw this.bad(`"\\${char}" is not supported`, -2);
    const code = char.charCodeAt(0);
    return (c) => c === code;
  }

  private charClass(): CharTest {
    const isNegated = this.text[this.at] === '^';
    if (isNegated) this.at += 1;
    const tests: CharTest[] = [];
    for (let char = this.text[this.at]; char !== ']' || tests.length === 0; char = this.text[this.at]) {
      if (char === undefined) throw this.bad('a "[" without its "]"');
      this.at += 1;
      if (char === '\\') {
        tests.push(this.escape());
        continue;
      }
      const low = char.charCodeAt(0);
      const upper = this.text[this.at] === '-' ? this.text[this.at + 1] : undefined;
      if (upper === undefined || upper === ']') {
        tests.push((c) => c === low);
        continue;
      }
      const high = upper.charCodeAt(0);
      if (high < low) throw this.bad(`the range ${char}-${upper} runs backwards`);
      this.at += 2;
      tests.push((c) => c >= low && c <= high);
    }
    this.at += 1;
    return (c) => tests.some((test) => test(c)) !== isNegated;
  }

  private repeated(part: Node): Node {
    const char = this.text[this.at];
    const bounds =
      char === '{'
        ? this.counts()
        : char === '*'
          ? [0, Number.POSITIVE_INFINITY]
          : char === '+'
            ? [1, Number.POSITIVE_INFINITY]
            : char === '?'
              ? [0, 1]
              : undefined;
    if (bounds === undefined) return part;
    if (char !== '{') this.at += 1;
    // Laziness changes which match is found, not whether there is one.
    if (this.text[this.at] === '?') this.at += 1;
    if (/[*+?{]/.test(this.text[this.at] ?? '')) throw this.bad('repeats a repetition');
    return { kind: 'repeat', part, min: bounds[0]!, max: bounds[1]! };
  }

  private counts(): [number, number] {
    const match = /^\{(\d{1,3})(,(\d{0,3}))?\}/.exec(this.text.slice(this.at, this.at + 10));
    if (match === null) throw this.bad('a "{" that is no {m}, {m,} or {m,n}');
    const min = Number(match[1]);
    const max = match[2] === undefined ? min : match[3] === '' ? Number.POSITIVE_INFINITY : Number(match[3]);
    if (min > MAX_REPEAT || max < min || (max > MAX_REPEAT && max !== Number.POSITIVE_INFINITY)) {
      throw this.bad(`${match[0]}: counts go from 0 to ${MAX_REPEAT}, the second not below the first`);
    }
    this.at += match[0].length;
    return [min, max];
  }

  private bad(what: string, shift = 0): AppError {
    return refuse(this.text, `${what} (at character ${this.at + shift + 1})`);
  }
}

function literal(char: string): Node {
  const code = char.charCodeAt(0);
  return { kind: 'char', test: (c) => c === code };
}

function refuse(source: string, what: string): AppError {
  return new AppError('InvalidArgument', { op: 'read expression', subject: JSON.stringify(source.slice(0, MAX_PATTERN_CHARS)), what });
}
