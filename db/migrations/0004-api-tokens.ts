/** Bearer tokens of the admin API: only their hashes. */
export const API_TOKENS_0004 = `
CREATE TABLE api_tokens (
  id TEXT PRIMARY KEY NOT NULL,
  name TEXT NOT NULL,
  scopes TEXT NOT NULL,
  hash TEXT NOT NULL,
  created_us INTEGER NOT NULL,
  expires_us INTEGER
);
`;
