/**
 * What each snapshot and each open device is made of, by digest: manifests, layer blobs, original layers, and the metadata files that
 * were taken out of index-only layers. The files live as long as a row here names them. Snapshots of older versions are entered.
 */
export const DEPENDENCIES_0003 = `
ALTER TABLE snapshots ADD COLUMN base_digest TEXT;
ALTER TABLE resolutions ADD COLUMN base_digest TEXT;

CREATE TABLE needed_digests (
  id INTEGER PRIMARY KEY NOT NULL,
  digest TEXT NOT NULL UNIQUE,
  touched_us INTEGER NOT NULL
);

CREATE TABLE snapshot_needs (
  snapshot_id INTEGER NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
  digest_id INTEGER NOT NULL REFERENCES needed_digests (id),
  PRIMARY KEY (snapshot_id, digest_id)
) WITHOUT ROWID;
CREATE INDEX snapshot_needs_digest ON snapshot_needs (digest_id);

CREATE TABLE device_needs (
  device_id TEXT NOT NULL,
  digest_id INTEGER NOT NULL REFERENCES needed_digests (id),
  PRIMARY KEY (device_id, digest_id)
) WITHOUT ROWID;
CREATE INDEX device_needs_digest ON device_needs (digest_id);

CREATE TABLE device_mounts (
  device_id TEXT PRIMARY KEY NOT NULL,
  connection TEXT NOT NULL
);

DELETE FROM resolutions;

INSERT INTO needed_digests (digest, touched_us)
  SELECT DISTINCT digest, 0 FROM (
    SELECT artifact_digest AS digest FROM snapshots WHERE artifact_digest IS NOT NULL
    UNION SELECT json_extract(layer.value, '$.blob.digest') FROM snapshots, json_each(snapshots.accelerated, '$.layers') AS layer
  ) WHERE digest IS NOT NULL;
INSERT INTO snapshot_needs (snapshot_id, digest_id)
  SELECT DISTINCT snapshots.id, needed_digests.id FROM snapshots, json_each(snapshots.accelerated, '$.layers') AS layer
    JOIN needed_digests ON needed_digests.digest = json_extract(layer.value, '$.blob.digest')
  UNION SELECT snapshots.id, needed_digests.id FROM snapshots JOIN needed_digests ON needed_digests.digest = snapshots.artifact_digest;
`;
