/**
 * The vault as the data plane reads it: a file that another process replaces, looked at whenever credentials are asked for, which the
 * registry client does at most once a second. Works without that other process.
 */
import { readFile, stat } from 'node:fs/promises';
import { z } from 'zod';
import { AppError, errnoOf } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';
import type { Credential, CredentialSource } from '../credentials.ts';
import { ADMIN_ORIGINS, bestEntry, entrySchema, type Origin, type OriginSources, POD_ORIGINS, type VaultEntry } from './entry.ts';
import { Refusals } from './refusals.ts';
import { readKey, unseal } from './sealing.ts';

/** Entries of one node; see vault.ts. */
export const MAX_VAULT_BYTES = 64 * MIB;

const fileSchema = z.object({ version: z.literal(1), entries: z.array(z.unknown()) });

export interface VaultPaths {
  /** The sealed file. */
  readonly file: string;
  readonly keyFile: string;
}

/**
 * Reads and unseals; an absent file is an empty vault. An entry that is not understood (of another version) costs no other its place.
 * Throws DataLoss, FailedPrecondition.
 */
export async function readVault({ file, keyFile }: VaultPaths): Promise<VaultEntry[]> {
  let bytes: Uint8Array;
  try {
    const { size } = await stat(file);
    if (size > MAX_VAULT_BYTES) {
      throw new AppError('DataLoss', { op: 'read', subject: file, what: `${size} bytes, more than ${MAX_VAULT_BYTES}` });
    }
    bytes = await readFile(file);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
  const key = await readKey(keyFile);
  if (key === undefined) throw new AppError('DataLoss', { op: 'unseal', subject: file, what: `its key ${keyFile} is missing` });
  const plain = unseal(key, bytes, file);
  try {
    return fileSchema.parse(JSON.parse(plain.toString('utf8'))).entries.flatMap((entry) => {
      const parsed = entrySchema.safeParse(entry);
      return parsed.success ? parsed.data : [];
    });
  } catch {
    // Messages of parsers quote what they read.
    throw new AppError('DataLoss', { op: 'unseal', subject: file, what: 'holds something else than a list of credentials' });
  }
}

/** The sealed text of a vault. */
export function vaultText(entries: readonly VaultEntry[]): Buffer {
  return Buffer.from(JSON.stringify({ version: 1, entries }), 'utf8');
}

/** Sources over the file as it is now. A vault that cannot be read fails the request that asked, with the reason. */
export function sealedSources(paths: VaultPaths, nowMs: () => number = Date.now): OriginSources {
  let stamp = '';
  let loading: Promise<VaultEntry[]> = Promise.resolve([]);
  const current = async (): Promise<VaultEntry[]> => {
    let found = '';
    try {
      const info = await stat(paths.file, { bigint: true });
      found = `${info.ino} ${info.size} ${info.mtimeNs}`;
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
    }
    if (found !== stamp) {
      stamp = found;
      loading = readVault(paths);
      loading.catch(() => {
        // Told to everybody who waits for it; the next one tries again.
        stamp = '';
      });
    }
    return loading;
  };
  const refusals = new Refusals(nowMs);
  const of = (origins: ReadonlySet<Origin>): CredentialSource => {
    const source = async (host: string, repository: string): Promise<Credential | undefined> => {
      const entries = (await current()).filter((entry) => origins.has(entry.origin));
      return bestEntry(entries, host, repository, nowMs(), refusals)?.credential;
    };
    return Object.assign(source, { refused: (credential: Credential) => refusals.add(credential) });
  };
  return { ofPods: of(POD_ORIGINS), ofAdmin: of(ADMIN_ORIGINS) };
}
