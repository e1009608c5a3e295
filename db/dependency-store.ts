/**
 * What snapshots and devices are made of, by digest, and the reverse: who would suffer if a digest went. Rows only, no rules. Every
 * method is synchronous.
 */
import type Sqlite from 'better-sqlite3';
import type { Database } from './database.ts';

/** A snapshot that cannot be read without a digest. */
export interface DigestUser {
  key: string;
  kind: 'view' | 'active' | 'committed';
}

export class DependencyStore {
  private readonly database: Database;
  private readonly statements: Readonly<
    Record<
      'touch' | 'idOf' | 'snapshotNeeds' | 'deviceNeeds' | 'isNeeded' | 'users' | 'containers' | 'digestsOf' | 'devices',
      Sqlite.Statement
    >
  >;

  constructor(database: Database) {
    this.database = database;
    const prepare = (sql: string) => database.client.prepare(sql);
    this.statements = {
      touch: prepare(
        'INSERT INTO needed_digests (digest, touched_us) VALUES (?, ?) ON CONFLICT (digest) DO UPDATE SET touched_us = excluded.touched_us WHERE touched_us < excluded.touched_us',
      ),
      idOf: prepare('SELECT id FROM needed_digests WHERE digest = ?'),
      snapshotNeeds: prepare('INSERT OR IGNORE INTO snapshot_needs (snapshot_id, digest_id) VALUES (?, ?)'),
      deviceNeeds: prepare('INSERT OR IGNORE INTO device_needs (device_id, digest_id) VALUES (?, ?)'),
      isNeeded: prepare(`
        SELECT 1 FROM needed_digests d WHERE d.digest = ? AND (d.touched_us >= ?
          OR EXISTS (SELECT 1 FROM snapshot_needs s WHERE s.digest_id = d.id)
          OR EXISTS (SELECT 1 FROM device_needs v WHERE v.digest_id = d.id))`),
      // A container stands on the device of the nearest accelerated snapshot below it and on nothing beneath that.
      users: prepare(`
        WITH RECURSIVE standing (id) AS (
          SELECT s.snapshot_id FROM snapshot_needs s JOIN needed_digests d ON d.id = s.digest_id WHERE d.digest = @digest
          UNION
          SELECT child.id FROM snapshots child JOIN standing ON child.parent_id = standing.id WHERE child.accelerated IS NULL
        )
        SELECT key, kind FROM snapshots WHERE id IN standing ORDER BY id LIMIT @limit`),
      containers: prepare(`
        SELECT DISTINCT s.key AS key, s.kind AS kind FROM snapshots s
          JOIN device_needs v ON v.device_id = s.device_id JOIN needed_digests d ON d.id = v.digest_id
          WHERE d.digest = ? ORDER BY s.key LIMIT ?`),
      digestsOf: prepare(
        'SELECT d.digest AS digest FROM device_needs v JOIN needed_digests d ON d.id = v.digest_id WHERE v.device_id = ? ORDER BY d.id',
      ),
      devices: prepare('SELECT DISTINCT device_id AS deviceId FROM device_needs'),
    };
  }

  /** A resolution counts on these digests: they stay until `keepUnneeded` has passed, although nothing needs them yet. */
  touch(digests: Iterable<string>, nowUs: number): void {
    this.database.transaction(() => {
      for (const digest of digests) this.statements.touch.run(digest, nowUs);
    });
  }

  addSnapshotNeeds(snapshotId: number, digests: Iterable<string>): void {
    this.add(this.statements.snapshotNeeds, snapshotId, digests);
  }

  addDeviceNeeds(deviceId: string, digests: Iterable<string>): void {
    this.add(this.statements.deviceNeeds, deviceId, digests);
  }

  /** True while a snapshot or device needs the digest, or it was touched at or after `sinceUs`. */
  isNeeded(digest: string, sinceUs: number): boolean {
    return this.statements.isNeeded.get(digest, sinceUs) !== undefined;
  }

  /** Snapshots (committed, and containers on them) that cannot be read without the digest; oldest first. */
  usersOf(digest: string, limit: number): DigestUser[] {
    return this.statements.users.all({ digest, limit }) as DigestUser[];
  }

  /** Containers and views whose open device reads from the digest. */
  containersOf(digest: string, limit: number): DigestUser[] {
    return this.statements.containers.all(digest, limit) as DigestUser[];
  }

  digestsOfDevice(deviceId: string): string[] {
    return (this.statements.digestsOf.all(deviceId) as { digest: string }[]).map((row) => row.digest);
  }

  /** Devices with needs, open or not. */
  devices(): string[] {
    return (this.statements.devices.all() as { deviceId: string }[]).map((row) => row.deviceId);
  }

  /** The device is gone: nothing serves it and no snapshot names it. */
  removeDevice(deviceId: string): void {
    this.database.client.prepare('DELETE FROM device_needs WHERE device_id = ?').run(deviceId);
    this.setMount(deviceId, undefined);
  }

  /** Forgets digests that nothing needs and that were last touched before `beforeUs`. */
  removeUnneeded(beforeUs: number): void {
    this.database.client
      .prepare(`
        DELETE FROM needed_digests WHERE touched_us < ?
          AND NOT EXISTS (SELECT 1 FROM snapshot_needs s WHERE s.digest_id = needed_digests.id)
          AND NOT EXISTS (SELECT 1 FROM device_needs v WHERE v.digest_id = needed_digests.id)`)
      .run(beforeUs);
  }

  /** The connection that the device's image was mounted from, as far as anybody knows. */
  mountOf(deviceId: string): string | undefined {
    const row = this.database.client.prepare('SELECT connection FROM device_mounts WHERE device_id = ?').get(deviceId);
    return (row as { connection: string } | undefined)?.connection;
  }

  /** Undefined: not mounted. */
  setMount(deviceId: string, connection: string | undefined): void {
    const { client } = this.database;
    if (connection === undefined) client.prepare('DELETE FROM device_mounts WHERE device_id = ?').run(deviceId);
    else client.prepare('INSERT OR REPLACE INTO device_mounts (device_id, connection) VALUES (?, ?)').run(deviceId, connection);
  }

  private add(statement: Sqlite.Statement, owner: number | string, digests: Iterable<string>): void {
    this.database.transaction(() => {
      for (const digest of new Set(digests)) {
        this.statements.touch.run(digest, 0);
        const { id } = this.statements.idOf.get(digest) as { id: number };
        statement.run(owner, id);
      }
    });
  }
}
