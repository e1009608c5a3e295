/**
 * Bearer tokens: `obd_<id>_<secret>`. The secret has 256 random bits, so one SHA-256 of it at rest is as good as a slow hash, and a
 * comparison costs microseconds. Rows are read at each request: a new, removed or expired token counts at once.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto';
import type { Clock } from '../../plugin/base/clock.ts';
import { AppError } from '../../plugin/base/errors.ts';
import { type Caller, SCOPES, type Scope } from './scopes.ts';

/** One for each person and program that steers a node; more is a leak. */
export const MAX_TOKENS = 100;

const ID_BYTES = 6;
const SECRET_BYTES = 32;
const TOKEN = /^obd_([0-9a-f]{12})_([A-Za-z0-9_-]{43})$/;

/** Compared with when there is no such token, so that the time taken does not tell which ids exist. */
const NO_HASH = hashOf('');

export interface TokenRow {
  id: string;
  name: string;
  scopes: string[];
  hash: string;
  createdUs: number;
  expiresUs: number | null;
}

/** Where tokens lie; the control plane's database. */
export interface TokenRows {
  add(row: TokenRow): void;
  find(id: string): TokenRow | undefined;
  list(): TokenRow[];
  count(): number;
  remove(id: string): boolean;
}

export interface TokenView {
  id: string;
  name: string;
  scopes: Scope[];
  createdAt: string;
  expiresAt: string | null;
}

export interface NewToken {
  name: string;
  scopes: readonly Scope[];
  /** Absent: until it is removed. */
  expiresInDays?: number | undefined;
}

function hashOf(secret: string): Buffer {
  return createHash('sha256').update(secret).digest();
}

const isoOf = (us: number): string => new Date(us / 1000).toISOString();
const known = (scopes: readonly string[]): Scope[] => SCOPES.filter((scope) => scopes.includes(scope));

function viewOf({ id, name, scopes, createdUs, expiresUs }: TokenRow): TokenView {
  return { id, name, scopes: known(scopes), createdAt: isoOf(createdUs), expiresAt: expiresUs === null ? null : isoOf(expiresUs) };
}

export class Tokens {
  private readonly rows: TokenRows;
  private readonly clock: Clock;

  constructor(rows: TokenRows, clock: Clock) {
    this.rows = rows;
    this.clock = clock;
  }

  /** Makes a token; its text is in this answer and nowhere else. Throws ResourceExhausted at {@link MAX_TOKENS}. */
  create({ name, scopes, expiresInDays }: NewToken): TokenView & { token: string } {
    if (this.rows.count() >= MAX_TOKENS) {
      throw new AppError('ResourceExhausted', { op: 'create token', subject: name, what: `there are ${MAX_TOKENS} already; remove some` });
    }
    const id = randomBytes(ID_BYTES).toString('hex');
    const secret = randomBytes(SECRET_BYTES).toString('base64url');
    const nowUs = this.clock.nowMs() * 1000;
    const expiresUs = expiresInDays === undefined ? null : nowUs + expiresInDays * 86_400_000_000;
    const row: TokenRow = { id, name, scopes: known(scopes), hash: hashOf(secret).toString('hex'), createdUs: nowUs, expiresUs };
    this.rows.add(row);
    return { ...viewOf(row), token: `obd_${id}_${secret}` };
  }

  list(): TokenView[] {
    return this.rows.list().map(viewOf);
  }

  /** Throws NotFound. */
  remove(id: string): void {
    if (this.rows.remove(id)) return;
    throw new AppError('NotFound', { op: 'remove token', subject: id.slice(0, 40), what: 'there is no such token' });
  }

  /** Whose token this is; undefined for one that is unknown, wrong or expired. */
  callerOf(token: string): Caller | undefined {
    const [, id, secret] = TOKEN.exec(token) ?? [];
    const row = id === undefined ? undefined : this.rows.find(id);
    const isEqual = timingSafeEqual(hashOf(secret ?? ''), row === undefined ? NO_HASH : Buffer.from(row.hash, 'hex'));
    if (row === undefined || !isEqual) return undefined;
    if (row.expiresUs !== null && row.expiresUs <= this.clock.nowMs() * 1000) return undefined;
    return { name: `token ${row.id} (${row.name})`, scopes: known(row.scopes) };
  }
}
