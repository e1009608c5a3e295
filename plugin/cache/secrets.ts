/** Credentials of caches: sealed before they reach the database, opened for the registry alone. Ours. */
import { createHmac } from 'node:crypto';
import { z } from 'zod';
import { isAppError } from '../base/errors.ts';
import { seal, unseal } from '../registry/vault/sealing.ts';
import { ownArchitecture } from '../snapshotter/manifest.ts';
import type { CacheRecord } from './cache-record.ts';
import type { ImageAccess } from './image-store.ts';
import { type ImageRegistryCredential, registryCredentialSchema } from './requests.ts';

const listSchema = z.array(registryCredentialSchema);

export class Secrets {
  private readonly key: Uint8Array;

  /** `key`: 32 bytes that only root reads. */
  constructor(key: Uint8Array) {
    this.key = key;
  }

  /** Null for none. */
  seal(credentials: readonly ImageRegistryCredential[]): Buffer | null {
    return credentials.length === 0 ? null : seal(this.key, Buffer.from(JSON.stringify(credentials)));
  }

  /** Throws DataLoss when they were sealed with another key. */
  open({ id, credentials }: Pick<CacheRecord, 'id' | 'credentials'>): ImageRegistryCredential[] {
    if (credentials === null) return [];
    return listSchema.parse(JSON.parse(unseal(this.key, credentials, `credentials of ${id}`).toString()));
  }

  /** As {@link open}; none when the key that sealed them is lost. */
  known(record: Pick<CacheRecord, 'id' | 'credentials'>): ImageRegistryCredential[] {
    try {
      return this.open(record);
    } catch (error) {
      if (!isAppError(error, 'DataLoss')) throw error;
      return [];
    }
  }

  /** Equal for equal requests; says nothing of what is in them. */
  hash(request: unknown): string {
    return createHmac('sha256', this.key).update(JSON.stringify(request)).digest('base64url');
  }

  /** How the images of a cache are reached. */
  accessOf(record: CacheRecord): ImageAccess {
    const { plainHttpRegistry, insecureRegistry, cpuArch, osType } = record.settings;
    return {
      credentials: this.open(record),
      plainHttp: plainHttpRegistry,
      insecure: insecureRegistry,
      ...(cpuArch === null && osType === null ? {} : { platform: { os: osType ?? 'linux', architecture: cpuArch ?? ownArchitecture() } }),
    };
  }

  /** The text without any password of the cache: what a registry answers may repeat what it was sent. */
  scrub(record: CacheRecord, text: string): string {
    let clean = text;
    for (const { userName, password } of this.known(record)) {
      for (const secret of [password, Buffer.from(`${userName}:${password}`).toString('base64')])
        clean = clean.replaceAll(secret, '[removed]');
    }
    return clean;
  }
}
