/** How images are served, as it was decided: written once, read at each layer of a pull, and believed while it can be. */
import type { ResolutionRow, ResolutionStore } from '../../db/resolution-store.ts';
import type { SnapshotStore } from '../../db/snapshot-store.ts';
import { type Digest, isDigest } from '../base/digest.ts';
import type { IndexFiles } from './index-files.ts';
import { type ServedLayer, servedLayersSchema } from './served-layers.ts';
import { wallTimeUs } from './wall-time.ts';

/** A decision holds for one pull even when nothing refers to the artifact yet; later a registry that was away gets another chance. */
const DECISION_TTL_US = 10 * 60 * 1_000_000;

/** Images that a node sees in months; a row is a few KiB. */
const MAX_DECISIONS = 2_000;

export interface ImageDecision {
  image: string;
  /** The digest of the manifest that is served; null when no manifest could be had, or an ordinary image has no twin. */
  artifact: Digest | null;
  /** The manifest whose twin the artifact is; null when the artifact itself is pulled. */
  base: Digest | null;
  totalLayers: number;
  /** The layers that are served lazily, bottom to top: 0 … lazyLayers.length-1 of the image. */
  lazyLayers: ServedLayer[];
  /** Why not more; null when all layers are lazy. */
  reason: string | null;
}

export class DecisionStore {
  private readonly parts: { resolutions: ResolutionStore; snapshots: SnapshotStore; files: IndexFiles };

  constructor(parts: { resolutions: ResolutionStore; snapshots: SnapshotStore; files: IndexFiles }) {
    this.parts = parts;
  }

  /** What was decided, if it still holds. A decision without an artifact is believed for `emptyTtlMs`, others while they are used. */
  async get(subject: string, emptyTtlMs: number): Promise<ImageDecision | undefined> {
    const row = this.parts.resolutions.get(subject);
    if (row === undefined) return undefined;
    const ageUs = wallTimeUs() - row.decidedUs;
    const ttlUs = row.artifactDigest === null ? emptyTtlMs * 1000 : DECISION_TTL_US;
    const isFresh = ageUs >= 0 && ageUs < ttlUs;
    const isUsed = row.artifactDigest !== null && this.parts.snapshots.isArtifactUsed(row.artifactDigest);
    if (!isFresh && !isUsed) return undefined;
    const lazyLayers = servedLayersSchema.parse(JSON.parse(row.layers));
    if (!(await this.parts.files.hold(lazyLayers.map((layer) => layer.spec)))) return undefined;
    return {
      image: row.image,
      artifact: isDigest(row.artifactDigest) ? row.artifactDigest : null,
      base: isDigest(row.baseDigest) ? row.baseDigest : null,
      totalLayers: row.totalLayers,
      lazyLayers,
      reason: row.reason,
    };
  }

  put(subject: string, decision: ImageDecision): void {
    const row: Omit<ResolutionRow, 'subject'> = {
      image: decision.image,
      artifactDigest: decision.artifact,
      baseDigest: decision.base,
      lazyLayers: decision.lazyLayers.length,
      totalLayers: decision.totalLayers,
      reason: decision.reason,
      layers: JSON.stringify(decision.lazyLayers),
      decidedUs: wallTimeUs(),
    };
    this.parts.resolutions.put({ ...row, subject }, MAX_DECISIONS);
  }
}
