/**
 * One attempt at what a cache needs: its images pinned to digests, looked at for size and room, brought, read back. Every step is written
 * down before the next, so that an attempt after a kill goes on where this one ended. Ours.
 */
import { isDeepStrictEqual } from 'node:util';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import { formatBytes, GIB } from '../base/units.ts';
import type { Admission } from './admission.ts';
import { sizeOfImages } from './byte-ledger.ts';
import {
  type CacheRecord,
  type HeldImage,
  hasWork,
  isPinned,
  type PinnedImage,
  parseResolved,
  pinnedOf,
  targetOf,
  targetSizeOf,
  workerNameOf,
} from './cache-record.ts';
import type { Catalogue } from './catalogue.ts';
import type { HeldPart, ImageAccess, ImageStore, PrepareOptions, ResolvedImage } from './image-store.ts';
import type { Secrets } from './secrets.ts';

export interface BuildParts {
  readonly catalogue: Catalogue;
  readonly store: ImageStore;
  readonly secrets: Secrets;
  readonly admission: Admission;
}

/** More than the cache may have; waiting does not help. */
export class TooBig extends AppError {
  constructor(name: string, neededBytes: number, limitBytes: number) {
    super('ResourceExhausted', {
      ...{ op: 'create', subject: name },
      what: `its images take ${formatBytes(neededBytes)} (${neededBytes} bytes), and its size is ${formatBytes(limitBytes)} (${limitBytes} bytes)`,
      details: { neededBytes, limitBytes },
    });
  }
}

export class Build {
  private readonly id: string;
  private readonly parts: BuildParts;
  private readonly signal: AbortSignal;

  constructor(id: string, parts: BuildParts, signal: AbortSignal) {
    this.id = id;
    this.parts = parts;
    this.signal = signal;
  }

  /**
   * Resolves when the cache is Ready and whole. Rejects with what went wrong, or the signal's reason; the cache is then as far as it came. An
   * automatic cache may be given more images while it runs: it goes round again.
   */
  async run(): Promise<void> {
    do {
      await this.pinImages();
      await this.makeRoom();
      if (this.record.settings.flash && this.record.status === 'Creating' && this.record.servedUs === null) {
        if (await this.isUsableSoon(pinnedOf(targetOf(this.record)))) this.serveUnfinished();
      }
      // With the sizes that they proved to have by now.
      const images = pinnedOf(targetOf(this.record));
      await this.prepareAll(images, 'whole');
      if (this.isDoneWith(images)) this.finish();
    } while (hasWork(this.record));
  }

  /** An early start is no promise: an image that cannot be started before it is here (whole layers are checked first) is brought all the same. */
  private async isUsableSoon(images: readonly ResolvedImage[]): Promise<boolean> {
    try {
      await this.prepareAll(images, 'usable');
      return this.isDoneWith(images);
    } catch (error) {
      this.signal.throwIfAborted();
      const isOfStart =
        isAppError(error, 'Unavailable', 'DeadlineExceeded', 'ResourceExhausted') && error.details.neededBytes === undefined;
      if (!isOfStart) throw error;
      this.note('Warning', 'NotUsableSoon', `pods must wait until the cache is whole: ${describeError(error)}`);
      return false;
    }
  }

  private get record(): CacheRecord {
    this.signal.throwIfAborted();
    return this.parts.catalogue.get(this.id);
  }

  /** As it is now: a pod may bring credentials for further images while its cache is made. */
  private get access(): ImageAccess {
    return this.parts.secrets.accessOf(this.record);
  }

  /** Asks what every reference means, once; the answer is kept for ever. */
  private async pinImages(): Promise<void> {
    for (;;) {
      const next = targetOf(this.record).find((image) => !isPinned(image));
      if (next === undefined) return;
      const resolved = parseResolved(await this.parts.store.resolve(next.reference, this.access, this.signal));
      const pin = (images: readonly HeldImage[]): HeldImage[] =>
        images.map((image) => (image.reference === next.reference ? { ...image, resolved } : image));
      const { pending, images } = this.record;
      this.parts.catalogue.change(this.id, pending === null ? { images: pin(images) } : { pending: pin(pending) }, [
        {
          type: 'Normal',
          reason: 'ImageResolved',
          message: `${next.reference} is ${resolved.digest} (${resolved.form}, ${resolved.layers.length} layers, ${formatBytes(resolved.sizeBytes)})`,
        },
      ]);
    }
  }

  /** Sizes are known now: first the cache's own bound, then that of all. Content that served once has its room already. */
  private async makeRoom(): Promise<void> {
    const { record } = this;
    const neededBytes = sizeOfImages(pinnedOf(targetOf(record)));
    const limitBytes = targetSizeOf(record) * GIB;
    if (neededBytes > limitBytes) throw new TooBig(record.name, neededBytes, limitBytes);
    if (record.servedUs === null || record.pending !== null) await this.parts.admission.roomForBytes(record, this.signal);
    if (this.record.status !== 'Preparing') return;
    const what = `${record.images.length} ${record.images.length === 1 ? 'image' : 'images'}, ${formatBytes(neededBytes)}`;
    this.parts.catalogue.change(this.id, { status: 'Creating' }, [{ type: 'Normal', reason: 'Creating', message: `bringing ${what}` }]);
  }

