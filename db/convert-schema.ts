/**
 * Tables of conversion, for typed queries. The SQL that makes them is in `migrations/0002-convert.ts` and `0006-convert-measures.ts`; a
 * test keeps both equal. Times are microseconds since the Unix epoch. JSON columns are written and checked by the part that owns them.
 */
import { index, integer, primaryKey, sqliteTable, text, unique } from 'drizzle-orm/sqlite-core';

export const convertJobs = sqliteTable(
  'convert_jobs',
  {
    id: integer('id').primaryKey({ autoIncrement: true }),
    host: text('host').notNull(),
    repository: text('repository').notNull(),
    tag: text('tag').notNull(),
    targetTag: text('target_tag').notNull(),
    /** What the tag named when the job was made, or when it first looked; null: not looked yet. */
    sourceDigest: text('source_digest'),
    targetDigest: text('target_digest'),
    /** Mode, runtime, platforms, compression (JSON). */
    request: text('request').notNull(),
    triggerKind: text('trigger_kind', { enum: ['manual', 'webhook', 'poll'] }).notNull(),
    state: text('state', { enum: ['PENDING', 'BUILDING', 'SUCCESS', 'FAILED'] }).notNull(),
    failureCode: text('failure_code'),
    failure: text('failure'),
    /** Processes started for it. */
    attempts: integer('attempts').notNull().default(0),
    /** Bytes and layers (JSON). */
    progress: text('progress').notNull(),
    createdUs: integer('created_us').notNull(),
    startedUs: integer('started_us'),
    endedUs: integer('ended_us'),
    /** Of a successful job: compressed layers of the images that were converted, and of their results. */
    sourceBytes: integer('source_bytes'),
    resultBytes: integer('result_bytes'),
    /** From the first request of the last attempt to the push of the tag. */
    elapsedMs: integer('elapsed_ms'),
  },
  (table) => [index('convert_jobs_state').on(table.state), index('convert_jobs_tag').on(table.host, table.repository, table.tag)],
);

export const convertJobLog = sqliteTable(
  'convert_job_log',
  {
    jobId: integer('job_id').notNull(),
    /** From 1. */
    lineNumber: integer('line_number').notNull(),
    atUs: integer('at_us').notNull(),
    message: text('message').notNull(),
  },
  (table) => [primaryKey({ columns: [table.jobId, table.lineNumber] })],
);

/** Converted layers by the chain of source layers that they were made from. */
export const convertLayers = sqliteTable(
  'convert_layers',
  {
    host: text('host').notNull(),
    repository: text('repository').notNull(),
    /** Of the source's diffIDs up to this layer (image-spec, config.md). */
    chainId: text('chain_id').notNull(),
    /** Everything beside the layers that shows in the blob: builder, mode, compression. */
    options: text('options').notNull(),
    digest: text('digest').notNull(),
    sizeBytes: integer('size_bytes').notNull(),
    /** Of the layer's descriptor (JSON). */
    annotations: text('annotations').notNull(),
    createdUs: integer('created_us').notNull(),
  },
  (table) => [
    primaryKey({ columns: [table.host, table.repository, table.chainId, table.options] }),
    index('convert_layers_chain').on(table.host, table.chainId, table.options),
    index('convert_layers_created').on(table.createdUs),
  ],
);

export const convertRules = sqliteTable(
  'convert_rules',
  {
    id: integer('id').primaryKey({ autoIncrement: true }),
    host: text('host').notNull(),
    repository: text('repository').notNull(),
    isEnabled: integer('is_enabled', { mode: 'boolean' }).notNull(),
    /** As `convert_jobs.request`. */
    request: text('request').notNull(),
    /** Which tags (JSON). */
    filter: text('filter').notNull(),
    detection: text('detection', { enum: ['webhook', 'poll'] }).notNull(),
    /** The tags that were there before are written down (`convert_seen_tags`). */
    hasBaseline: integer('has_baseline', { mode: 'boolean' }).notNull().default(false),
    createdUs: integer('created_us').notNull(),
    /** Pushes before this time are none of the rule's business. */
    enabledUs: integer('enabled_us').notNull(),
  },
  (table) => [unique().on(table.host, table.repository)],
);

/** What each tag of a polled repository named when it was last looked at. */
export const convertSeenTags = sqliteTable(
  'convert_seen_tags',
  { ruleId: integer('rule_id').notNull(), tag: text('tag').notNull(), digest: text('digest').notNull() },
  (table) => [primaryKey({ columns: [table.ruleId, table.tag] })],
);

export const convertNotifications = sqliteTable('convert_notifications', {
  id: integer('id').primaryKey({ autoIncrement: true }),
  name: text('name').notNull().unique(),
  url: text('url').notNull(),
  /** Which target tags (JSON). */
  filter: text('filter').notNull(),
  /** `host`, `host/namespace` or `host/repository`; null: all. */
  repository: text('repository'),
  /** Where the key of the signature lies; the key itself is never stored. */
  secretFile: text('secret_file'),
  createdUs: integer('created_us').notNull(),
});

export const convertDeliveries = sqliteTable(
  'convert_deliveries',
  {
    id: integer('id').primaryKey({ autoIncrement: true }),
    notificationId: integer('notification_id').notNull(),
    /** The body that is sent (JSON). */
    event: text('event').notNull(),
    state: text('state', { enum: ['WAITING', 'DELIVERED', 'FAILED'] }).notNull(),
    attempts: integer('attempts').notNull().default(0),
    nextUs: integer('next_us').notNull(),
    /** Status or reason of the last attempt. */
    lastResult: text('last_result'),
    createdUs: integer('created_us').notNull(),
    endedUs: integer('ended_us'),
  },
  (table) => [index('convert_deliveries_state').on(table.state, table.nextUs)],
);
