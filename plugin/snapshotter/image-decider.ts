/**
 * Decides, once for a whole image, how many of its layers are served lazily; the rest are pulled ordinarily. The manifest is fetched by
 * digest, every layer is opened by blockd, and the answer is stored with its reason. An ordinary image is served from its twin, if one is
 * found in time and is what it claims to be.
 *
 * An answer that stands on trouble which passes (a registry or blockd that is away, credentials that are refused) is believed for the rest of
 * its pull, no longer.
 *
 *   layers   0 1 2 3 4 5
 *            └lazy┘ └──── first refused layer and all above: ordinary
 */
import type { Digest } from '../base/digest.ts';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { deviceIdOf, type LayerSpec } from '../file/device-spec.ts';
import type { DecisionStore, ImageDecision } from './decision-store.ts';
import type { IndexLayers } from './index-layer.ts';
import { fetchImageManifest } from './manifest.ts';
import type { BlockDevices, ImageResolver } from './ports.ts';
import { isTransient, type Servable, servableLayers } from './served-layers.ts';
import { TwinFinder, type TwinSearch } from './twin-finder.ts';
import { type BaseImage, fetchBaseImage, twinLayers } from './twin-layers.ts';
import type { TwinPolicy } from './twin-policy.ts';

export type { ImageDecision } from './decision-store.ts';

/** Pulls that are resolved at once; containerd itself runs fewer. */
const MAX_IN_FLIGHT = 256;

/** Images whose last resolution ran into trouble that passes; beyond it, the oldest are forgotten and wait for their time like others. */
const MAX_TROUBLED = 1_000;

/** Such trouble is not asked about again for the other layers of the same pull; kubelet comes back after ten seconds. */
const TROUBLE_MS = 5_000;

/** Characters of a reason; refusals name digests and repositories. */
const MAX_REASON_CHARS = 2_000;

export interface ImageDeciderOptions {
  resolver: ImageResolver;
  devices: BlockDevices;
  indexLayers: IndexLayers;
  decisions: DecisionStore;
  twins: TwinPolicy;
  logger: Logger;
  /** How long manifest and layer checks may take together; then the pull is ordinary. */
  deadlineMs: number;
  /** Called with each new decision. */
  onDecided: (decision: ImageDecision) => void;
}

export class ImageDecider {
  private readonly options: ImageDeciderOptions;
  private readonly finder: TwinFinder;
  private readonly inFlight = new Map<string, Promise<ImageDecision>>();
  /** Ordinary images for which it could not be found out whether they have a twin. */
  private readonly troubled = new Set<string>();
  /** What was answered for accelerated images because of trouble that passes, and when (monotonic). */
  private readonly passing = new Map<string, { decision: ImageDecision; atMs: number }>();

  constructor(options: ImageDeciderOptions) {
    this.options = options;
    this.finder = new TwinFinder(options.resolver, options.twins);
  }

  /**
   * The decision for an accelerated image; made now, or as it was made at the image's first layer. Without a manifest digest the image is
   * known by its tag only: `layer` then tells whether the tag still names what was decided on. Never fails because of the registry or the
   * image: that is a decision for the ordinary pull, with the reason. Errors: ResourceExhausted.
   */
  async decide(image: string, manifestDigest: Digest | undefined, layer: { index: number; digest: Digest }): Promise<ImageDecision> {
    const subject = manifestDigest ?? image;
    const passing = this.passing.get(subject);
    if (passing !== undefined) {
      // The lowest layer begins a pull.
      if (layer.index > 0 && performance.now() - passing.atMs < TROUBLE_MS) return passing.decision;
      return this.once(subject, image, () => this.make(image, manifestDigest));
    }
    const stored = await this.options.decisions.get(subject, this.options.twins.negativeTtlMs);
    const lazy = stored?.lazyLayers[layer.index];
    const hasMoved = manifestDigest === undefined && lazy !== undefined && lazy.layerDigest !== layer.digest;
    if (stored !== undefined && stored.base === null && !hasMoved) return stored;
    return this.once(subject, image, () => this.make(image, manifestDigest));
  }

  /**
   * The decision for an ordinary image: served from its twin, or not. `index` is the layer that is asked for: the lowest one begins a
   * pull, at which trouble of an earlier search is tried again. Errors: ResourceExhausted, InvalidArgument (the reference).
   */
  async decideTwin(image: string, base: Digest, index: number): Promise<ImageDecision> {
    const own = await this.options.decisions.get(base, 0);
    // Some of its layers are accelerated: it is what it is, and no base of a twin.
    if (own !== undefined && own.base === null && own.artifact === base) return own;
    const { host, repository } = this.options.resolver.parseReference(image);
    // Whose twin may be used depends on the repository, not on the manifest alone.
    const subject = `${host}/${repository}@${base}`;
    const stored = await this.options.decisions.get(subject, this.options.twins.negativeTtlMs);
    if (stored !== undefined && !(index === 0 && this.troubled.has(subject))) return stored;
    return this.once(subject, image, () => this.makeTwin(image, base, subject));
  }

