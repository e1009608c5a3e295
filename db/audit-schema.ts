/** The audit log of the admin API, for typed queries; the SQL is in `migrations/`. Bounded by its writer. */
import { index, integer, sqliteTable, text } from 'drizzle-orm/sqlite-core';

export const audit = sqliteTable(
  'audit',
  {
    id: integer('id').primaryKey({ autoIncrement: true }),
    atUs: integer('at_us').notNull(),
    /** change: asked for by somebody who may, whatever came of it. refusal: by somebody who may not. */
    kind: text('kind', { enum: ['change', 'refusal'] }).notNull(),
    /** `socket`, `token <id> (<name>)`, `nobody`. */
    caller: text('caller').notNull(),
    /** The HTTP method, or the vendor's action. */
    action: text('action').notNull(),
    path: text('path').notNull(),
    /** The HTTP status of the answer. */
    status: integer('status').notNull(),
    requestId: text('request_id').notNull(),
    /** Refusals since the one before that were not written down. */
    leftOut: integer('left_out').notNull(),
  },
  (table) => [index('audit_kind').on(table.kind, table.id)],
);
