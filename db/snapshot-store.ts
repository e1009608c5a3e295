/** Rows of snapshots: prepared queries, no rules. Every method is one synchronous statement; join several with `Database.transaction`. */
import type Sqlite from 'better-sqlite3';
import { and, asc, eq, gt, isNotNull, ne, sql } from 'drizzle-orm';
import { alias } from 'drizzle-orm/sqlite-core';
import type { Database } from './database.ts';
import { snapshots } from './schema.ts';

export type SnapshotRow = typeof snapshots.$inferSelect & { parentKey: string | null };
export type SnapshotKind = SnapshotRow['kind'];

/** A snapshot as a link of its chain; without the large columns. */
export interface ChainLink {
  id: number;
  key: string;
  isAccelerated: boolean;
  brokenReason: string | null;
}

export interface NewSnapshot {
  key: string;
  parentId: number | null;
  kind: SnapshotKind;
  labels: Record<string, string>;
  chainRef: string | null;
  nowUs: number;
  deviceId?: string | null;
  accelerated?: string | null;
  artifactDigest?: string | null;
  baseDigest?: string | null;
  isolated?: boolean;
}

const parent = alias(snapshots, 'parent');

function selectRows(database: Database) {
  return database.orm
    .select({
      id: snapshots.id,
      key: snapshots.key,
      parentId: snapshots.parentId,
      kind: snapshots.kind,
      labels: snapshots.labels,
      chainRef: snapshots.chainRef,
      createdUs: snapshots.createdUs,
      updatedUs: snapshots.updatedUs,
      usageInodes: snapshots.usageInodes,
      usageBytes: snapshots.usageBytes,
      deviceId: snapshots.deviceId,
      accelerated: snapshots.accelerated,
      artifactDigest: snapshots.artifactDigest,
      baseDigest: snapshots.baseDigest,
      isolated: snapshots.isolated,
      brokenReason: snapshots.brokenReason,
      parentKey: parent.key,
    })
    .from(snapshots)
    .leftJoin(parent, eq(snapshots.parentId, parent.id))
    .$dynamic();
}

function prepareQueries(database: Database) {
  const { orm } = database;
  const at = (name: string) => sql.placeholder(name);
  return {
    byKey: selectRows(database)
      .where(eq(snapshots.key, at('key')))
      .prepare(),
    byId: selectRows(database)
      .where(eq(snapshots.id, at('id')))
      .prepare(),
    byChainRef: selectRows(database)
      .where(eq(snapshots.chainRef, at('ref')))
      .orderBy(asc(snapshots.id))
      .prepare(),
    page: selectRows(database)
      .where(gt(snapshots.id, at('afterId')))
      .orderBy(asc(snapshots.id))
      .limit(at('limit'))
      .prepare(),
    child: orm
      .select({ id: snapshots.id })
      .from(snapshots)
      .where(eq(snapshots.parentId, at('id')))
      .limit(1)
      .prepare(),
    deviceUser: selectRows(database)
      .where(eq(snapshots.deviceId, at('deviceId')))
      .limit(1)
      .prepare(),
    artifactUser: orm
      .select({ id: snapshots.id })
      .from(snapshots)
      .where(eq(snapshots.artifactDigest, at('digest')))
      .limit(1)
      .prepare(),
    usedDevices: orm.selectDistinct({ deviceId: snapshots.deviceId }).from(snapshots).where(isNotNull(snapshots.deviceId)).prepare(),
    isId: orm
      .select({ id: snapshots.id })
      .from(snapshots)
      .where(eq(snapshots.id, at('id')))
      .prepare(),
    directories: orm
      .select({ id: snapshots.id, kind: snapshots.kind, brokenReason: snapshots.brokenReason })
      .from(snapshots)
      .where(and(gt(snapshots.id, at('afterId')), sql`(${snapshots.accelerated} IS NULL OR ${ne(snapshots.kind, 'committed')})`))
      .orderBy(asc(snapshots.id))
      .limit(at('limit'))
      .prepare(),
    insert: orm
      .insert(snapshots)
      .values({
        key: at('key'),
        parentId: at('parentId'),
        kind: at('kind'),
        labels: at('labels'),
        chainRef: at('chainRef'),
        createdUs: at('nowUs'),
        updatedUs: at('nowUs'),
        deviceId: at('deviceId'),
        accelerated: at('accelerated'),
        artifactDigest: at('artifactDigest'),
        baseDigest: at('baseDigest'),
        isolated: at('isolated'),
      })
      .prepare(),
    remove: orm
      .delete(snapshots)
      .where(eq(snapshots.id, at('id')))
      .prepare(),
  };
}