  /** How many of `layers`, from the bottom, blockd can open. Errors: Unavailable and the like (it could not be found out). */
  async openable(image: string, layers: readonly LayerSpec[], signal: AbortSignal): Promise<{ count: number; reason: string | null }> {
    const refusal = async (count: number): Promise<AppError | undefined> => {
      if (count === 0) return undefined;
      const prefix = layers.slice(0, count);
      try {
        await this.options.devices.check({ version: 1, id: deviceIdOf(prefix), image, layers: prefix }, signal);
        return undefined;
      } catch (error) {
        if (!isAppError(error) || isTransient(error)) throw error;
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

  private once(subject: string, image: string, make: () => Promise<ImageDecision>): Promise<ImageDecision> {
    let work = this.inFlight.get(subject);
    if (work === undefined) {
      if (this.inFlight.size >= MAX_IN_FLIGHT) {
        throw new AppError('ResourceExhausted', {
          op: 'resolve image',
          subject: image,
          what: `${MAX_IN_FLIGHT} images are being resolved`,
        });
      }
      work = make().finally(() => this.inFlight.delete(subject));
      this.inFlight.set(subject, work);
    }
    return work;
  }

  /** What of the layers blockd can open. */
  private async opened(image: string, { layers, reason }: Servable, signal: AbortSignal): Promise<Servable> {
    const specs = layers.map((layer) => layer.spec);
    const found = await this.openable(image, specs, signal);
    return { layers: layers.slice(0, found.count), reason: found.reason ?? reason };
  }

  private async make(image: string, manifestDigest: Digest | undefined): Promise<ImageDecision> {
    const { resolver, deadlineMs, decisions } = this.options;
    const signal = AbortSignal.timeout(deadlineMs);
    let decision: ImageDecision = { image, artifact: null, base: null, totalLayers: 0, lazyLayers: [], reason: null };
    let isPassing = false;
    try {
      const source = resolver.parseReference(image);
      const manifest = await fetchImageManifest(resolver, image, manifestDigest, signal);
      decision = { ...decision, artifact: manifest.digest, totalLayers: manifest.layers.length };
      const servable = await servableLayers(manifest, source, undefined, this.options, signal);
      const { layers, reason } = await this.opened(image, servable, signal);
      decision = { ...decision, lazyLayers: layers, reason };
    } catch (error) {
      if (!isAppError(error) && !signal.aborted) throw error;
      isPassing = signal.aborted || isTransient(error);
      decision = { ...decision, lazyLayers: [], reason: describeError(error) };
    }
    const subject = manifestDigest ?? image;
    this.passing.delete(subject);
    if (isPassing) {
      this.passing.set(subject, { decision, atMs: performance.now() });
      dropOldest(this.passing);
    }
    // For people, and without an artifact: what is stored with one is believed for long.
    decisions.put(subject, isPassing ? { ...decision, artifact: null } : decision);
    if (!isPassing && decision.artifact !== null && decision.artifact !== subject) decisions.put(decision.artifact, decision);
    this.announce(decision);
    return decision;
  }

  private async makeTwin(image: string, base: Digest, subject: string): Promise<ImageDecision> {
    const search = await this.finder.find(image, base);
    let decision: ImageDecision | undefined;
    if (search.candidates.length > 0) decision = await this.tryCandidates(image, base, search);
    const reason = search.refusals.length === 0 ? 'it has no accelerated twin' : search.refusals.join('; ').slice(0, MAX_REASON_CHARS);
    decision ??= { image, artifact: null, base, totalLayers: 0, lazyLayers: [], reason };
    this.troubled.delete(subject);
    if (decision.artifact === null && !search.isFinal) dropOldest(this.troubled.add(subject));
    const { decisions } = this.options;
    decisions.put(subject, decision);
    // For people, who know the image by its name.
    decisions.put(image, decision);
    this.announce(decision);
    return decision;
  }

  /** The first candidate that is what it claims and of which at least one layer can be read; refusals are added to the search. */
  private async tryCandidates(image: string, base: Digest, search: TwinSearch): Promise<ImageDecision | undefined> {
    const { resolver, deadlineMs } = this.options;
    const signal = AbortSignal.timeout(deadlineMs);
    let original: BaseImage | undefined;
    for (const candidate of search.candidates) {
      const name = `${candidate.repository.host}/${candidate.repository.repository}@${candidate.manifest.digest}`;
      try {
        original ??= await fetchBaseImage(resolver, image, base, signal);
        const { layers, reason } = await this.opened(image, await twinLayers(candidate, original, this.options, signal), signal);
        if (layers.length > 0) {
          const artifact = candidate.manifest.digest;
          return { image, artifact, base, totalLayers: original.layers.length, lazyLayers: layers, reason };
        }
        search.refusals.push(`${name} cannot be served: ${reason ?? 'it has no layers'}`);
      } catch (error) {
        if (!isAppError(error) && !signal.aborted) throw error;
        search.refusals.push(`${name} is refused: ${describeError(error)}`);
        if (signal.aborted || isTransient(error)) search.isFinal = false;
      }
    }
    return undefined;
  }

  private announce(decision: ImageDecision): void {
    const { logger, onDecided } = this.options;
    const { image, artifact, base, totalLayers, reason } = decision;
    logger.info({ image, artifact, base, lazyLayers: decision.lazyLayers.length, totalLayers, reason }, 'image resolved');
    onDecided(decision);
  }
}

/** Keeps a memory of troubled images within {@link MAX_TROUBLED}. */
function dropOldest(memory: { readonly size: number; keys(): Iterator<string>; delete(key: string): boolean }): void {
  const oldest = memory.keys().next();
  if (memory.size > MAX_TROUBLED && oldest.done !== true) memory.delete(oldest.value);
}
