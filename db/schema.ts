/**
 * Tables of the control plane's database, for typed queries. The SQL that makes them is in `migrations/`; a test keeps both equal.
 * Times are microseconds since the Unix epoch (containerd compares them with its own clock, so milliseconds are too coarse).
 */
import { type AnySQLiteColumn, index, integer, primaryKey, sqliteTable, text } from 'drizzle-orm/sqlite-core';

export const snapshots = sqliteTable(
  'snapshots',
  {
    /** Names the directory; never used twice. */
    id: integer('id').primaryKey({ autoIncrement: true }),
    /** The name that containerd gave; opaque. */
    key: text('key').notNull().unique(),
    parentId: integer('parent_id').references((): AnySQLiteColumn => snapshots.id),
    kind: text('kind', { enum: ['view', 'active', 'committed'] }).notNull(),
    labels: text('labels', { mode: 'json' }).$type<Record<string, string>>().notNull(),
    /** Copy of one label, so that the look-up that containerd makes for each layer of a pull needs no scan. */
    chainRef: text('chain_ref'),
    createdUs: integer('created_us').notNull(),
    updatedUs: integer('updated_us').notNull(),
    /** What a committed snapshot takes; measured once, at its commit. */
    usageInodes: integer('usage_inodes').notNull().default(0),
    usageBytes: integer('usage_bytes').notNull().default(0),
    /** The device that this active snapshot or view has among its lowers. Counting these rows is the device's reference count. */
    deviceId: text('device_id'),
    /** Set when the snapshot is served from a block device: what that device is made of (JSON, checked by its reader). */
    accelerated: text('accelerated'),
    /** The artifact (manifest) that `accelerated` was taken from. */
    artifactDigest: text('artifact_digest'),
    /** The image whose twin the artifact is; null when the artifact itself was pulled. */
    baseDigest: text('base_digest'),
    /** True for an active snapshot into which a layer blob is being unpacked apart from its parents. */
    isolated: integer('isolated', { mode: 'boolean' }).notNull().default(false),
    /** Why the snapshot cannot be used; null: it can. */
    brokenReason: text('broken_reason'),
  },
  (table) => [
    index('snapshots_parent').on(table.parentId),
    index('snapshots_chain_ref').on(table.chainRef),
    index('snapshots_device').on(table.deviceId),
    index('snapshots_artifact').on(table.artifactDigest),
  ],
);

/** How each image is served, decided once for all of its layers. */
export const resolutions = sqliteTable('resolutions', {
  /** The manifest's digest, or the reference when no manifest could be had. */
  subject: text('subject').primaryKey(),
  image: text('image').notNull(),
  /** The manifest that was judged; null when none could be had. */
  artifactDigest: text('artifact_digest'),
  /** The image whose twin was judged; null when the image itself was. */
  baseDigest: text('base_digest'),
  /** Layers 0 … n-1 are served lazily; 0: the image is pulled ordinarily. */
  lazyLayers: integer('lazy_layers').notNull(),
  totalLayers: integer('total_layers').notNull(),
  /** Why the layers from `lazyLayers` up are not lazy; null when all are. */
  reason: text('reason'),
  /** The layers that can be served (JSON, checked by its reader). */
  layers: text('layers').notNull(),
  decidedUs: integer('decided_us').notNull(),
});

/** What happened, for people; bounded by its writer. */
export const events = sqliteTable(
  'events',
  {
    id: integer('id').primaryKey({ autoIncrement: true }),
    atUs: integer('at_us').notNull(),
    /** Stable machine name, `image-resolved`. */
    type: text('type').notNull(),
    /** What it happened to: an image, snapshot key or device. */
    subject: text('subject').notNull(),
    message: text('message').notNull(),
  },
  (table) => [index('events_subject').on(table.subject)],
);

/** Every digest that something here is made of. */
export const neededDigests = sqliteTable('needed_digests', {
  id: integer('id').primaryKey(),
  digest: text('digest').notNull().unique(),
  /** When a resolution last counted on it; a young one stays although no snapshot needs it yet. */
  touchedUs: integer('touched_us').notNull(),
});

/** Manifests and blobs without which a snapshot cannot be read. */
export const snapshotNeeds = sqliteTable(
  'snapshot_needs',
  {
    snapshotId: integer('snapshot_id')
      .notNull()
      .references(() => snapshots.id, { onDelete: 'cascade' }),
    digestId: integer('digest_id')
      .notNull()
      .references(() => neededDigests.id),
  },
  (table) => [primaryKey({ columns: [table.snapshotId, table.digestId] }), index('snapshot_needs_digest').on(table.digestId)],
);

/** Blobs of devices that may be open; a device outlives its snapshots while the kernel holds it. */
export const deviceNeeds = sqliteTable(
  'device_needs',
  {
    deviceId: text('device_id').notNull(),
    digestId: integer('digest_id')
      .notNull()
      .references(() => neededDigests.id),
  },
  (table) => [primaryKey({ columns: [table.deviceId, table.digestId] }), index('device_needs_digest').on(table.digestId)],
);

/** Which connection of blockd each mounted image stands on; a mount on another one is dead. */
export const deviceMounts = sqliteTable('device_mounts', {
  deviceId: text('device_id').primaryKey(),
  connection: text('connection').notNull(),
});
