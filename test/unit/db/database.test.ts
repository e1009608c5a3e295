/** The database: its SQL and its typed schema say the same, it refuses what it cannot read, and its bounds hold. */
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { getTableConfig } from 'drizzle-orm/sqlite-core';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { audit } from '../../../db/audit-schema.ts';
import { AuditStore } from '../../../db/audit-store.ts';
import { imageCacheClock, imageCacheEvents, imageCacheImages, imageCaches, imageCacheTokens } from '../../../db/cache-schema.ts';
import {
  convertDeliveries,
  convertJobLog,
  convertJobs,
  convertLayers,
  convertNotifications,
  convertRules,
  convertSeenTags,
} from '../../../db/convert-schema.ts';
import { openDatabase } from '../../../db/database.ts';
import { EventStore } from '../../../db/event-store.ts';
import { podImages, pods } from '../../../db/pod-schema.ts';
import { ResolutionStore } from '../../../db/resolution-store.ts';
import { events, resolutions, snapshots } from '../../../db/schema.ts';
import { SnapshotStore } from '../../../db/snapshot-store.ts';
import { apiTokens } from '../../../db/token-schema.ts';

let scratch: string;
beforeEach(async () => {
  scratch = await fs.mkdtemp(path.join(os.tmpdir(), 'obd-db-'));
});
afterEach(async () => {
  await fs.rm(scratch, { recursive: true, force: true });
});

test.each([
  imageCaches,
  imageCacheImages,
  imageCacheEvents,
  imageCacheTokens,
  imageCacheClock,
  snapshots,
  resolutions,
  events,
  convertJobs,
  convertJobLog,
  convertLayers,
  convertRules,
  convertSeenTags,
  convertNotifications,
  convertDeliveries,
  apiTokens,
  audit,
  pods,
  podImages,
])('migrations give the columns that the typed schema names', (table) => {
  using database = openDatabase(':memory:');
  const { name, columns, indexes } = getTableConfig(table);
  const actual = database.client.pragma(`table_info(${name})`) as { name: string; type: string; notnull: number; pk: number }[];
  const shape = (column: { name: string; type: string; notNull: boolean }) =>
    `${column.name} ${column.type.toLowerCase()} ${column.notNull}`;
  expect(actual.map((column) => shape({ ...column, notNull: column.notnull === 1 })).sort()).toEqual(
    columns.map((column) => shape({ name: column.name, type: column.getSQLType(), notNull: column.notNull })).sort(),
  );
  const named = (database.client.pragma(`index_list(${name})`) as { name: string; origin: string }[]).filter(
    (index) => index.origin === 'c',
  );
  expect(named.map((index) => index.name).sort()).toEqual(indexes.map((index) => index.config.name).sort());
});

test('commits are flushed, references are enforced, and only root reads the file', async () => {
  const file = path.join(scratch, 'a.db');
  using database = openDatabase(file);
  expect(database.client.pragma('synchronous', { simple: true })).toBe(2);
  expect(database.client.pragma('journal_mode', { simple: true })).toBe('wal');
  expect(database.client.pragma('foreign_keys', { simple: true })).toBe(1);
  expect((await fs.stat(file)).mode & 0o777).toBe(0o600);
});

test('a schema of a newer version, a foreign file and a damaged one are refused by name', async () => {
  const file = path.join(scratch, 'a.db');
  const first = openDatabase(file);
  first.client.pragma('user_version = 999');
  first[Symbol.dispose]();
  expect(() => openDatabase(file)).toThrowError(expect.objectContaining({ code: 'FailedPrecondition' }));
  await fs.writeFile(path.join(scratch, 'text'), 'this is not a database, however long it may be'.repeat(100));
  expect(() => openDatabase(path.join(scratch, 'text'))).toThrowError(expect.objectContaining({ code: 'DataLoss' }));
  expect(() => openDatabase(path.join(scratch, 'none', 'a.db'))).toThrowError(expect.objectContaining({ code: 'Unavailable' }));
});

test('an id is never used twice, so a left-over directory never meets a new snapshot', () => {
  using database = openDatabase(':memory:');
  const store = new SnapshotStore(database);
  const row = { parentId: null, kind: 'active' as const, labels: {}, chainRef: null, nowUs: 1 };
  const first = store.insert({ key: 'a', ...row });
  store.remove(first);
  expect(store.insert({ key: 'a', ...row })).toBeGreaterThan(first);
});

test('events and resolutions keep their newest rows only', () => {
  using database = openDatabase(':memory:');
  const eventStore = new EventStore(database);
  database.transaction(() => {
    for (let at = 0; at < 10_050; at += 1) eventStore.append({ atUs: at, type: 't', subject: at % 2 === 0 ? 'even' : 'odd', message: '' });
  });
  expect(eventStore.list(20_000)).toHaveLength(10_000);
  expect(eventStore.list(1, 'even')[0]?.atUs).toBe(10_048);
  const resolutionStore = new ResolutionStore(database);
  const row = { image: 'i', artifactDigest: null, baseDigest: null, lazyLayers: 0, totalLayers: 0, reason: null, layers: '[]' };
  for (let at = 0; at < 10; at += 1) resolutionStore.put({ ...row, subject: `s${at}`, decidedUs: at }, 3);
  expect(resolutionStore.list(100).map(({ subject }) => subject)).toEqual(['s9', 's8', 's7']);
});

test('the audit log keeps the newest rows of each kind, whatever the other kind and the events do', () => {
  using database = openDatabase(':memory:');
  const store = new AuditStore(database, 3);
  const append = (kind: 'change' | 'refusal', atUs: number) =>
    store.append({ atUs, kind, caller: 'socket', action: 'POST', path: '/v1/tokens', status: 201, requestId: `r${atUs}`, leftOut: 0 });
  for (let at = 1; at <= 5; at += 1) append('change', at);
  for (let at = 6; at <= 25; at += 1) append('refusal', at);
  const eventStore = new EventStore(database);
  database.transaction(() => {
    for (let at = 0; at < 10_050; at += 1) eventStore.append({ atUs: at, type: 't', subject: 's', message: '' });
  });
  const times = (rows: { atUs: number }[]) => rows.map(({ atUs }) => atUs);
  expect(times(store.list({ limit: 100 }))).toEqual([25, 24, 23, 5, 4, 3]);
  expect(times(store.list({ limit: 2, kind: 'change' }))).toEqual([5, 4]);
  const [last] = store.list({ limit: 1 });
  expect(times(store.list({ limit: 2, before: last!.id }))).toEqual([24, 23]);
});
