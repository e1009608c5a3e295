/**
 * Finds out whether the layer of a pull can be served without a download, and from which device.
 *
 * A remote snapshot is stored under a chain id that every image on the node trusts. containerd checks that id by unpacking; here nothing
 * is unpacked, so it is computed again from the layers' digests (for these layers the diff id is the blob's digest). Otherwise an image
 * could claim the chain id of another one and be served in its place.
 */
import type { Digest } from '../base/digest.ts';
import { describeError, isAppError } from '../base/errors.ts';
import type { LayerSpec } from '../file/device-spec.ts';
import type { Accelerated } from './accelerated.ts';
import { chainIdOf } from './chain-id.ts';
import { blobOf, type ImageDecider } from './image-decider.ts';
import type { LayerMarks, PullRequest } from './labels.ts';
import type { ImageResolver } from './ports.ts';

export type RemoteLayer = { accelerated: Accelerated } | { refusedReason: string };

function blobDigests(layers: readonly LayerSpec[]): Digest[] | undefined {
  const digests = layers.flatMap((layer) => (layer.kind === 'full' ? [layer.blob.digest as Digest] : []));
  return digests.length === layers.length ? digests : undefined;
}

/** True when `layers` is exactly the device that the chain id names and `blob` is its top. */
function isChain(layers: readonly LayerSpec[], pull: PullRequest, blob: Digest): boolean {
  const digests = blobDigests(layers);
  return digests !== undefined && digests.at(-1) === blob && chainIdOf(digests) === pull.chainRef;
}

/** A layer that is only known by its labels: its device is the parent's and this blob on top. */
async function fromLabels(
  pull: PullRequest,
  layer: LayerMarks,
  parent: Accelerated | undefined,
  parts: { decider: ImageDecider; resolver: ImageResolver; deadlineMs: number },
): Promise<RemoteLayer> {
  if (parent?.layers.some((below) => below.kind === 'full' && below.blob.localPath !== undefined)) {
    return { refusedReason: 'the layer below it was downloaded' };
  }
  const source = parts.resolver.parseReference(pull.image ?? '');
  const layers: LayerSpec[] = [...(parent?.layers ?? []), { kind: 'full', blob: blobOf(layer, source) }];
  if (!isChain(layers, pull, layer.blobDigest)) return { refusedReason: 'its labels alone do not give the device of its chain id' };
  const { count, reason } = await parts.decider.openable(pull.image ?? '', layers, AbortSignal.timeout(parts.deadlineMs));
  if (count < layers.length) return { refusedReason: reason ?? 'it cannot be opened' };
  return { accelerated: { image: pull.image ?? '', artifact: null, layers } };
}

/**
 * `depth` is how many layers lie below; `parent` what the parent snapshot is served from. Never fails because of the registry or the
 * image. Errors: ResourceExhausted.
 */
export async function resolveRemoteLayer(
  pull: PullRequest,
  layer: LayerMarks,
  below: { depth: number; parent: Accelerated | undefined },
  parts: { decider: ImageDecider; resolver: ImageResolver; deadlineMs: number },
): Promise<RemoteLayer> {
  if (layer.wantsDownload) return { refusedReason: 'its label asks for a download' };
  if (layer.isIndexOnly) return { refusedReason: 'index-only (TurboOCI) layers are not served lazily by this version' };
  if (layer.isAccelerationLayer) return { refusedReason: 'an acceleration layer holds no file system' };
  if (pull.image === undefined) return { refusedReason: 'no label names the image, so its registry is unknown' };
  const decision = await parts.decider.decide(pull.image, pull.manifestDigest, { index: below.depth, digest: layer.blobDigest });
  if (decision.artifact === null) {
    try {
      return await fromLabels(pull, layer, below.parent, parts);
    } catch (error) {
      if (!isAppError(error)) throw error;
      return { refusedReason: `${decision.reason}; ${describeError(error)}` };
    }
  }
  const layers = decision.lazyLayers.slice(0, below.depth + 1);
  if (layers.length <= below.depth) return { refusedReason: decision.reason ?? `the manifest has ${decision.totalLayers} layers` };
  if (!isChain(layers, pull, layer.blobDigest)) {
    return { refusedReason: `layers 0 to ${below.depth} of manifest ${decision.artifact} are not the chain ${pull.chainRef}` };
  }
  return { accelerated: { image: pull.image, artifact: decision.artifact, layers } };
}
