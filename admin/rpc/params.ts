/**
 * Parameters of the vendor's RPC style: flat names, lists as `Image.1`, `Image.2`, objects in lists as `Tag.1.Key`. Each is taken once; what
 * nobody took is refused by name, so that a misspelt one is no silent default. Source: requirement row R118.
 */
import { AppError } from '../../plugin/base/errors.ts';

/** 20 images, 20 tags, 10 credentials and 20 registries are some 170. */
const MAX_PARAMETERS = 400;

/** Of lists; the parts have lower bounds of their own. */
const MAX_INDEX = 100;

/** Who signs and how; there is no signature to check here: the socket is root's, and TCP has tokens. */
const COMMON = new Set([
  'Action',
  'Version',
  'Format',
  'AccessKeyId',
  'SecurityToken',
  'Signature',
  'SignatureMethod',
  'SignatureVersion',
  'SignatureNonce',
  'SignatureType',
  'Timestamp',
  'OwnerId',
  'OwnerAccount',
  'ResourceOwnerId',
  'ResourceOwnerAccount',
]);

function refuse(reason: 'InvalidParameter' | 'MissingParameter', name: string, what: string): AppError {
  return new AppError('InvalidArgument', { op: 'read', subject: `parameter ${name.slice(0, 100)}`, what, details: { reason } });
}

export class Params {
  readonly action: string;
  private readonly values = new Map<string, string>();

  /** Throws InvalidArgument for a name that comes twice, or too many. */
  constructor(...sources: readonly URLSearchParams[]) {
    for (const source of sources) {
      for (const [name, value] of source) {
        if (this.values.has(name)) throw refuse('InvalidParameter', name, 'is given twice');
        if (this.values.size >= MAX_PARAMETERS) throw refuse('InvalidParameter', name, `there are more than ${MAX_PARAMETERS}`);
        this.values.set(name, value);
      }
    }
    this.action = this.values.get('Action') ?? '';
    for (const name of COMMON) this.values.delete(name);
  }

  text(name: string): string | undefined {
    const value = this.values.get(name);
    this.values.delete(name);
    return value;
  }

  required(name: string): string {
    const value = this.text(name);
    if (value === undefined || value === '') throw refuse('MissingParameter', name, 'is required');
    return value;
  }

  flag(name: string): boolean | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    if (value !== 'true' && value !== 'false') throw refuse('InvalidParameter', name, 'is neither true nor false');
    return value === 'true';
  }

  integer(name: string): number | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    if (!/^\d{1,9}$/.test(value)) throw refuse('InvalidParameter', name, 'is not a whole number');
    return Number(value);
  }

  /** `a,b` → `['a', 'b']`. */
  commaList(name: string, max: number): string[] | undefined {
    const value = this.text(name);
    if (value === undefined || value === '') return undefined;
    const items = value.split(',').map((item) => item.trim());
    if (items.length > max) throw refuse('InvalidParameter', name, `has ${items.length} entries, and ${max} are allowed`);
    return items;
  }

  /** `Image.1`, `Image.2` in the order of their numbers; undefined when there is none. */
  list(prefix: string): string[] | undefined {
    const indexes = this.indexesOf(prefix, '');
    return indexes.length === 0 ? undefined : indexes.map((index) => this.text(`${prefix}.${index}`) ?? '');
  }

  /** `Tag.1.Key`, `Tag.1.Value` as objects, in the order of their numbers. */
  objects<F extends string>(prefix: string, fields: readonly F[]): Partial<Record<F, string>>[] | undefined {
    const indexes = this.indexesOf(prefix, '.');
    if (indexes.length === 0) return undefined;
    return indexes.map((index) => {
      const entries = fields.map((field) => [field, this.text(`${prefix}.${index}.${field}`)]);
      return Object.fromEntries(entries.filter(([, value]) => value !== undefined)) as Partial<Record<F, string>>;
    });
  }

  /** What stands behind a prefix, by the rest of its name; for what is kept as it is. */
  below(prefix: string): Record<string, string> {
    const found = [...this.values].filter(([name]) => name.startsWith(`${prefix}.`));
    for (const [name] of found) this.values.delete(name);
    return Object.fromEntries(found.map(([name, value]) => [name.slice(prefix.length + 1), value]));
  }

  /** To be called when everything that the action knows was taken. */
  refuseRest(): void {
    const [name] = this.values.keys();
    if (name !== undefined) throw refuse('InvalidParameter', name, `${this.action} has no such parameter`);
  }

  private indexesOf(prefix: string, behind: string): number[] {
    const start = `${prefix}.`;
    const indexes = new Set<number>();
    for (const name of this.values.keys()) {
      if (!name.startsWith(start)) continue;
      const digits = /^[1-9]\d{0,2}/.exec(name.slice(start.length))?.[0] ?? '';
      const rest = name.slice(start.length + digits.length);
      const isRight = behind === '' ? rest === '' : rest.startsWith(behind);
      if (digits === '' || !isRight || Number(digits) > MAX_INDEX)
        throw refuse('InvalidParameter', name, `is not ${start}1 to ${MAX_INDEX}`);
      indexes.add(Number(digits));
    }
    return [...indexes].sort((a, b) => a - b);
  }
}

/** A failure of what a part of the request is, under the vendor's name of it. */
export function invalidParameter(name: string, what: string): AppError {
  return refuse('InvalidParameter', name, what);
}
