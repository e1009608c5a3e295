/** What clients change: creation and update. Each is checked, then durable, then begun. Ours. */
import type { AppError } from '../base/errors.ts';
import { parseReference } from '../registry/reference.ts';
import type { Admission } from './admission.ts';
import { type CacheRecord, heldImage } from './cache-record.ts';
import type { Catalogue, NewEvent } from './catalogue.ts';
import type { ClientTokens } from './client-tokens.ts';
import type { ImageStore } from './image-store.ts';
import { refuseReservedName, refuseSameImages, userCache } from './new-cache.ts';
import { clientTokenSchema, createCacheRequestSchema, updateCacheRequestSchema } from './requests.ts';
import type { Secrets } from './secrets.ts';
import type { CreateCacheRequest, UpdateCacheRequest } from './types.ts';
import { planUpdate } from './update-plan.ts';
import { cacheError, checkRequest } from './validation.ts';

/** Twenty tags are asked for, a few requests each. */
const MOVED_LIMIT_MS = 60_000;

export interface ChangesParts {
  readonly catalogue: Catalogue;
  readonly admission: Admission;
  readonly tokens: ClientTokens;
  readonly secrets: Secrets;
  readonly store: Pick<ImageStore, 'resolve'>;
  readonly signal: AbortSignal;
  /** GiB */
  readonly defaultSize: number;
  /** Work is to be done. */
  poke(): void;
}

export interface ChangeOptions {
  readonly clientToken?: string;
  readonly dryRun?: boolean;
}

export class Changes {
  private readonly parts: ChangesParts;
  /** Caches of which an update is being looked into. */
  private readonly updating = new Set<string>();

  constructor(parts: ChangesParts) {
    this.parts = parts;
  }

  /** Resolves with the id. */
  async create(raw: CreateCacheRequest, { clientToken, dryRun: isDry = false }: ChangeOptions): Promise<string> {
    const op = 'create image cache';
    const request = checkRequest(createCacheRequestSchema, raw, op);
    checkToken(clientToken, op);
    refuseReservedName(request.imageCacheName, op);
    refuseSameImages(request.images, op);
    const { admission, tokens, catalogue, secrets, defaultSize, poke } = this.parts;
    return admission.exclusive(async () => {
      const known = tokens.find('create', clientToken, request);
      if (known !== undefined) return known;
      this.refuseTakenName(request.imageCacheName, op);
      if (isDry) {
        if (!(await admission.hasRoomForOne('user'))) throw admission.tooMany('user');
        throw dryRun(op, request.imageCacheName);
      }
      await admission.roomForOne('user');
      // An update may have taken it meanwhile.
      this.refuseTakenName(request.imageCacheName, op);
      const record = userCache(request, defaultSize, secrets.seal(request.imageRegistryCredentials), catalogue.time.nowUs());
      const message = `${request.images.length} images, ${record.sizeGib} GiB`;
      catalogue.insert(record, { type: 'Normal', reason: 'Accepted', message }, () =>
        tokens.add('create', clientToken, request, record.id),
      );
      for (const event of notesOf(request.cloud)) catalogue.note(record.id, event);
      poke();
      return record.id;
    });
  }

  /** Resolves when the change is durable; what is to be built follows. */
  async update(id: string, raw: UpdateCacheRequest, options: ChangeOptions & { readonly version?: number }): Promise<void> {
    const op = 'update image cache';
    const patch = checkRequest(updateCacheRequestSchema, raw, op);
    checkToken(options.clientToken, op);
    if (patch.imageCacheName !== undefined) refuseReservedName(patch.imageCacheName, op);
    if (patch.images !== undefined) refuseSameImages(patch.images, op);
    const record = this.parts.catalogue.get(id);
    const scope = `update ${id}`;
    if (this.parts.tokens.find(scope, options.clientToken, patch) !== undefined) return;
    this.refuseOtherVersion(record, op, options.version);
    if (this.updating.has(id)) throw this.conflict(record, op);
    this.updating.add(id);
    try {
      await this.applyUpdate(id, patch, op, options, () => this.parts.tokens.add(scope, options.clientToken, patch, id));
    } finally {
      this.updating.delete(id);
    }
    this.parts.poke();
  }

