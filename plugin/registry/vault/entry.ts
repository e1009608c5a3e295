/** One stored credential: for which repositories, from where, until when. Holds secrets; never logged. */
import { z } from 'zod';
import type { Credential, CredentialSource } from '../credentials.ts';
import type { Refusals } from './refusals.ts';

/** Where a credential came from, in the order in which sources are asked. */
export const ORIGINS = ['pull', 'secret', 'rule', 'admin'] as const;
export type Origin = (typeof ORIGINS)[number];

const MAX_SECRET_CHARS = 64 * 1024;
const text = z.string().max(MAX_SECRET_CHARS);
const secret = text.min(1);

const credentialSchema: z.ZodType<Credential> = z.union([
  // Some registries take a token as the name, with no password.
  z.strictObject({ username: text, password: text }),
  z.strictObject({ identityToken: secret }),
  z.strictObject({ registryToken: secret }),
]);

export const entrySchema = z.object({
  /** Names the entry; a new one of the same name takes its place. No secret. */
  id: z.string().min(1).max(1024),
  origin: z.enum(ORIGINS),
  /** `host`, or `host/path` with all below. */
  prefix: z.string().min(1).max(512),
  /** The prefix is one repository, and what lies below is not meant. */
  isExact: z.boolean(),
  credential: credentialSchema,
  /** Milliseconds since the Unix epoch. */
  savedMs: z.number(),
  usedMs: z.number(),
  /** When it stops working; null: nobody said. */
  expiresMs: z.number().nullable(),
  /** How its maker gets a fresh one (JSON, read by its maker alone); null: not at all. */
  renewal: z.unknown(),
});
export type VaultEntry = z.infer<typeof entrySchema>;

/** Does an entry count for a repository (`host/path`)? */
function covers(entry: VaultEntry, name: string): boolean {
  return name === entry.prefix || (!entry.isExact && name.startsWith(`${entry.prefix}/`));
}

/**
 * The entry with the longest prefix, then one that is kept fresh rather than one that is not, then the newest; one that has expired, or that
 * the registry refused, only when there is no other.
 */
export function bestEntry(
  entries: Iterable<VaultEntry>,
  host: string,
  repository: string,
  nowMs: number,
  refusals?: Refusals,
): VaultEntry | undefined {
  const name = `${host.toLowerCase()}/${repository}`;
  let best: VaultEntry | undefined;
  const rank = (entry: VaultEntry): readonly number[] => [
    refusals?.has(entry.credential) === true ? 0 : 1,
    entry.expiresMs === null || entry.expiresMs > nowMs ? 1 : 0,
    entry.prefix.length,
    entry.renewal === null ? 0 : 1,
    entry.savedMs,
  ];
  for (const entry of entries) {
    if (!covers(entry, name)) continue;
    if (best === undefined || isGreater(rank(entry), rank(best))) best = entry;
  }
  return best;
}

function isGreater(a: readonly number[], b: readonly number[]): boolean {
  for (const [i, value] of a.entries()) if (value !== b[i]) return value > b[i]!;
  return false;
}

/** Something that answers for some origins. */
export interface OriginSources {
  /** What pods brought and what is renewed for them. */
  readonly ofPods: CredentialSource;
  /** What people stored by hand. */
  readonly ofAdmin: CredentialSource;
}

export const POD_ORIGINS: ReadonlySet<Origin> = new Set(['pull', 'secret', 'rule']);
export const ADMIN_ORIGINS: ReadonlySet<Origin> = new Set(['admin']);
