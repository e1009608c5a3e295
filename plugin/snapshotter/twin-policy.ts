/** Which twins are looked for, where, and for how long. The rules of people, from the configuration. */
import { ARTIFACT_TYPE, type ArtifactType } from '../image/oci/media-types.ts';
import type { RepositoryName } from './ports.ts';

export interface TwinPolicy {
  isEnabled: boolean;
  /** Which kind of twin is taken when there are both; `index-only`: full ones must be named by their own tag. */
  prefer: 'full' | 'index' | 'index-only';
  /** How long a Prepare may wait for an answer, in milliseconds; then the pull goes on as an ordinary one. */
  lookupBudgetMs: number;
  /** How long "there is none" is believed, in milliseconds. */
  negativeTtlMs: number;
  /** Repositories that may supply twins: `host`, or `host/path` with all below. Empty: all, each for its own images. */
  trusted: readonly string[];
  /** Other places, each `host` or `host/path`: the twin of `any/team/app` may be in `host/path/team/app`. */
  elsewhere: readonly string[];
}

/** Kinds in the order in which they are taken; what is not in it is not used. */
export function kindsOf(policy: TwinPolicy): readonly ArtifactType[] {
  if (policy.prefer === 'full') return [ARTIFACT_TYPE.native, ARTIFACT_TYPE.turbo];
  if (policy.prefer === 'index') return [ARTIFACT_TYPE.turbo, ARTIFACT_TYPE.native];
  return [ARTIFACT_TYPE.turbo];
}

/** True when `prefix` is the repository or stands above it. */
function covers(prefix: string, { host, repository }: RepositoryName): boolean {
  return `${host}/${repository}/`.startsWith(`${prefix}/`);
}

/** Where the twin of an image of `repository` may be, in order; empty: nowhere, its own repository is not trusted. */
export function placesOf(policy: TwinPolicy, repository: RepositoryName): RepositoryName[] {
  const places: RepositoryName[] = [];
  const own = { host: repository.host, repository: repository.repository };
  if (policy.trusted.length === 0 || policy.trusted.some((prefix) => covers(prefix, own))) places.push(own);
  for (const place of policy.elsewhere) {
    const [host = '', ...path] = place.split('/');
    places.push({ host, repository: [...path, own.repository].join('/') });
  }
  return places;
}
