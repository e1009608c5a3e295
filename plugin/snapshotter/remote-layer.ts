/**
 * Finds out whether the layer of a pull can be served without a download, and from which device.
 *
 * A remote snapshot is stored under a chain id that every image on the node trusts. containerd checks that id by unpacking; here nothing
 * is unpacked, so it is computed again from what is known of the layers: for accelerated images from the digests of their blobs, for
 * twins from the configuration of the image that was pulled. Otherwise an image could claim the chain id of another one and be served
 * in its place.
 */
import type { Digest } from '../base/digest.ts';
import { describeError, isAppError } from '../base/errors.ts';
import type { LayerSpec } from '../file/device-spec.ts';
import type { Accelerated } from './accelerated.ts';
import { chainIdOf } from './chain-id.ts';
import type { ImageDecider, ImageDecision } from './image-decider.ts';
import type { LayerMarks, PullRequest } from './labels.ts';
import type { ImageResolver } from './ports.ts';
import { blobOf, type ServedLayer } from './served-layers.ts';

export type RemoteLayer =
  | { accelerated: Accelerated }
  /** An accelerated layer that has to be downloaded. */
  | { refusedReason: string }
  /** An ordinary layer; `reason` is worth telling. */
  | { ordinary: true; reason?: string };

interface Below {
  /** How many layers lie below. */
  depth: number;
  /** What the parent snapshot is served from. */
  parent: Accelerated | undefined;
}

interface Parts {
  decider: ImageDecider;
  resolver: ImageResolver;
  deadlineMs: number;
  /** Ordinary images are served from their twins. */
  usesTwins: boolean;
}

function isLocal(layer: LayerSpec): boolean {
  return layer.kind === 'full' && layer.blob.localPath !== undefined;
}

/** True when these are exactly the layers that the chain id names and the last is the one that is pulled. */
function isChain(layers: readonly Pick<ServedLayer, 'diffId' | 'layerDigest'>[], pull: PullRequest): boolean {
  if (layers.at(-1)?.layerDigest !== pull.layerDigest) return false;
  return chainIdOf(layers.map((layer) => layer.diffId)) === pull.chainRef;
}

/** A layer that is only known by its labels: its device is the parent's and this blob on top. */
async function fromLabels(pull: PullRequest, layer: LayerMarks, parent: Accelerated | undefined, parts: Parts): Promise<RemoteLayer> {
  if (layer.target !== undefined)
    return { refusedReason: 'its manifest could not be had, and labels do not tell enough of an index-only layer' };
  if (parent?.layers.some(isLocal)) return { refusedReason: 'the layer below it was downloaded' };
  const source = parts.resolver.parseReference(pull.image ?? '');
  const layers: LayerSpec[] = [...(parent?.layers ?? []), { kind: 'full', blob: blobOf(layer, source) }];
  const digests = layers.flatMap((below) => (below.kind === 'full' ? [below.blob.digest as Digest] : []));
  if (
    digests.length < layers.length ||
    !isChain(
      digests.map((digest) => ({ diffId: digest, layerDigest: digest })),
      pull,
    )
  ) {
    return { refusedReason: 'its labels alone do not give the device of its chain id' };
  }
  const { count, reason } = await parts.decider.openable(pull.image ?? '', layers, AbortSignal.timeout(parts.deadlineMs));
  if (count < layers.length) return { refusedReason: reason ?? 'it cannot be opened' };
  return { accelerated: { image: pull.image ?? '', artifact: null, base: null, layers } };
}

/** The device of a decision up to the layer that is pulled; a text when that is not the chain that was asked for. */
function deviceOf(decision: ImageDecision, pull: PullRequest, depth: number): Accelerated | string {
  const layers = decision.lazyLayers.slice(0, depth + 1);
  if (!isChain(layers, pull))
    return `layers 0 to ${depth} of manifest ${decision.base ?? decision.artifact} are not the chain ${pull.chainRef}`;
  return { image: pull.image ?? '', artifact: decision.artifact, base: decision.base, layers: layers.map((layer) => layer.spec) };
}

/** An ordinary layer, which a twin may serve. */
async function fromTwin(pull: PullRequest, depth: number, parts: Parts): Promise<RemoteLayer> {
  const { image, manifestDigest, layerDigest } = pull;
  if (!parts.usesTwins || image === undefined || manifestDigest === undefined || layerDigest === undefined) return { ordinary: true };
  try {
    const decision = await parts.decider.decideTwin(image, manifestDigest, depth);
    // An image of which only some layers are accelerated is what it is; it is not a base with a twin.
    if (decision.base === null || decision.lazyLayers.length <= depth) return { ordinary: true };
    const device = deviceOf(decision, pull, depth);
    return typeof device === 'string' ? { ordinary: true, reason: device } : { accelerated: device };
  } catch (error) {
    if (!isAppError(error)) throw error;
    return { ordinary: true, reason: describeError(error) };
  }
}

/** Never fails because of the registry or the image. Errors: ResourceExhausted. */
export async function resolveRemoteLayer(pull: PullRequest, below: Below, parts: Parts): Promise<RemoteLayer> {
  const { layer } = pull;
  if (layer === undefined) return fromTwin(pull, below.depth, parts);
  if (layer.wantsDownload) return { refusedReason: 'its label asks for a download' };
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
  if (decision.lazyLayers.length <= below.depth) {
    return { refusedReason: decision.reason ?? `the manifest has ${decision.totalLayers} layers` };
  }
  const device = deviceOf(decision, pull, below.depth);
  return typeof device === 'string' ? { refusedReason: device } : { accelerated: device };
}
