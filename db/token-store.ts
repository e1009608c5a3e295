/** Bearer tokens of the admin API as rows. The secrets themselves are never here. */
import { asc, count, eq } from 'drizzle-orm';
import type { Database } from './database.ts';
import { apiTokens } from './token-schema.ts';

export type TokenRow = typeof apiTokens.$inferSelect;

export class TokenStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  add(row: TokenRow): void {
    this.database.orm.insert(apiTokens).values(row).run();
  }

  find(id: string): TokenRow | undefined {
    return this.database.orm.select().from(apiTokens).where(eq(apiTokens.id, id)).get();
  }

  /** Oldest first. */
  list(): TokenRow[] {
    return this.database.orm.select().from(apiTokens).orderBy(asc(apiTokens.createdUs), asc(apiTokens.id)).all();
  }

  count(): number {
    return this.database.orm.select({ rows: count() }).from(apiTokens).get()?.rows ?? 0;
  }

  /** Answers whether there was one. */
  remove(id: string): boolean {
    return this.database.orm.delete(apiTokens).where(eq(apiTokens.id, id)).run().changes > 0;
  }
}
