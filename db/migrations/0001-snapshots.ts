/** First schema. A migration is never edited after its release; a change is a new file. */
export const SNAPSHOTS_0001 = `
CREATE TABLE snapshots (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  key TEXT NOT NULL UNIQUE,
  parent_id INTEGER REFERENCES snapshots (id),
  kind TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
  labels TEXT NOT NULL,
  chain_ref TEXT,
  created_us INTEGER NOT NULL,
  updated_us INTEGER NOT NULL,
  usage_inodes INTEGER NOT NULL DEFAULT 0,
  usage_bytes INTEGER NOT NULL DEFAULT 0,
  device_id TEXT,
  accelerated TEXT,
  artifact_digest TEXT,
  isolated INTEGER NOT NULL DEFAULT 0,
  broken_reason TEXT,
  CHECK (kind <> 'committed' OR device_id IS NULL)
);
CREATE INDEX snapshots_parent ON snapshots (parent_id);
CREATE INDEX snapshots_chain_ref ON snapshots (chain_ref);
CREATE INDEX snapshots_device ON snapshots (device_id);
CREATE INDEX snapshots_artifact ON snapshots (artifact_digest);

CREATE TABLE resolutions (
  subject TEXT PRIMARY KEY NOT NULL,
  image TEXT NOT NULL,
  artifact_digest TEXT,
  lazy_layers INTEGER NOT NULL,
  total_layers INTEGER NOT NULL,
  reason TEXT,
  layers TEXT NOT NULL,
  decided_us INTEGER NOT NULL
);

CREATE TABLE events (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  at_us INTEGER NOT NULL,
  type TEXT NOT NULL,
  subject TEXT NOT NULL,
  message TEXT NOT NULL
);
CREATE INDEX events_subject ON events (subject);
`;
