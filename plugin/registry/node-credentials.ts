/**
 * The credentials with which this node reads from registries, in order: what pods brought and is kept for them, docker's configuration, what
 * people stored. A vault that cannot be read costs no more than its content: public images go on. Docker's configuration keeps what it
 * last said; without that, its failure is told: going on without it would turn "away" into "refused".
 */
import path from 'node:path';
import type { Config } from '../base/config/config.ts';
import { describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { type Credential, type CredentialSource, firstCredential } from './credentials.ts';
import { dockerConfigSource } from './docker-config.ts';
import type { OriginSources } from './vault/entry.ts';
import type { VaultPaths } from './vault/sealed-source.ts';

/** A vault that cannot be read is told of this often. */
const COMPLAIN_MS = 60_000;

/** Where the vault of a node lies. */
export function vaultPathsOf(config: Pick<Config, 'paths' | 'credentials'>): VaultPaths {
  const { root } = config.paths;
  return { file: path.join(root, 'credentials.sealed'), keyFile: config.credentials.keyFile ?? path.join(root, 'credentials.key') };
}

/** All of them as one source. */
export function nodeCredentials(config: Pick<Config, 'registry'>, vault: OriginSources, logger: Logger): CredentialSource {
  let complainedMs = Number.NEGATIVE_INFINITY;
  const tolerant = (source: CredentialSource): CredentialSource => {
    const asked = async (host: string, repository: string): Promise<Credential | undefined> => {
      try {
        return await source(host, repository);
      } catch (error) {
        if (!isAppError(error, 'DataLoss', 'FailedPrecondition')) throw error;
        if (performance.now() - complainedMs >= COMPLAIN_MS) {
          complainedMs = performance.now();
          logger.error({ reason: describeError(error) }, 'stored credentials cannot be read');
        }
        return undefined;
      }
    };
    return Object.assign(asked, { refused: (credential: Credential) => source.refused?.(credential) });
  };
  const { dockerConfig } = config.registry;
  return firstCredential(
    tolerant(vault.ofPods),
    ...(dockerConfig === undefined ? [] : [dockerConfigSource(dockerConfig, { logger })]),
    tolerant(vault.ofAdmin),
  );
}
