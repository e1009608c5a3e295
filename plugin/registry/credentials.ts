/** Credentials and where they come from. Never logged, never in an error. */
import { createHmac, randomBytes } from 'node:crypto';

export type Credential =
  | { readonly username: string; readonly password: string }
  /** A refresh token that the registry's token service takes (OAuth 2). */
  | { readonly identityToken: string }
  /** A bearer token that is sent as it is. */
  | { readonly registryToken: string };

/**
 * Asked at most once a second for a repository in use; must have its own deadline. Undefined means anonymous. `host` is the registry's
 * name in references (`docker.io`); for a mirror of it, the mirror's own, as in containerd.
 */
export interface CredentialSource {
  (host: string, repository: string): Promise<Credential | undefined>;
  /** Told that a registry refused what the source gave; it may have another. */
  readonly refused?: (credential: Credential) => void;
}

/** The first source that has something. */
export function firstCredential(...sources: readonly CredentialSource[]): CredentialSource {
  const first = async (host: string, repository: string): Promise<Credential | undefined> => {
    for (const source of sources) {
      const found = await source(host, repository);
      if (found !== undefined) return found;
    }
    return undefined;
  };
  const refused = (credential: Credential): void => {
    for (const source of sources) source.refused?.(credential);
  };
  return Object.assign(first, { refused });
}

export const anonymous: CredentialSource = async () => undefined;

/** Keys of this process alone, so that a fingerprint says nothing outside it. */
const FINGERPRINT_KEY = randomBytes(32);

/** Equal for equal credentials; cannot be turned back. */
export function credentialFingerprint(credential: Credential | undefined): string {
  if (credential === undefined) return 'anonymous';
  return createHmac('sha256', FINGERPRINT_KEY).update(JSON.stringify(credential)).digest('base64url');
}

export function basicHeader(username: string, password: string): string {
  return `Basic ${Buffer.from(`${username}:${password}`, 'utf8').toString('base64')}`;
}