  private async prepareAll(images: readonly ResolvedImage[], until: PrepareOptions['until']): Promise<void> {
    const totalBytes = images.reduce((sum, image) => sum + image.sizeBytes, 0);
    let doneBytes = 0;
    for (const image of images) {
      const { fetchedBytes, held } = await this.parts.store.prepare(this.id, image, {
        access: this.access,
        signal: this.signal,
        workerName: workerNameOf(this.id),
        trustsReused: this.record.settings.autoMatchImageCache,
        reservationBytes: image.sizeBytes + this.spareBytes(),
        until,
        onProgress: (progress) => {
          const share = progress.totalBytes === 0 ? 0 : Math.min(1, progress.doneBytes / progress.totalBytes);
          this.tell(until, doneBytes + share * image.sizeBytes, totalBytes);
        },
        onNote: ({ type, reason, message }) => this.note(type, reason, `${image.reference}: ${message}`),
      });
      doneBytes += image.sizeBytes;
      this.tell(until, doneBytes, totalBytes);
      await this.countHeld(image, held);
      const size = formatBytes(sumOf(held));
      if (until === 'usable')
        this.note('Normal', 'ImageUsable', `${image.reference}: a pod can start from it; it takes ${size} when it is whole`);
      else this.note('Normal', 'ImageCached', `${image.reference}: ${size} on disk, of which ${formatBytes(fetchedBytes)} were fetched`);
    }
  }

  /** What is left when all are here may be taken by any of them. */
  private spareBytes(): number {
    const { record } = this;
    return Math.max(0, targetSizeOf(record) * GIB - sizeOfImages(pinnedOf(targetOf(record))));
  }

  /** Only now it is known what the image takes: the ledger has it from here on, and others may have to give way for it. */
  private async countHeld({ reference, platformDigest }: ResolvedImage, held: readonly HeldPart[]): Promise<void> {
    const { pending, images } = this.record;
    const isIt = (image: HeldImage): image is PinnedImage =>
      isPinned(image) && image.reference === reference && image.resolved.platformDigest === platformDigest;
    const known = (pending ?? images).find(isIt);
    if (known === undefined || isDeepStrictEqual(known.resolved.held, held)) return;
    const resolved = { ...known.resolved, held, sizeBytes: sumOf(held) };
    const count = (list: readonly HeldImage[]): HeldImage[] => list.map((image) => (isIt(image) ? { ...image, resolved } : image));
    const record = this.parts.catalogue.change(this.id, pending === null ? { images: count(images) } : { pending: count(pending) });
    await this.parts.admission.roomForBytes(record, this.signal);
  }

  private note(type: 'Normal' | 'Warning', reason: string, message: string): void {
    const record = this.parts.catalogue.find(this.id);
    if (record !== undefined) this.parts.catalogue.note(this.id, { type, reason, message: this.parts.secrets.scrub(record, message) });
  }

  /** 100 is for what has been read back and written down. */
  private tell(until: PrepareOptions['until'], doneBytes: number, totalBytes: number): void {
    const percent = totalBytes === 0 ? 0 : Math.min(99, Math.floor((doneBytes / totalBytes) * 100));
    this.parts.catalogue.progress(this.id, until === 'whole' ? 'progress' : 'flashProgress', percent);
  }

  /** False: images were added meanwhile. */
  private isDoneWith(images: readonly ResolvedImage[]): boolean {
    const target = targetOf(this.record);
    return (
      target.length === images.length &&
      target.every(({ reference, resolved }, index) => {
        const image = images[index]!;
        return reference === image.reference && resolved?.platformDigest === image.platformDigest;
      })
    );
  }

  /** A flash cache: pods may start from it. */
  private serveUnfinished(): void {
    const { catalogue } = this.parts;
    catalogue.change(
      this.id,
      { status: 'Ready', isWhole: false, flashProgress: 100, servedUs: catalogue.time.nowUs(), attempts: 0, failure: null },
      [{ type: 'Normal', reason: 'FlashReady', message: 'pods may start from it while the rest is brought' }],
    );
  }

  private finish(): void {
    const { catalogue } = this.parts;
    const { record } = this;
    catalogue.change(
      this.id,
      {
        ...{ status: 'Ready', isWhole: true, progress: 100, images: targetOf(record), pending: null, attempts: 0, failure: null },
        ...{ sizeGib: targetSizeOf(record), pendingSizeGib: null, servedUs: record.servedUs ?? catalogue.time.nowUs() },
        ...(record.settings.flash ? { flashProgress: 100 } : {}),
      },
      [{ type: 'Normal', reason: 'Ready', message: 'every image is here whole and was read back' }],
    );
  }
}

function sumOf(held: readonly HeldPart[]): number {
  return held.reduce((sum, { bytes }) => sum + bytes, 0);
}
