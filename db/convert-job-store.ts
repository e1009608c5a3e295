/** Rows of conversion jobs and their log lines. No rules. */
import { and, asc, count, desc, eq, gt, inArray, lt, sql } from 'drizzle-orm';
import { convertJobLog, convertJobs } from './convert-schema.ts';
import type { Database } from './database.ts';

export type ConvertJobRow = typeof convertJobs.$inferSelect;
export type ConvertJobState = ConvertJobRow['state'];
type NewConvertJobRow = Pick<
  ConvertJobRow,
  'host' | 'repository' | 'tag' | 'targetTag' | 'sourceDigest' | 'request' | 'triggerKind' | 'state' | 'progress' | 'createdUs'
>;
export type ConvertLogRow = typeof convertJobLog.$inferSelect;

/** A layer writes a handful of lines; a job that says more has run wild. */
const MAX_LOG_LINES = 2000;
/** Ended jobs kept for looking at: a busy week. Unended ones are never dropped. */
const MAX_ENDED_JOBS = 2000;

export class ConvertJobStore {
  private readonly database: Database;

  constructor(database: Database) {
    this.database = database;
  }

  /** Adds a job and drops the oldest ended ones beyond the limit. */
  insert(row: NewConvertJobRow): number {
    return this.database.transaction(() => {
      const id = Number(this.database.orm.insert(convertJobs).values(row).run().lastInsertRowid);
      this.database.orm.run(
        sql`DELETE FROM convert_jobs WHERE id IN (SELECT id FROM convert_jobs WHERE state IN ('SUCCESS', 'FAILED') ORDER BY id DESC LIMIT -1 OFFSET ${MAX_ENDED_JOBS})`,
      );
      return id;
    });
  }

  get(id: number): ConvertJobRow | undefined {
    return this.database.orm.select().from(convertJobs).where(eq(convertJobs.id, id)).get();
  }

  update(id: number, values: Partial<Omit<ConvertJobRow, 'id'>>): void {
    this.database.orm.update(convertJobs).set(values).where(eq(convertJobs.id, id)).run();
  }

  /** Newest first, those below `before`. */
  list(options: { limit: number; before?: number; state?: ConvertJobState }): ConvertJobRow[] {
    const conditions = [
      ...(options.before === undefined ? [] : [lt(convertJobs.id, options.before)]),
      ...(options.state === undefined ? [] : [eq(convertJobs.state, options.state)]),
    ];
    return this.database.orm
      .select()
      .from(convertJobs)
      .where(and(...conditions))
      .orderBy(desc(convertJobs.id))
      .limit(options.limit)
      .all();
  }

  /** Oldest first. */
  inState(state: ConvertJobState, limit: number): ConvertJobRow[] {
    return this.database.orm.select().from(convertJobs).where(eq(convertJobs.state, state)).orderBy(asc(convertJobs.id)).limit(limit).all();
  }

  countInState(state: ConvertJobState): number {
    return this.database.orm.select({ n: count() }).from(convertJobs).where(eq(convertJobs.state, state)).get()?.n ?? 0;
  }

  /** The job of a tag that has not ended. */
  unended(host: string, repository: string, tag: string, targetTag: string): ConvertJobRow | undefined {
    const { orm } = this.database;
    const isTag = and(eq(convertJobs.host, host), eq(convertJobs.repository, repository), eq(convertJobs.tag, tag));
    return orm
      .select()
      .from(convertJobs)
      .where(and(isTag, eq(convertJobs.targetTag, targetTag), inArray(convertJobs.state, ['PENDING', 'BUILDING'])))
      .orderBy(desc(convertJobs.id))
      .get();
  }

  /** The newest successful job of a tag. */
  lastSuccess(host: string, repository: string, tag: string, targetTag: string): ConvertJobRow | undefined {
    const isTag = and(eq(convertJobs.host, host), eq(convertJobs.repository, repository), eq(convertJobs.tag, tag));
    return this.database.orm
      .select()
      .from(convertJobs)
      .where(and(isTag, eq(convertJobs.targetTag, targetTag), eq(convertJobs.state, 'SUCCESS')))
      .orderBy(desc(convertJobs.id))
      .get();
  }

  /** The newest job that made a digest. */
  maker(host: string, repository: string, targetDigest: string): ConvertJobRow | undefined {
    return this.database.orm
      .select()
      .from(convertJobs)
      .where(and(eq(convertJobs.host, host), eq(convertJobs.repository, repository), eq(convertJobs.targetDigest, targetDigest)))
      .orderBy(desc(convertJobs.id))
      .get();
  }

  /** Appends a line; a job's lines beyond the limit are dropped, and the last one kept says so. */
  log(jobId: number, atUs: number, message: string): void {
    const { orm } = this.database;
    const last = orm.select({ n: count() }).from(convertJobLog).where(eq(convertJobLog.jobId, jobId)).get()?.n ?? 0;
    if (last >= MAX_LOG_LINES) return;
    const text = last === MAX_LOG_LINES - 1 ? 'further lines are not kept' : message;
    orm
      .insert(convertJobLog)
      .values({ jobId, lineNumber: last + 1, atUs, message: text })
      .run();
  }

  /** Lines behind `after`, in order. */
  logLines(jobId: number, after: number, limit: number): ConvertLogRow[] {
    return this.database.orm
      .select()
      .from(convertJobLog)
      .where(and(eq(convertJobLog.jobId, jobId), gt(convertJobLog.lineNumber, after)))
      .orderBy(asc(convertJobLog.lineNumber))
      .limit(limit)
      .all();
  }
}
