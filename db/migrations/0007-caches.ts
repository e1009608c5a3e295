/** Image caches: what they are, their images, their events, client tokens, and the clock by which they age. */
export const CACHES_0007 = `
CREATE TABLE image_caches (
  id TEXT PRIMARY KEY NOT NULL,
  name TEXT NOT NULL,
  owner TEXT NOT NULL CHECK (owner IN ('user', 'system')),
  sandbox_id TEXT,
  status TEXT NOT NULL CHECK (status IN ('Preparing', 'Creating', 'Ready', 'Failed', 'Updating', 'UpdateFailed')),
  is_whole INTEGER NOT NULL,
  size_gib INTEGER NOT NULL,
  pending_size_gib INTEGER,
  retention_days INTEGER,
  is_lru INTEGER NOT NULL,
  settings TEXT NOT NULL,
  credentials BLOB,
  progress INTEGER NOT NULL,
  flash_progress INTEGER,
  version INTEGER NOT NULL,
  failure TEXT,
  attempts INTEGER NOT NULL,
  work_since_us INTEGER NOT NULL,
  match_count INTEGER NOT NULL,
  created_us INTEGER NOT NULL,
  updated_us INTEGER NOT NULL,
  served_us INTEGER,
  matched_us INTEGER,
  failed_us INTEGER,
  deleted_us INTEGER
);
CREATE UNIQUE INDEX image_caches_name ON image_caches (name) WHERE deleted_us IS NULL;
CREATE INDEX image_caches_deleted ON image_caches (deleted_us);

CREATE TABLE image_cache_images (
  cache_id TEXT NOT NULL REFERENCES image_caches (id) ON DELETE CASCADE,
  list TEXT NOT NULL CHECK (list IN ('current', 'pending')),
  position INTEGER NOT NULL,
  reference TEXT NOT NULL,
  resolved TEXT,
  PRIMARY KEY (cache_id, list, position)
);

CREATE TABLE image_cache_events (
  cache_id TEXT NOT NULL REFERENCES image_caches (id) ON DELETE CASCADE,
  number INTEGER NOT NULL,
  type TEXT NOT NULL CHECK (type IN ('Normal', 'Warning')),
  reason TEXT NOT NULL,
  message TEXT NOT NULL,
  count INTEGER NOT NULL,
  first_us INTEGER NOT NULL,
  last_us INTEGER NOT NULL,
  PRIMARY KEY (cache_id, number)
);

CREATE TABLE image_cache_tokens (
  scope TEXT NOT NULL,
  token TEXT NOT NULL,
  request_hash TEXT NOT NULL,
  cache_id TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  PRIMARY KEY (scope, token)
);
CREATE INDEX image_cache_tokens_created ON image_cache_tokens (created_us);

CREATE TABLE image_cache_clock (
  id INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
  seen_us INTEGER NOT NULL,
  offset_us INTEGER NOT NULL,
  steady_since_us INTEGER
);
`;
