/**
 * Decides, once for a whole image, how many of its layers are served lazily; the rest are pulled ordinarily. The manifest is fetched by
 * digest, every layer is opened by blockd, and the answer is stored with its reason.
 *
 *   layers   0 1 2 3 4 5
 *            └lazy┘ └──── first refused layer and all above: ordinary
 */
import { z } from 'zod';
import type { ResolutionRow, ResolutionStore } from '../../db/resolution-store.ts';
import type { SnapshotStore } from '../../db/snapshot-store.ts';
import { type Digest, isDigest } from '../base/digest.ts';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { type BlobSource, deviceIdOf, type LayerSpec, layerSpecSchema } from '../file/device-spec.ts';
import { type LayerMarks, readLayerMarks } from './labels.ts';
import { fetchImageManifest, type ImageManifest } from './manifest.ts';
import type { BlockDevices, ImageResolver } from './ports.ts';
import { wallTimeUs } from './wall-time.ts';

/** A decision holds for one pull even when nothing refers to the artifact yet; later a registry that was away gets another chance. */
const DECISION_TTL_US = 10 * 60 * 1_000_000;

/** Images that a node sees in months; a row is a few KiB. */
const MAX_DECISIONS = 2_000;

/** Pulls that are resolved at once; containerd itself runs fewer. */
const MAX_IN_FLIGHT = 256;

export interface ImageDecision {
  image: string;
  /** The manifest's digest; null when no manifest could be had. */
  artifact: Digest | null;
  totalLayers: number;
  /** The layers that are served lazily, bottom to top: 0 … lazyLayers.length-1 of the image. */
  lazyLayers: LayerSpec[];
  /** Why not more; null when all layers are lazy. */
  reason: string | null;
}

export interface ImageDeciderOptions {
  resolver: ImageResolver;
  devices: BlockDevices;
  snapshots: SnapshotStore;
  resolutions: ResolutionStore;
  logger: Logger;
  /** How long manifest and layer checks may take together; then the pull is ordinary. */
  deadlineMs: number;
  /** Called with each new decision. */
  onDecided: (decision: ImageDecision) => void;
}

const layersSchema = z.array(layerSpecSchema);

/** Where the bytes of a layer come from. */
export function blobOf(marks: LayerMarks, source: { host: string; repository: string }): BlobSource {
  const { blobDigest, blobSizeBytes, chunkList } = marks;
  const blob = { digest: blobDigest, sizeBytes: blobSizeBytes, repositories: [source] };
  return chunkList === undefined ? blob : { ...blob, chunkList };
}

/** The longest run of layers from the bottom whose annotations say that they can be served, and why it ends. */
function candidatesOf(
  manifest: ImageManifest,
  source: { host: string; repository: string },
): { layers: LayerSpec[]; reason: string | null } {
  const layers: LayerSpec[] = [];
  for (const [index, layer] of manifest.layers.entries()) {
    const refuse = (what: string) => ({ layers, reason: `layer ${index} (${layer.digest}): ${what}` });
    let marks: ReturnType<typeof readLayerMarks>;
    try {
      marks = readLayerMarks(layer.annotations);
    } catch (error) {
      if (!isAppError(error, 'InvalidArgument')) throw error;
      return refuse(error.message);
    }
    if (marks === undefined) return refuse('an ordinary layer, without overlaybd annotations');
    if (marks.isIndexOnly) return refuse('index-only (TurboOCI) layers are not served lazily by this version');
    if (marks.isAccelerationLayer) return refuse('an acceleration layer holds no file system');
    if (marks.wantsDownload) return refuse('its annotation asks for a download');
    if (marks.blobDigest !== layer.digest || marks.blobSizeBytes !== layer.sizeBytes) {
      return refuse(
        `its annotations name ${marks.blobDigest} of ${marks.blobSizeBytes} bytes, its descriptor says ${layer.sizeBytes} bytes`,
      );
    }
    layers.push({ kind: 'full', blob: blobOf(marks, source) });
  }
  return { layers, reason: null };
}

export class ImageDecider {
  private readonly options: ImageDeciderOptions;
  private readonly inFlight = new Map<string, Promise<ImageDecision>>();

  constructor(options: ImageDeciderOptions) {
    this.options = options;
  }

