/**
 * The credentials that outlive a pull: kept in memory, sealed on disk, so that the data plane has them too and they survive restarts. One
 * process writes. Nothing here is logged.
 */
import type { Clock } from '../../base/clock.ts';
import { writeDurably } from '../../base/durable-file.ts';
import { AppError, isAppError } from '../../base/errors.ts';
import { type Credential, type CredentialSource, credentialFingerprint } from '../credentials.ts';
import { ADMIN_ORIGINS, bestEntry, entrySchema, type Origin, type OriginSources, POD_ORIGINS, type VaultEntry } from './entry.ts';
import { Refusals } from './refusals.ts';
import { readVault, type VaultPaths, vaultText } from './sealed-source.ts';
import { readOrMakeKey, seal } from './sealing.ts';

/** Repositories of private images on one node, several times over; a row is half a KiB. */
export const MAX_VAULT_ENTRIES = 4_096;

/** That an entry is in use is written down this often: it only orders what goes first when the vault is full. */
const USED_STEP_MS = 60 * 60_000;

export type NewEntry = Omit<VaultEntry, 'savedMs' | 'usedMs'>;
const newEntrySchema = entrySchema.omit({ savedMs: true, usedMs: true });

/** Who reads the file must understand every entry. Throws InvalidArgument, which names the field and quotes nothing. */
function checkEntry(entry: NewEntry): void {
  const result = newEntrySchema.safeParse(entry);
  if (result.success) return;
  const field = result.error.issues[0]?.path.join('.') ?? '';
  throw new AppError('InvalidArgument', { op: 'store', subject: 'credential', what: `its ${field} is empty, too long or of another kind` });
}

export class CredentialVault {
  private readonly paths: VaultPaths;
  private readonly clock: Clock;
  private readonly key: Uint8Array;
  private readonly entries: Map<string, VaultEntry>;
  private readonly refusals: Refusals;
  private writing: Promise<void> | undefined;
  private isDirty = false;

  private constructor(paths: VaultPaths, clock: Clock, key: Uint8Array, entries: readonly VaultEntry[]) {
    this.paths = paths;
    this.clock = clock;
    this.key = key;
    this.entries = new Map(entries.map((entry) => [entry.id, entry]));
    this.refusals = new Refusals(() => clock.nowMs());
  }

  /**
   * Opens the vault and makes the key if there is none. `onLoss` is told when what was stored cannot be read; the vault is then empty.
   * Errors: FailedPrecondition (the key file is unfit).
   */
  static async open(paths: VaultPaths, clock: Clock, onLoss: (error: AppError) => void): Promise<CredentialVault> {
    const key = await readOrMakeKey(paths.keyFile);
    let entries: VaultEntry[] = [];
    try {
      entries = await readVault(paths);
    } catch (error) {
      if (!isAppError(error, 'DataLoss')) throw error;
      onLoss(error);
    }
    return new CredentialVault(paths, clock, key, entries);
  }

  /**
   * Stores an entry, in the place of one with its id; durable, and seen by the data plane, when it resolves. A renewal is no use: it does
   * not keep the entry from being the first to go. Errors: InvalidArgument (a secret that is too long, an empty token), ResourceExhausted,
   * those of the disk; what could not be written is tried again with the next put.
   */
  async put(entry: NewEntry, { isUse = true }: { isUse?: boolean } = {}): Promise<void> {
    checkEntry(entry);
    const nowMs = this.clock.nowMs();
    const known = this.entries.get(entry.id);
    const isSame =
      known !== undefined &&
      known.expiresMs === entry.expiresMs &&
      known.prefix === entry.prefix &&
      credentialFingerprint(known.credential) === credentialFingerprint(entry.credential) &&
      JSON.stringify(known.renewal) === JSON.stringify(entry.renewal);
    // A change of time alone is worth no flush of the disk.
    if (isSame && (!isUse || nowMs - known.usedMs < USED_STEP_MS)) return this.settled();
    if (known === undefined) this.makeRoom();
    this.entries.delete(entry.id);
    this.entries.set(entry.id, { ...entry, savedMs: isSame ? known.savedMs : nowMs, usedMs: isUse ? nowMs : (known?.usedMs ?? nowMs) });
    await this.write();
  }

  /**
   * Puts back what {@link get} gave before a put of `wrong`, unless another put has replaced that meanwhile; undefined: nothing was there.
   * Durable when it resolves.
   */
  async restore(id: string, entry: VaultEntry | undefined, wrong: Credential): Promise<void> {
    const now = this.entries.get(id);
    if (now === undefined || credentialFingerprint(now.credential) !== credentialFingerprint(wrong)) return;
    if (entry === undefined) this.entries.delete(id);
    else this.entries.set(id, entry);
    await this.write();
  }

  /** False when there is none of that id. */
  async delete(id: string): Promise<boolean> {
    if (!this.entries.delete(id)) return false;
    await this.write();
    return true;
  }

  get(id: string): VaultEntry | undefined {
    return this.entries.get(id);
  }

  list(): readonly VaultEntry[] {
    return [...this.entries.values()];
  }

  /** The best entry of some origins for a repository. */
  find(origins: ReadonlySet<Origin>, host: string, repository: string): VaultEntry | undefined {
    const entries = [...this.entries.values()].filter((entry) => origins.has(entry.origin));
    return bestEntry(entries, host, repository, this.clock.nowMs(), this.refusals);
  }

  /** For registry clients of this process. */
  sources(): OriginSources {
    const of = (origins: ReadonlySet<Origin>): CredentialSource => {
      const source = async (host: string, repository: string): Promise<Credential | undefined> =>
        this.find(origins, host, repository)?.credential;
      return Object.assign(source, { refused: (credential: Credential) => this.refusals.add(credential) });
    };
    return { ofPods: of(POD_ORIGINS), ofAdmin: of(ADMIN_ORIGINS) };
  }

  /** For one more: what was put by hand stays; of the rest, the longest unused goes. */
  private makeRoom(): void {
    while (this.entries.size >= MAX_VAULT_ENTRIES) {
      let oldest: VaultEntry | undefined;
      for (const entry of this.entries.values()) {
        if (entry.origin !== 'admin' && (oldest === undefined || entry.usedMs < oldest.usedMs)) oldest = entry;
      }
      if (oldest === undefined) {
        throw new AppError('ResourceExhausted', { op: 'store', subject: 'credential', what: `there are ${MAX_VAULT_ENTRIES} already` });
      }
      this.entries.delete(oldest.id);
    }
  }

  /** Resolves when all that is in memory is on disk too. */
  private settled(): Promise<void> {
    return this.isDirty ? this.write() : (this.writing ?? Promise.resolve());
  }

  /** One write at a time; changes made during one share the next. */
  private write(): Promise<void> {
    this.isDirty = true;
    this.writing ??= this.writeAll();
    return this.writing;
  }

  private async writeAll(): Promise<void> {
    try {
      while (this.isDirty) {
        this.isDirty = false;
        await writeDurably(this.paths.file, seal(this.key, vaultText([...this.entries.values()])));
      }
    } catch (error) {
      this.isDirty = true;
      throw error;
    } finally {
      // In the same step as the last look, so that no change falls between.
      this.writing = undefined;
    }
  }
}
