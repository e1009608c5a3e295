/** The audit log of the admin API, apart from the events: what happens on a busy node must not wash out who changed what. */
export const AUDIT_0008 = `
CREATE TABLE audit (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
  at_us INTEGER NOT NULL,
  kind TEXT NOT NULL,
  caller TEXT NOT NULL,
  action TEXT NOT NULL,
  path TEXT NOT NULL,
  status INTEGER NOT NULL,
  request_id TEXT NOT NULL,
  left_out INTEGER NOT NULL
);
CREATE INDEX audit_kind ON audit (kind, id);
`;
