/** Conversion: jobs with their log, converted layers that can be used again, rules per repository, notifications and their history. */
export const CONVERT_0002 = `
CREATE TABLE convert_jobs (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  host TEXT NOT NULL,
  repository TEXT NOT NULL,
  tag TEXT NOT NULL,
  target_tag TEXT NOT NULL,
  source_digest TEXT,
  target_digest TEXT,
  request TEXT NOT NULL,
  trigger_kind TEXT NOT NULL CHECK (trigger_kind IN ('manual', 'webhook', 'poll')),
  state TEXT NOT NULL CHECK (state IN ('PENDING', 'BUILDING', 'SUCCESS', 'FAILED')),
  failure_code TEXT,
  failure TEXT,
  attempts INTEGER NOT NULL DEFAULT 0,
  progress TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  started_us INTEGER,
  ended_us INTEGER
);
CREATE INDEX convert_jobs_state ON convert_jobs (state);
CREATE INDEX convert_jobs_tag ON convert_jobs (host, repository, tag);

CREATE TABLE convert_job_log (
  job_id INTEGER NOT NULL REFERENCES convert_jobs (id) ON DELETE CASCADE,
  line_number INTEGER NOT NULL,
  at_us INTEGER NOT NULL,
  message TEXT NOT NULL,
  PRIMARY KEY (job_id, line_number)
);

CREATE TABLE convert_layers (
  host TEXT NOT NULL,
  repository TEXT NOT NULL,
  chain_id TEXT NOT NULL,
  options TEXT NOT NULL,
  digest TEXT NOT NULL,
  size_bytes INTEGER NOT NULL,
  annotations TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  PRIMARY KEY (host, repository, chain_id, options)
);
CREATE INDEX convert_layers_chain ON convert_layers (host, chain_id, options);
CREATE INDEX convert_layers_created ON convert_layers (created_us);

CREATE TABLE convert_rules (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  host TEXT NOT NULL,
  repository TEXT NOT NULL,
  is_enabled INTEGER NOT NULL,
  request TEXT NOT NULL,
  filter TEXT NOT NULL,
  detection TEXT NOT NULL CHECK (detection IN ('webhook', 'poll')),
  has_baseline INTEGER NOT NULL DEFAULT 0,
  created_us INTEGER NOT NULL,
  enabled_us INTEGER NOT NULL,
  UNIQUE (host, repository)
);

CREATE TABLE convert_seen_tags (
  rule_id INTEGER NOT NULL REFERENCES convert_rules (id) ON DELETE CASCADE,
  tag TEXT NOT NULL,
  digest TEXT NOT NULL,
  PRIMARY KEY (rule_id, tag)
);

CREATE TABLE convert_notifications (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  name TEXT NOT NULL UNIQUE,
  url TEXT NOT NULL,
  filter TEXT NOT NULL,
  repository TEXT,
  secret_file TEXT,
  created_us INTEGER NOT NULL
);

CREATE TABLE convert_deliveries (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  notification_id INTEGER NOT NULL REFERENCES convert_notifications (id) ON DELETE CASCADE,
  event TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('WAITING', 'DELIVERED', 'FAILED')),
  attempts INTEGER NOT NULL DEFAULT 0,
  next_us INTEGER NOT NULL,
  last_result TEXT,
  created_us INTEGER NOT NULL,
  ended_us INTEGER
);
CREATE INDEX convert_deliveries_state ON convert_deliveries (state, next_us);
`;
