/** Rows of the audit log: the newest of each kind, so that neither refusals nor events can wash out the changes. No rules. */
import { and, desc, eq, lt, lte } from 'drizzle-orm';
import { audit } from './audit-schema.ts';
import type { Database } from './database.ts';

export type AuditRow = typeof audit.$inferSelect;

/** Rows of each kind, some 4 MB: a week at one change a minute, and no less than sixteen hours of refusals, of which ten a minute are written. */
export const AUDIT_ROWS_MAX = 10_000;

export class AuditStore {
  private readonly database: Database;
  private readonly max: number;

  constructor(database: Database, max = AUDIT_ROWS_MAX) {
    this.database = database;
    this.max = max;
  }

  /** Appends one row and drops the oldest of its kind beyond the limit. */
  append(row: Omit<AuditRow, 'id'>): void {
    this.database.transaction(() => {
      const { orm } = this.database;
      orm.insert(audit).values(row).run();
      const isOfKind = eq(audit.kind, row.kind);
      const beyond = orm.select({ id: audit.id }).from(audit).where(isOfKind).orderBy(desc(audit.id)).limit(1).offset(this.max).get();
      if (beyond !== undefined) {
        orm
          .delete(audit)
          .where(and(isOfKind, lte(audit.id, beyond.id)))
          .run();
      }
    });
  }

  /** Newest first: those below `before`, of one kind or of both. */
  list({ limit, before, kind }: { limit: number; before?: number; kind?: AuditRow['kind'] }): AuditRow[] {
    const below = before === undefined ? undefined : lt(audit.id, before);
    const ofKind = kind === undefined ? undefined : eq(audit.kind, kind);
    return this.database.orm.select().from(audit).where(and(below, ofKind)).orderBy(desc(audit.id)).limit(limit).all();
  }
}
