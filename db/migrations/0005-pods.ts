/** Pods whose images were pulled through the CRI proxy: the rules they began with, and what was decided for each image. */
export const PODS_0005 = `
CREATE TABLE pods (
  uid TEXT PRIMARY KEY NOT NULL,
  namespace TEXT NOT NULL,
  name TEXT NOT NULL,
  rules TEXT NOT NULL,
  images TEXT NOT NULL,
  images_from TEXT NOT NULL,
  first_seen_us INTEGER NOT NULL,
  last_seen_us INTEGER NOT NULL
);
CREATE INDEX pods_last_seen ON pods (last_seen_us);
CREATE INDEX pods_name ON pods (namespace, name);

CREATE TABLE pod_images (
  uid TEXT NOT NULL REFERENCES pods (uid) ON DELETE CASCADE,
  image TEXT NOT NULL,
  decision TEXT NOT NULL,
  cache_id TEXT,
  digest TEXT,
  outcome TEXT,
  reasons TEXT NOT NULL,
  decided_us INTEGER NOT NULL,
  updated_us INTEGER NOT NULL,
  PRIMARY KEY (uid, image)
) WITHOUT ROWID;
CREATE INDEX pod_images_cache ON pod_images (cache_id, image);
`;
