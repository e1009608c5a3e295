/**
 * Opens the control plane's database: one SQLite file, write-ahead log, every commit on disk before it is acknowledged. Calls are
 * synchronous and short (a commit is one flush); nothing on the data path comes here.
 */
import fs from 'node:fs';
import Sqlite from 'better-sqlite3';
import { type BetterSQLite3Database, drizzle } from 'drizzle-orm/better-sqlite3';
import { AppError, errnoOf } from '../plugin/base/errors.ts';
import { SNAPSHOTS_0001 } from './migrations/0001-snapshots.ts';
import { CONVERT_0002 } from './migrations/0002-convert.ts';
import { DEPENDENCIES_0003 } from './migrations/0003-dependencies.ts';
import { API_TOKENS_0004 } from './migrations/0004-api-tokens.ts';
import { PODS_0005 } from './migrations/0005-pods.ts';
import { CONVERT_MEASURES_0006 } from './migrations/0006-convert-measures.ts';
import { CACHES_0007 } from './migrations/0007-caches.ts';
import { AUDIT_0008 } from './migrations/0008-audit.ts';

/** In order; the index plus one is the schema's version (`PRAGMA user_version`). Forward only. */
const MIGRATIONS: readonly string[] = [
  SNAPSHOTS_0001,
  CONVERT_0002,
  DEPENDENCIES_0003,
  API_TOKENS_0004,
  PODS_0005,
  CONVERT_MEASURES_0006,
  CACHES_0007,
  AUDIT_0008,
];

/** Another process (a backup, a person with sqlite3) may hold the lock this long before a call fails. */
const BUSY_TIMEOUT_MS = 5_000;

export interface Database extends Disposable {
  readonly orm: BetterSQLite3Database;
  readonly client: Sqlite.Database;
  /** Runs `work` in one transaction: all of it is durable when this returns, or nothing happened. Nests. */
  transaction<T>(work: () => T): T;
}

function migrate(client: Sqlite.Database, path: string): void {
  const version = Number(client.pragma('user_version', { simple: true }));
  if (version > MIGRATIONS.length) {
    throw new AppError('FailedPrecondition', {
      op: 'open database',
      subject: path,
      what: `its schema has version ${version}, this program knows up to ${MIGRATIONS.length}: install the newer version again`,
    });
  }
  for (let next = version; next < MIGRATIONS.length; next += 1) {
    client.transaction(() => {
      client.exec(MIGRATIONS[next]!);
      client.pragma(`user_version = ${next + 1}`);
    })();
  }
}

/**
 * Opens (and makes or migrates) the database at `path`; `:memory:` for tests. Errors: FailedPrecondition (newer schema), DataLoss
 * (damaged file), Unavailable (cannot be opened).
 */
export function openDatabase(path: string): Database {
  let client: Sqlite.Database | undefined;
  try {
    client = new Sqlite(path, { timeout: BUSY_TIMEOUT_MS });
    if (path !== ':memory:') fs.chmodSync(path, 0o600);
    client.pragma('journal_mode = WAL');
    client.pragma('synchronous = FULL');
    client.pragma('foreign_keys = ON');
    const health = client.pragma('quick_check(1)', { simple: true });
    if (health !== 'ok') throw new AppError('DataLoss', { op: 'open database', subject: path, what: `SQLite finds it damaged: ${health}` });
    migrate(client, path);
  } catch (cause) {
    client?.close();
    if (cause instanceof AppError) throw cause;
    const damaged = errnoOf(cause) === 'SQLITE_NOTADB' || errnoOf(cause) === 'SQLITE_CORRUPT';
    throw new AppError(damaged ? 'DataLoss' : 'Unavailable', {
      op: 'open database',
      subject: path,
      what: cause instanceof Error ? cause.message : String(cause),
      cause,
    });
  }
  const opened = client;
  return {
    orm: drizzle(opened),
    client: opened,
    transaction: (work) => opened.transaction(work).immediate(),
    [Symbol.dispose]: () => opened.close(),
  };
}
