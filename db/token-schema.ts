/** The table of bearer tokens of the admin API, for typed queries; the SQL is in `migrations/`. */
import { integer, sqliteTable, text } from 'drizzle-orm/sqlite-core';

export const apiTokens = sqliteTable('api_tokens', {
  /** The public half of the token; names it in lists and in the audit log. */
  id: text('id').primaryKey(),
  name: text('name').notNull(),
  /** What the token may do (JSON list, checked by its reader). */
  scopes: text('scopes', { mode: 'json' }).$type<string[]>().notNull(),
  /** SHA-256 of the secret half, 64 hexadecimal digits. */
  hash: text('hash').notNull(),
  createdUs: integer('created_us').notNull(),
  /** Null: until it is removed. */
  expiresUs: integer('expires_us'),
});
