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
import { MAX_VAULT_BYTES, readVault, type VaultPaths, vaultText } from './sealed-source.ts';
import { readOrMakeKey, seal } from './sealing.ts';

/** Repositories of private images on one node, several times over; a row is half a KiB. */
export const MAX_VAULT_ENTRIES = 4_096;

/** What the file has beside its entries: the seal and the frame of the document. */
const FRAME_BYTES = 1024;

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

/** In the file. */
function bytesOf(entry: VaultEntry): number {
  return Buffer.byteLength(JSON.stringify(entry)) + 1;
}

export class CredentialVault {
  private readonly paths: VaultPaths;
  private readonly clock: Clock;
  private readonly key: Uint8Array;
  private readonly maxBytes: number;
  private readonly entries = new Map<string, VaultEntry>();
  private entryBytes = 0;
  private readonly refusals: Refusals;
  private writing: Promise<void> | undefined;
  private isDirty = false;

  private constructor(paths: VaultPaths, clock: Clock, key: Uint8Array, maxBytes: number) {
    this.paths = paths;
    this.clock = clock;
    this.key = key;
    this.maxBytes = maxBytes;
    this.refusals = new Refusals(() => clock.nowMs());
  }

  /**
   * Opens the vault and makes the key if there is none. `onLoss` is told when what was stored cannot be read; the vault is then empty.
   * Errors: FailedPrecondition (the key file is unfit).
   */
  static async open(
    paths: VaultPaths,
    clock: Clock,
    onLoss: (error: AppError) => void,
    maxBytes = MAX_VAULT_BYTES,
  ): Promise<CredentialVault> {
    const vault = new CredentialVault(paths, clock, await readOrMakeKey(paths.keyFile), maxBytes);
    try {
      for (const entry of await readVault(paths)) vault.place(entry);
    } catch (error) {
      if (!isAppError(error, 'DataLoss')) throw error;
      onLoss(error);
    }
    return vault;
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
    const next = { ...entry, savedMs: isSame ? known.savedMs : nowMs, usedMs: isUse ? nowMs : (known?.usedMs ?? nowMs) };
    this.makeRoom(next, known);
    this.place(next);
    await this.write();
  }

  /**
   * Puts back what {@link get} gave before a put of `wrong`, unless another put has replaced that meanwhile; undefined: nothing was there.
   * Durable when it resolves.
   */
  async restore(id: string, entry: VaultEntry | undefined, wrong: Credential): Promise<void> {
    const now = this.entries.get(id);
    if (now === undefined || credentialFingerprint(now.credential) !== credentialFingerprint(wrong)) return;
    if (entry === undefined) this.drop(id);
    else this.place(entry);
    await this.write();
  }

  /** False when there is none of that id. */
  async delete(id: string): Promise<boolean> {
    if (!this.drop(id)) return false;
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

  private place(entry: VaultEntry): void {
    this.drop(entry.id);
    this.entries.set(entry.id, entry);
    this.entryBytes += bytesOf(entry);
  }

  private drop(id: string): boolean {
    const entry = this.entries.get(id);
    if (entry === undefined) return false;
    this.entryBytes -= bytesOf(entry);
    return this.entries.delete(id);
  }

  /**
   * For `next` in the place of `known`: what was put by hand stays; of the rest, the longest unused goes. In bytes too: a file that is larger
   * than readers take would cost every entry its place.
   */
  private makeRoom(next: VaultEntry, known: VaultEntry | undefined): void {
    let count = this.entries.size + (known === undefined ? 1 : 0);
    let bytes = FRAME_BYTES + this.entryBytes + bytesOf(next) - (known === undefined ? 0 : bytesOf(known));
    const fits = (): boolean => count <= MAX_VAULT_ENTRIES && bytes <= this.maxBytes;
    if (fits()) return;
    const victims: VaultEntry[] = [];
    const mayGo = [...this.entries.values()].filter((entry) => entry.origin !== 'admin' && entry !== known);
    for (const entry of mayGo.sort((a, b) => a.usedMs - b.usedMs)) {
      if (fits()) break;
      victims.push(entry);
      count -= 1;
      bytes -= bytesOf(entry);
    }
    if (!fits()) {
      const what = `there would be ${count} with ${bytes} bytes; at most ${MAX_VAULT_ENTRIES} and ${this.maxBytes}`;
      throw new AppError('ResourceExhausted', { op: 'store', subject: 'credential', what });
    }
    for (const { id } of victims) this.drop(id);
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
