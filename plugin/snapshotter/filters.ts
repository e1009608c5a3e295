/** containerd's filters over snapshots: several filters match if any does, one filter if all of its selectors do. */
import { AppError } from '../base/errors.ts';
import { FilterScanner, type Token } from './filter-scanner.ts';
import { LABEL_CHAIN_REF } from './labels.ts';

/** What filters see of a snapshot. */
export interface FilterSubject {
  name: string;
  parent: string;
  kind: string;
  labels: Readonly<Record<string, string>>;
}

export interface SnapshotFilter {
  matches(subject: FilterSubject): boolean;
  /** When set, only snapshots with this chain reference can match. */
  readonly chainRef: string | undefined;
}

/** containerd sends one or two short ones; the limit keeps a hostile call from costing more than a list of all. */
const MAX_FILTERS = 64;
const MAX_FILTER_CHARS = 8192;

type Match = (subject: FilterSubject) => boolean;
interface Selector {
  match: Match;
  chainRef: string | undefined;
}

function fieldOf(path: readonly string[]): (subject: FilterSubject) => string | undefined {
  const [head, ...rest] = path;
  if (head === 'labels') {
    const key = rest.join('.');
    return ({ labels }) => (Object.hasOwn(labels, key) ? labels[key] : undefined);
  }
  if (head === 'name') return ({ name }) => name;
  if (head === 'parent') return ({ parent }) => parent;
  if (head === 'kind') return ({ kind }) => kind;
  return () => undefined;
}

function operation(operator: string, value: string, get: (subject: FilterSubject) => string | undefined): Match | undefined {
  if (operator === '==') return (subject) => get(subject) === value;
  if (operator === '!=') return (subject) => (get(subject) ?? '') !== value;
  if (operator !== '~=') return undefined;
  let pattern: RegExp;
  try {
    pattern = new RegExp(value, 'u');
  } catch (cause) {
    throw new AppError('InvalidArgument', { op: 'parse filter', subject: value, what: 'not a regular expression', cause });
  }
  return (subject) => pattern.test(get(subject) ?? '');
}

class Parser {
  private readonly scanner: FilterScanner;
  private token: Token;

  constructor(input: string) {
    this.scanner = new FilterScanner(input);
    this.token = this.scanner.next();
  }

  selectors(): Selector[] {
    const found = [this.selector()];
    while (this.isSeparator(',')) {
      this.token = this.scanner.next();
      found.push(this.selector());
    }
    if (this.token.type !== 'end') throw this.unexpected('a comma or the end');
    return found;
  }

  private selector(): Selector {
    const path = [this.field()];
    while (this.isSeparator('.')) {
      this.token = this.scanner.next();
      path.push(this.field());
    }
    const get = fieldOf(path);
    if (this.token.type === 'end' || this.isSeparator(',')) {
      return { match: (subject) => get(subject) !== undefined, chainRef: undefined };
    }
    if (this.token.type !== 'operator') throw this.unexpected('an operator');
    const operator = this.token.text;
    const value = this.value(operator);
    const match = operation(operator, value, get);
    if (match === undefined) throw this.scanner.fail(0, `unknown operator ${operator}`);
    this.token = this.scanner.next();
    const isChainRef = operator === '==' && path[0] === 'labels' && path.slice(1).join('.') === LABEL_CHAIN_REF;
    return { match, chainRef: isChainRef ? value : undefined };
  }

  private field(): string {
    const { token } = this;
    if (token.type !== 'field' && !(token.type === 'quoted' && token.quote === '"')) throw this.unexpected('a field');
    this.token = this.scanner.next();
    return token.text;
  }

  private value(operator: string): string {
    this.token = this.scanner.next(true);
    const { token } = this;
    const isValue = token.type === 'value' || (token.type === 'quoted' && (token.quote === '"' || operator === '~='));
    if (!isValue) throw this.unexpected('a value');
    return token.text;
  }

  private isSeparator(text: string): boolean {
    return this.token.type === 'separator' && this.token.text === text;
  }

  private unexpected(wanted: string): AppError {
    const { token } = this;
    return token.type === 'end'
      ? this.scanner.fail(0, `ends where ${wanted} is expected; counted from the start`)
      : this.scanner.fail(token.at, `${JSON.stringify(token.text)} where ${wanted} is expected`);
  }
}

/** Compiles filters; none, or an empty one among them, matches everything. Throws InvalidArgument with the offset. */
export function parseFilters(filters: readonly string[]): SnapshotFilter {
  if (filters.length > MAX_FILTERS || filters.some((filter) => filter.length > MAX_FILTER_CHARS)) {
    throw new AppError('InvalidArgument', {
      op: 'parse filters',
      subject: `${filters.length} filters`,
      what: `the limit is ${MAX_FILTERS} filters of ${MAX_FILTER_CHARS} characters`,
    });
  }
  const all = filters.map((filter) => (filter === '' ? [] : new Parser(filter).selectors()));
  const [only] = all;
  return {
    matches: (subject) => all.length === 0 || all.some((selectors) => selectors.every((selector) => selector.match(subject))),
    chainRef: all.length === 1 ? only?.find((selector) => selector.chainRef !== undefined)?.chainRef : undefined,
  };
}
