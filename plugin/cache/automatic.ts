/**
 * Caches that pods cause which miss (R91 – R95, R103): one for each set of images, named after the sandbox that missed first. Asked again, it
 * is added to, looked at anew, or left as it is. Ours.
 */
import { isDeepStrictEqual } from 'node:util';
import type { AppError } from '../base/errors.ts';
import type { Admission } from './admission.ts';
import { type CacheRecord, type HeldImage, hasWork, heldImage, targetOf } from './cache-record.ts';
import type { Catalogue, NewEvent } from './catalogue.ts';
import { automaticCache } from './new-cache.ts';
import { AUTOMATIC_PREFIX, autoCreateRequestSchema, MAX_CACHE_IMAGES, MAX_CREDENTIALS } from './requests.ts';
import type { Secrets } from './secrets.ts';
import type { AutoCreateRequest, ImageRegistryCredential } from './types.ts';
import { cacheError, checkRequest } from './validation.ts';

/** Pods of one deployment miss within seconds of each other; what failed or was looked at for one is not begun anew for the next. */
const AGAIN_US = 10 * 60_000_000;

const OP = 'create automatic image cache';

export interface AutomaticParts {
  readonly catalogue: Catalogue;
  readonly admission: Admission;
  readonly secrets: Secrets;
  /** GiB */
  readonly podEphemeralSize: number;
  /** Removes a cache whose place is taken. */
  remove(id: string, why: string): Promise<void>;
  /** Work is to be done. */
  poke(): void;
}

export class AutomaticCaches {
  private readonly parts: AutomaticParts;

  constructor(parts: AutomaticParts) {
    this.parts = parts;
  }

  /** Resolves with the id of the cache that is or will be the pod's. */
  async ensure(raw: AutoCreateRequest): Promise<string> {
    const request = checkRequest(autoCreateRequestSchema, raw, OP);
    const images = [
      ...new Map(request.images.map((reference) => heldImage(reference)).map((image) => [image.canonicalReference, image])).values(),
    ];
    if (images.length > MAX_CACHE_IMAGES) throw tooMany(request.sandboxId, images.length);
    const sizeGib = this.parts.podEphemeralSize + (request.extraEphemeralStorage ?? 0);
    const id = await this.parts.admission.exclusive(async () => {
      const present = this.find(request.sandboxId, images, sizeGib);
      if (present === undefined) return this.insert(request as AutoCreateRequest, images, sizeGib);
      if (present.status !== 'Failed') {
        // Those of a pod are for its own cache.
        if (present.sandboxId === request.sandboxId) this.learn(present, request.credentials ?? []);
        this.renew(this.parts.catalogue.get(present.id), images);
        return present.id;
      }
      if (this.isRecent(present)) return present.id;
      await this.parts.remove(present.id, 'it failed, and a pod asks for it again');
      return this.insert(request as AutoCreateRequest, images, sizeGib);
    });
    this.parts.poke();
    return id;
  }

  /** The sandbox's own, else one of another that has the images and fits the pod. */
  private find(sandboxId: string, images: readonly HeldImage[], sizeGib: number): CacheRecord | undefined {
    const { catalogue } = this.parts;
    const own = catalogue.named(AUTOMATIC_PREFIX + sandboxId);
    return own ?? catalogue.ofOwner('system').find((record) => record.sizeGib <= sizeGib && missingIn(record, images).length === 0);
  }

  /** Each pull of a pod brings the credentials of its own image; the cache is of all of them. */
  private learn(record: CacheRecord, credentials: readonly ImageRegistryCredential[]): void {
    const { catalogue, secrets } = this.parts;
    const known = secrets.known(record);
    const brought = new Set(credentials.map(({ server }) => server));
    const all = [...known.filter(({ server }) => !brought.has(server)), ...credentials].slice(-MAX_CREDENTIALS);
    if (credentials.length > 0 && !isDeepStrictEqual(all, known)) catalogue.change(record.id, { credentials: secrets.seal(all) });
  }

  /** A pod that misses although a cache has its images by name: the names mean something else by now. */
  private renew(record: CacheRecord, images: readonly HeldImage[]): void {
    const missing = missingIn(record, images);
    const isBuilding = hasWork(record) && record.status !== 'Ready';
    if (missing.length === 0 && (isBuilding || !record.isWhole || this.isRecent(record))) return;
    const { catalogue } = this.parts;
    const present = isBuilding ? targetOf(record) : record.images.map((image) => heldImage(image.reference));
    const wanted = [...present, ...missing];
    if (wanted.length > MAX_CACHE_IMAGES) throw tooMany(record.name, wanted.length);
    const event: NewEvent =
      missing.length === 0
        ? { type: 'Normal', reason: 'Renewing', message: 'a pod found its images changed; their references are looked up again' }
        : { type: 'Normal', reason: 'ImagesAdded', message: missing.map((image) => image.reference).join(', ') };
    if (isBuilding) catalogue.change(record.id, record.pending === null ? { images: wanted } : { pending: wanted }, [event]);
    else {
      const workSinceUs = catalogue.time.nowUs();
      catalogue.change(record.id, { status: 'Updating', pending: wanted, progress: 0, attempts: 0, workSinceUs, failure: null }, [event]);
    }
  }

  private async insert(request: AutoCreateRequest, images: readonly HeldImage[], sizeGib: number): Promise<string> {
    const { admission, catalogue, secrets } = this.parts;
    await admission.roomForOne('system');
    const credentials = secrets.seal(request.credentials ?? []);
    const record = automaticCache(
      { ...request, images: images.map((image) => image.reference) },
      sizeGib,
      credentials,
      catalogue.time.nowUs(),
    );
    const message = `for sandbox ${request.sandboxId}: ${images.length} images, ${sizeGib} GiB`;
    catalogue.insert(record, { type: 'Normal', reason: 'Accepted', message }, () => {});
    return record.id;
  }

  private isRecent(record: CacheRecord): boolean {
    return this.parts.catalogue.time.nowUs() - Math.max(record.workSinceUs, record.failedUs ?? 0) < AGAIN_US;
  }
}

/** Of the images, those that the cache neither holds nor is being given. */
function missingIn(record: CacheRecord, images: readonly HeldImage[]): HeldImage[] {
  const held = new Set((hasWork(record) ? targetOf(record) : record.images).map((image) => image.canonicalReference));
  return images.filter((image) => !held.has(image.canonicalReference));
}

function tooMany(subject: string, count: number): AppError {
  const what = `images: ${count} different ones of one pod, more than ${MAX_CACHE_IMAGES}`;
  return cacheError('InvalidParameter', { op: OP, subject, what, details: { field: 'images' } });
}
