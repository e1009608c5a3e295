/** Caches for tests of the matcher, written briefly. */
import { type Digest, sha256 } from '../../../../plugin/base/digest.ts';
import { isServing } from '../../../../plugin/cache/cache-states.ts';
import type { Candidate } from '../../../../plugin/cache/match-query.ts';
import type { CacheState } from '../../../../plugin/cache/service.ts';
import { parseReference } from '../../../../plugin/registry/reference.ts';

export function digestOf(name: string): Digest {
  return sha256(name);
}

export function layer(name: string, sizeBytes: number): { digest: Digest; sizeBytes: number } {
  return { digest: sha256(`layer ${name}`), sizeBytes };
}

interface Brief {
  /** Canonical reference with a tag, name of its digest, names of its layers. */
  images: readonly (readonly [string, string, (readonly string[])?])[];
  status?: CacheState;
  sizeGib?: number;
  createdUs?: number;
}

export function candidate(id: string, { images, status = 'Ready', sizeGib = 20, createdUs = 0 }: Brief): Candidate {
  return {
    ...{ id, name: `name-of-${id}`, status, serves: isServing(status), sizeGib, createdUs },
    images: images.map(([reference, name]) => {
      const { host, repository } = parseReference(reference);
      return {
        ...{ reference, tagReference: reference, repository: `${host}/${repository}` },
        ...{ digest: digestOf(name), platformDigest: digestOf(`${name} platform`) },
      };
    }),
    layers: new Set(images.flatMap(([, , layers = []]) => layers.map((name) => layer(name, 0).digest))),
  };
}