export class SnapshotStore {
  private readonly database: Database;
  private readonly queries: ReturnType<typeof prepareQueries>;
  private readonly chainQuery: Sqlite.Statement;
  private readonly repositoryQuery: Sqlite.Statement;

  constructor(database: Database) {
    this.database = database;
    this.queries = prepareQueries(database);
    this.repositoryQuery = database.client.prepare('SELECT 1 FROM snapshots WHERE instr(accelerated, ?) > 0 LIMIT 1');
    this.chainQuery = database.client.prepare(`
      WITH RECURSIVE chain (id, parent_id, depth) AS (
        SELECT id, parent_id, 0 FROM snapshots WHERE id = ?
        UNION ALL
        SELECT s.id, s.parent_id, c.depth + 1 FROM snapshots s JOIN chain c ON s.id = c.parent_id
      )
      SELECT s.id AS id, s.key AS key, s.accelerated IS NOT NULL AS isAccelerated, s.broken_reason AS brokenReason
      FROM chain c JOIN snapshots s ON s.id = c.id ORDER BY c.depth`);
  }

  get(key: string): SnapshotRow | undefined {
    return this.queries.byKey.get({ key });
  }

  getById(id: number): SnapshotRow | undefined {
    return this.queries.byId.get({ id });
  }

  /** Snapshots that carry this chain id as their reference, oldest first. */
  byChainRef(ref: string): SnapshotRow[] {
    return this.queries.byChainRef.all({ ref });
  }

  /** Up to `limit` snapshots with a larger id, in order: key-set paging, so a long list never lies in memory at once. */
  page(afterId: number, limit: number): SnapshotRow[] {
    return this.queries.page.all({ afterId, limit });
  }

  /** The snapshot itself, its parent, and so on down to the base. */
  chain(id: number): ChainLink[] {
    const rows = this.chainQuery.all(id) as { id: number; key: string; isAccelerated: number; brokenReason: string | null }[];
    return rows.map((row) => ({ ...row, isAccelerated: row.isAccelerated === 1 }));
  }

  exists(id: number): boolean {
    return this.queries.isId.get({ id }) !== undefined;
  }

  hasChildren(id: number): boolean {
    return this.queries.child.get({ id }) !== undefined;
  }

  /** True while an active snapshot or view stands on the device. */
  isDeviceUsed(deviceId: string): boolean {
    return this.queries.deviceUser.get({ deviceId }) !== undefined;
  }

  /** An active snapshot or view that stands on the device. */
  userOf(deviceId: string): SnapshotRow | undefined {
    return this.queries.deviceUser.get({ deviceId });
  }

  usedDevices(): string[] {
    return this.queries.usedDevices.all().flatMap((row) => row.deviceId ?? []);
  }

  isArtifactUsed(digest: string): boolean {
    return this.queries.artifactUser.get({ digest }) !== undefined;
  }

  /** True while a snapshot reads layers of a repository of this name, on whatever registry. Looks at all of them. */
  isRepositoryRead(repository: string): boolean {
    const named = `"repository":${JSON.stringify(repository)}`;
    return this.repositoryQuery.get(named) !== undefined;
  }

  /** Snapshots that must have a directory, a page at a time. */
  withDirectory(afterId: number, limit: number): { id: number; kind: SnapshotKind; brokenReason: string | null }[] {
    return this.queries.directories.all({ afterId, limit });
  }

  /** Inserts and returns the id. */
  insert(row: NewSnapshot): number {
    const unset = { deviceId: null, accelerated: null, artifactDigest: null, baseDigest: null, isolated: false };
    const result = this.queries.insert.run({ ...unset, ...row });
    return Number(result.lastInsertRowid);
  }

  /** Turns an active snapshot into a committed one under a new name. */
  commit(
    id: number,
    to: {
      key: string;
      labels: Record<string, string>;
      chainRef: string | null;
      nowUs: number;
      usageInodes: number;
      usageBytes: number;
      accelerated: string | null;
      artifactDigest: string | null;
      baseDigest: string | null;
      brokenReason: string | null;
    },
  ): void {
    const { nowUs, ...values } = to;
    this.database.orm
      .update(snapshots)
      .set({ ...values, kind: 'committed', createdUs: nowUs, updatedUs: nowUs, deviceId: null })
      .where(eq(snapshots.id, id))
      .run();
  }

  setLabels(id: number, labels: Record<string, string>, chainRef: string | null, nowUs: number): void {
    this.database.orm.update(snapshots).set({ labels, chainRef, updatedUs: nowUs }).where(eq(snapshots.id, id)).run();
  }

  setBroken(id: number, brokenReason: string | null): void {
    this.database.orm.update(snapshots).set({ brokenReason }).where(eq(snapshots.id, id)).run();
  }

  remove(id: number): void {
    this.queries.remove.run({ id });
  }
}
