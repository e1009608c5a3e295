/** Rows of converted layers that can be used again, by source chain. No rules. */
import { and, desc, eq, ne, sql } from 'drizzle-orm';
import { convertLayers } from './convert-schema.ts';
import type { Database } from './database.ts';

export type ConvertedLayerRow = typeof convertLayers.$inferSelect;

/** 20,000 images of ten layers; about 100 MB of rows. The oldest go first and are only converted once more. */
const MAX_LAYERS_KEPT = 200_000;
/** Other repositories that may be asked for a layer. */
const MAX_OTHERS = 4;

export class ConvertLayerStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  get(host: string, repository: string, chainId: string, options: string): ConvertedLayerRow | undefined {
    const t = convertLayers;
    return this.database.orm
      .select()
      .from(t)
      .where(and(eq(t.host, host), eq(t.repository, repository), eq(t.chainId, chainId), eq(t.options, options)))
      .get();
  }

  /** The same layer in other repositories of the registry, newest first. */
  elsewhere(host: string, repository: string, chainId: string, options: string): ConvertedLayerRow[] {
    const t = convertLayers;
    return this.database.orm
      .select()
      .from(t)
      .where(and(eq(t.host, host), ne(t.repository, repository), eq(t.chainId, chainId), eq(t.options, options)))
      .orderBy(desc(t.createdUs))
      .limit(MAX_OTHERS)
      .all();
  }

  /** Writes or replaces a row, and drops the oldest beyond the limit. */
  put(row: ConvertedLayerRow): void {
    const { host: _, repository: __, chainId: ___, options: ____, ...values } = row;
    const t = convertLayers;
    this.database.transaction(() => {
      const target = [t.host, t.repository, t.chainId, t.options];
      this.database.orm.insert(t).values(row).onConflictDoUpdate({ target, set: values }).run();
      this.database.orm.run(
        sql`DELETE FROM convert_layers WHERE rowid IN (SELECT rowid FROM convert_layers ORDER BY created_us DESC LIMIT -1 OFFSET ${MAX_LAYERS_KEPT})`,
      );
    });
  }

  /** Forgets a row whose blob is gone from the registry. */
  remove(host: string, repository: string, chainId: string, options: string): void {
    const t = convertLayers;
    this.database.orm
      .delete(t)
      .where(and(eq(t.host, host), eq(t.repository, repository), eq(t.chainId, chainId), eq(t.options, options)))
      .run();
  }
}
