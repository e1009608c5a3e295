/**
 * Credentials that pulls put into the vault before anybody knows whether they are right: layers are resolved while containerd pulls. What
 * proves wrong is taken back, and what was right before comes back; but never what another pull of the same entry goes well with, or still
 * tries. Ours.
 */
import type { Credential } from '../../registry/credentials.ts';
import { credentialFingerprint } from '../../registry/credentials.ts';
import type { VaultEntry } from '../../registry/vault/entry.ts';
import type { CredentialVault, NewEntry } from '../../registry/vault/vault.ts';

/** One entry of the vault, as long as pulls with it are under way. */
interface Tried {
  /** What proved right last, or was there before the first of these pulls. */
  right: VaultEntry | undefined;
  /** How many pulls under way try which credentials, by fingerprint. */
  readonly pulls: Map<string, number>;
}

export class CredentialTrials {
  private readonly vault: CredentialVault;
  /** By the id of the entry. */
  private readonly tried = new Map<string, Tried>();

  constructor(vault: CredentialVault) {
    this.vault = vault;
  }

  /**
   * A pull tries an entry, which is put after this. What it answers is to be called when the pull is over, and takes the credentials back
   * unless they have proved right; errors: those of the disk.
   */
  begin({ id, credential }: Pick<NewEntry, 'id' | 'credential'>): () => Promise<void> {
    const tried = this.tried.get(id) ?? { right: this.vault.get(id), pulls: new Map<string, number>() };
    this.tried.set(id, tried);
    const fingerprint = credentialFingerprint(credential);
    tried.pulls.set(fingerprint, (tried.pulls.get(fingerprint) ?? 0) + 1);
    return async () => {
      const others = tried.pulls.get(fingerprint)! - 1;
      if (others > 0) tried.pulls.set(fingerprint, others);
      else tried.pulls.delete(fingerprint);
      if (tried.pulls.size === 0) this.tried.delete(id);
      if (others === 0 && !isOf(tried.right, credential)) await this.vault.restore(id, tried.right, credential);
    };
  }

  /** The registry takes an entry that has just been put, or a pull went well with it. */
  confirm({ id, credential }: Pick<NewEntry, 'id' | 'credential'>): void {
    const tried = this.tried.get(id);
    const entry = this.vault.get(id);
    if (tried !== undefined && isOf(entry, credential)) tried.right = entry;
  }
}

function isOf(entry: VaultEntry | undefined, credential: Credential): boolean {
  return entry !== undefined && credentialFingerprint(entry.credential) === credentialFingerprint(credential);
}