  /**
   * The decision for an image; made now, or as it was made at the image's first layer. Without a manifest digest the image is known by
   * its tag only: `layer` then tells whether the tag still names what was decided on. Never fails because of the registry or the
   * image: that is a decision for the ordinary pull, with the reason. Errors: ResourceExhausted.
   */
  async decide(image: string, manifestDigest: Digest | undefined, layer: { index: number; digest: Digest }): Promise<ImageDecision> {
    const subject = manifestDigest ?? image;
    const stored = this.stored(subject);
    const lazy = stored?.lazyLayers[layer.index];
    const hasMoved = manifestDigest === undefined && lazy?.kind === 'full' && lazy.blob.digest !== layer.digest;
    if (stored !== undefined && !hasMoved) return stored;
    let work = this.inFlight.get(subject);
    if (work === undefined) {
      if (this.inFlight.size >= MAX_IN_FLIGHT) {
        throw new AppError('ResourceExhausted', {
          op: 'resolve image',
          subject: image,
          what: `${MAX_IN_FLIGHT} images are being resolved`,
        });
      }
      work = this.make(image, manifestDigest).finally(() => this.inFlight.delete(subject));
      this.inFlight.set(subject, work);
    }
    return work;
  }

  /** How many of `layers`, from the bottom, blockd can open. Errors: Unavailable, DeadlineExceeded (it could not be found out). */
  async openable(image: string, layers: readonly LayerSpec[], signal: AbortSignal): Promise<{ count: number; reason: string | null }> {
    const refusal = async (count: number): Promise<AppError | undefined> => {
      if (count === 0) return undefined;
      const prefix = layers.slice(0, count);
      try {
        await this.options.devices.check({ version: 1, id: deviceIdOf(prefix), image, layers: prefix }, signal);
        return undefined;
      } catch (error) {
        if (!isAppError(error) || isAppError(error, 'Unavailable', 'DeadlineExceeded', 'Canceled')) throw error;
        return error;
      }
    };
    let why = await refusal(layers.length);
    if (why === undefined) return { count: layers.length, reason: null };
    // A prefix of openable layers is openable: search the border.
    let good = 0;
    let bad = layers.length;
    while (bad - good > 1) {
      const middle = (good + bad) >> 1;
      const error = await refusal(middle);
      if (error === undefined) good = middle;
      else {
        bad = middle;
        why = error;
      }
    }
    return { count: good, reason: `layer ${good}: ${describeError(why)}` };
  }

  private stored(subject: string): ImageDecision | undefined {
    const row = this.options.resolutions.get(subject);
    if (row === undefined) return undefined;
    const ageUs = wallTimeUs() - row.decidedUs;
    const isFresh = ageUs >= 0 && ageUs < DECISION_TTL_US;
    const isUsed = row.artifactDigest !== null && this.options.snapshots.isArtifactUsed(row.artifactDigest);
    if (!isFresh && !isUsed) return undefined;
    return {
      image: row.image,
      artifact: isDigest(row.artifactDigest) ? row.artifactDigest : null,
      totalLayers: row.totalLayers,
      lazyLayers: layersSchema.parse(JSON.parse(row.layers)),
      reason: row.reason,
    };
  }

  private async make(image: string, manifestDigest: Digest | undefined): Promise<ImageDecision> {
    const signal = AbortSignal.timeout(this.options.deadlineMs);
    let decision: ImageDecision = { image, artifact: null, totalLayers: 0, lazyLayers: [], reason: null };
    try {
      const source = this.options.resolver.parseReference(image);
      const manifest = await fetchImageManifest(this.options.resolver, image, manifestDigest, signal);
      decision = { ...decision, artifact: manifest.digest, totalLayers: manifest.layers.length };
      const candidates = candidatesOf(manifest, source);
      const { count, reason } = await this.openable(image, candidates.layers, signal);
      decision = { ...decision, lazyLayers: candidates.layers.slice(0, count), reason: reason ?? candidates.reason };
    } catch (error) {
      if (!isAppError(error) && !signal.aborted) throw error;
      decision = { ...decision, lazyLayers: [], reason: describeError(error) };
    }
    this.record(manifestDigest ?? image, decision);
    return decision;
  }

  private record(subject: string, decision: ImageDecision): void {
    const row: Omit<ResolutionRow, 'subject'> = {
      image: decision.image,
      artifactDigest: decision.artifact,
      lazyLayers: decision.lazyLayers.length,
      totalLayers: decision.totalLayers,
      reason: decision.reason,
      layers: JSON.stringify(decision.lazyLayers),
      decidedUs: wallTimeUs(),
    };
    const { resolutions, logger, onDecided } = this.options;
    resolutions.put({ ...row, subject: decision.artifact ?? subject }, MAX_DECISIONS);
    if (decision.artifact !== null && decision.artifact !== subject) resolutions.put({ ...row, subject }, MAX_DECISIONS);
    const { image, artifact, totalLayers, reason } = decision;
    logger.info({ image, artifact, lazyLayers: decision.lazyLayers.length, totalLayers, reason }, 'image resolved');
    onDecided(decision);
  }
}
