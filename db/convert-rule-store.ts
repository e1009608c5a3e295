/** Rows of conversion rules and of the tags that polling has seen. No rules of its own. */
import { and, asc, eq } from 'drizzle-orm';
import { convertRules, convertSeenTags } from './convert-schema.ts';
import type { Database } from './database.ts';

export type ConvertRuleRow = typeof convertRules.$inferSelect;

export class ConvertRuleStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  insert(row: Omit<ConvertRuleRow, 'id' | 'hasBaseline'>): number {
    return Number(this.database.orm.insert(convertRules).values(row).run().lastInsertRowid);
  }

  get(id: number): ConvertRuleRow | undefined {
    return this.database.orm.select().from(convertRules).where(eq(convertRules.id, id)).get();
  }

  byRepository(host: string, repository: string): ConvertRuleRow | undefined {
    return this.database.orm
      .select()
      .from(convertRules)
      .where(and(eq(convertRules.host, host), eq(convertRules.repository, repository)))
      .get();
  }

  /** Rules of one repository path, whatever the registry is called. */
  byPath(repository: string): ConvertRuleRow[] {
    return this.database.orm.select().from(convertRules).where(eq(convertRules.repository, repository)).all();
  }

  list(): ConvertRuleRow[] {
    return this.database.orm.select().from(convertRules).orderBy(asc(convertRules.id)).all();
  }

  update(id: number, values: Partial<Omit<ConvertRuleRow, 'id'>>): void {
    this.database.orm.update(convertRules).set(values).where(eq(convertRules.id, id)).run();
  }

  /** With its seen tags. */
  remove(id: number): void {
    this.database.orm.delete(convertRules).where(eq(convertRules.id, id)).run();
  }

  seenTags(ruleId: number): Map<string, string> {
    const rows = this.database.orm.select().from(convertSeenTags).where(eq(convertSeenTags.ruleId, ruleId)).all();
    return new Map(rows.map((row) => [row.tag, row.digest]));
  }

  putSeenTag(ruleId: number, tag: string, digest: string): void {
    const target = [convertSeenTags.ruleId, convertSeenTags.tag];
    this.database.orm.insert(convertSeenTags).values({ ruleId, tag, digest }).onConflictDoUpdate({ target, set: { digest } }).run();
  }

  removeSeenTag(ruleId: number, tag: string): void {
    this.database.orm
      .delete(convertSeenTags)
      .where(and(eq(convertSeenTags.ruleId, ruleId), eq(convertSeenTags.tag, tag)))
      .run();
  }

  clearSeenTags(ruleId: number): void {
    this.database.orm.delete(convertSeenTags).where(eq(convertSeenTags.ruleId, ruleId)).run();
  }
}
