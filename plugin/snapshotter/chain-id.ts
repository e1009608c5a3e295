/** Chain ids of layer stacks. Source: OCI image-spec, config.md, "Layer ChainID". */
import { type Digest, sha256 } from '../base/digest.ts';

/** The chain id of layers, bottom to top. At least one. */
export function chainIdOf(diffIds: readonly Digest[]): Digest {
  const [first, ...rest] = diffIds;
  if (first === undefined) throw new RangeError('a chain has at least one layer');
  return rest.reduce((chain, diffId) => sha256(`${chain} ${diffId}`), first);
}