  private async applyUpdate(
    id: string,
    patch: UpdateCacheRequest,
    op: string,
    { dryRun: isDry = false, version }: ChangeOptions & { readonly version?: number },
    remember: () => void,
  ): Promise<void> {
    const { catalogue, secrets } = this.parts;
    const seen = this.updatable(id, op);
    const plan = planUpdate(seen, patch, secrets.known(seen));
    let { rebuild } = plan;
    if (rebuild === undefined && plan.mayHaveMoved && (await this.hasMoved(seen))) {
      rebuild = { pending: seen.images.map((image) => heldImage(image.reference)), pendingSizeGib: null };
    }
    // The registry may have taken its time.
    const record = this.updatable(id, op);
    this.refuseOtherVersion(record, op, version);
    if (plan.change.name !== undefined) this.refuseTakenName(plan.change.name, op);
    if (rebuild === undefined && plan.credentials === undefined && Object.keys(plan.change).length === 0) {
      throw cacheError('NoNeedUpdate', { op, subject: id, what: 'it is as the request wants it already' });
    }
    if (rebuild !== undefined && !record.isWhole) {
      throw cacheError('OperationConflict', { op, subject: id, what: `it is still being filled (${record.progress} %)` });
    }
    if (isDry) throw dryRun(op, id);
    const nowUs = catalogue.time.nowUs();
    const event: NewEvent = {
      type: 'Normal',
      reason: rebuild === undefined ? 'Updated' : 'Updating',
      message: rebuild === undefined ? `changed: ${Object.keys(patch).join(', ')}` : 'the former content serves until the new one is whole',
    };
    catalogue.change(
      id,
      {
        ...plan.change,
        ...(plan.credentials === undefined ? {} : { credentials: secrets.seal(plan.credentials) }),
        ...(rebuild === undefined ? {} : { status: 'Updating', ...rebuild, progress: 0, attempts: 0, workSinceUs: nowUs, failure: null }),
      },
      [event],
      remember,
    );
  }

  /** Only Ready and UpdateFailed caches are updated (R123). */
  private updatable(id: string, op: string): CacheRecord {
    const record = this.parts.catalogue.get(id);
    if (record.status === 'Updating') throw this.conflict(record, op);
    if (record.status === 'Ready' || record.status === 'UpdateFailed') return record;
    throw cacheError('ImageCache.IncorrectStatus', {
      ...{ op, subject: id, what: `its status is ${record.status}; Ready and UpdateFailed caches can be updated` },
      details: { status: record.status },
    });
  }

  /** True when a tag names something else than the cache holds. */
  private async hasMoved(record: CacheRecord): Promise<boolean> {
    const { store, secrets, signal } = this.parts;
    const deadline = AbortSignal.any([signal, AbortSignal.timeout(MOVED_LIMIT_MS)]);
    const access = secrets.accessOf(record);
    for (const { reference, resolved } of record.images) {
      if (parseReference(reference).digest !== undefined) continue;
      if ((await store.resolve(reference, access, deadline)).digest !== resolved?.digest) return true;
    }
    return false;
  }

  private refuseTakenName(name: string, op: string): void {
    const holder = this.parts.catalogue.named(name);
    if (holder === undefined) return;
    throw cacheError('ImageCache.NameDuplicated', {
      op,
      subject: name,
      what: `${holder.id} has this name`,
      details: { imageCacheId: holder.id },
    });
  }

  private refuseOtherVersion(record: CacheRecord, op: string, wanted: number | undefined): void {
    if (wanted !== undefined && wanted !== record.version) throw this.conflict(record, op, wanted);
  }

  private conflict({ id, version, status }: CacheRecord, op: string, wanted?: number): AppError {
    const what =
      wanted === undefined
        ? `another update is under way (status ${status})`
        : `its version is ${version}, not ${wanted}: it was changed meanwhile`;
    return cacheError('OperationConflict', { op, subject: id, what, details: { version } });
  }
}

/** What is kept of the request and does nothing here (R118), and what a node cannot do (R128). */
function notesOf(cloud: Readonly<Record<string, string>>): NewEvent[] {
  const names = Object.keys(cloud);
  if (names.length === 0) return [];
  const notes: NewEvent[] = [
    { type: 'Normal', reason: 'WithoutEffect', message: `kept, and without effect on a node: ${names.join(', ')}` },
  ];
  const copies = names.filter((name) => /^(flash|standard)copycount$/i.test(name) && Number(cloud[name]) > 1);
  if (copies.length > 0) {
    const what = `${copies.map((name) => `${name} ${cloud[name]}`).join(', ')}: this node keeps one verified copy; each node that has the cache keeps another`;
    notes.push({ type: 'Warning', reason: 'OneCopy', message: what });
  }
  return notes;
}

function checkToken(token: string | undefined, op: string): void {
  if (token !== undefined) checkRequest(clientTokenSchema, token, op);
}

function dryRun(op: string, subject: string): AppError {
  return cacheError('DryRunOperation', { op, subject, what: 'a dry run; it would have been accepted' });
}
