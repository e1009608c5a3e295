/** Looks whether what Ready caches promise still holds, one after the other, and has what is missing brought again (R126). Ours. */
import { describeError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { isPinned } from './cache-record.ts';
import { isServing } from './cache-states.ts';
import type { Catalogue } from './catalogue.ts';
import type { ImageStore } from './image-store.ts';

/** Presence and sizes of some hundred blobs. */
const VERIFY_LIMIT_MS = 60_000;

export interface VerifierParts {
  readonly catalogue: Catalogue;
  readonly store: Pick<ImageStore, 'verify'>;
  readonly logger: Logger;
  readonly signal: AbortSignal;
  isBusy(id: string): boolean;
  /** Work is to be done. */
  poke(): void;
}

export class Verifier {
  private readonly parts: VerifierParts;
  /** False: some cache could not be looked at the last time, as at boot, when containerd comes after this service. */
  sawAll = false;

  constructor(parts: VerifierParts) {
    this.parts = parts;
  }

  /** Every cache that serves and is not worked on. What cannot be told is left as it is. */
  async verifyAll(): Promise<void> {
    this.sawAll = true;
    for (const { id } of this.parts.catalogue.all()) {
      if (this.parts.signal.aborted) return;
      const images = this.parts.catalogue.find(id)?.images;
      const reference = await this.missing(id);
      // It may have gone, or been changed, while it was looked at.
      if (reference !== undefined && this.isIdle(id) && this.parts.catalogue.get(id).images === images) this.heal(id, reference);
    }
  }

  private isIdle(id: string): boolean {
    const record = this.parts.catalogue.find(id);
    return record !== undefined && isServing(record.status) && !this.parts.isBusy(id);
  }

  /** The reference of an image that is not whole any more. */
  private async missing(id: string): Promise<string | undefined> {
    const { catalogue, store, signal, logger } = this.parts;
    if (!this.isIdle(id)) return undefined;
    for (const { reference, resolved } of catalogue.get(id).images.filter(isPinned)) {
      try {
        if (!(await store.verify(id, resolved, AbortSignal.any([signal, AbortSignal.timeout(VERIFY_LIMIT_MS)])))) return reference;
      } catch (error) {
        this.sawAll = false;
        if (!signal.aborted) logger.warn({ cache: id, reason: describeError(error) }, 'an image cache cannot be looked at');
        return undefined;
      }
    }
    return undefined;
  }

  private heal(id: string, reference: string): void {
    const { catalogue, poke } = this.parts;
    catalogue.change(
      id,
      {
        ...{ status: 'Creating', isWhole: false, pending: null, pendingSizeGib: null, progress: 0 },
        ...{ attempts: 0, workSinceUs: catalogue.time.nowUs() },
      },
      [{ type: 'Warning', reason: 'ContentDamaged', message: `${reference} is not whole any more; what is missing is brought again` }],
    );
    poke();
  }
}
