/** The vendor's parameters as requests of the cache service, and its caches as the vendor's answers (R118, R119, R129, R130, R132). */
import type { z } from '@hono/zod-openapi';
import {
  type CacheEvent,
  type CacheFilter,
  type CacheUsage,
  type CreateCacheRequest,
  createCacheRequestSchema,
  type ImageCache,
  type UpdateCacheRequest,
  updateCacheRequestSchema,
} from '../../plugin/cache/service.ts';
import { issuesText } from '../route-kit.ts';
import { invalidParameter, type Params } from './params.ts';

/** Names of the vendor's cloud: kept with the cache, without effect on a node. */
const CLOUD_TEXTS = ['ZoneId', 'SecurityGroupId', 'EipInstanceId', 'FlashCopyCount', 'StandardCopyCount', 'Annotations'] as const;
const MAX_VSWITCHES = 10;
const MAX_ACR_REGISTRIES = 20;
const MAX_REGISTRY_NAMES = 20;

/** The name under which the vendor knows a field of ours. */
const vendorName = (field: string): string => field.charAt(0).toUpperCase() + field.slice(1);

/** Checks by the part's own schema; a failure names the vendor's parameter. */
function checked<S extends z.ZodType>(schema: S, value: unknown): z.output<S> {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const [field] = result.error.issues[0]?.path ?? [];
  throw invalidParameter(vendorName(String(field ?? 'request')), issuesText(result.error));
}

/** What create and update share. */
function settingsOf(params: Params): Record<string, unknown> {
  const strategy = params.text('EliminationStrategy');
  return {
    imageCacheName: params.text('ImageCacheName'),
    images: params.list('Image'),
    imageCacheSize: params.integer('ImageCacheSize'),
    retentionDays: params.integer('RetentionDays'),
    eliminationStrategy: strategy === '' ? null : strategy,
    autoMatchImageCache: params.flag('AutoMatchImageCache'),
    flash: params.flag('Flash'),
    tags: params.objects('Tag', ['Key', 'Value'])?.map(({ Key, Value }) => ({ key: Key, value: Value })),
    imageRegistryCredentials: params
      .objects('ImageRegistryCredential', ['Server', 'UserName', 'Password'])
      ?.map(({ Server, UserName, Password }) => ({ server: Server, userName: UserName, password: Password })),
    plainHttpRegistry: params.commaList('PlainHttpRegistry', MAX_REGISTRY_NAMES),
    insecureRegistry: params.commaList('InsecureRegistry', MAX_REGISTRY_NAMES),
    resourceGroupId: params.text('ResourceGroupId'),
  };
}

/** Absent is not `undefined` to a strict schema with defaults; leave it out. */
function present(values: Record<string, unknown>): Record<string, unknown> {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined));
}

function cloudOf(params: Params): Record<string, string> {
  const cloud: Record<string, string> = {};
  for (const name of ['RegionId', ...CLOUD_TEXTS]) {
    const value = params.text(name);
    if (value !== undefined) cloud[name] = value;
  }
  const switches = params.commaList('VSwitchId', MAX_VSWITCHES);
  if (switches !== undefined) cloud.VSwitchId = switches.join(',');
  const registries = params.below('AcrRegistryInfo');
  const indexes = new Set(Object.keys(registries).map((name) => name.split('.')[0] ?? ''));
  if (indexes.size > MAX_ACR_REGISTRIES)
    throw invalidParameter('AcrRegistryInfo', `has ${indexes.size} entries, and ${MAX_ACR_REGISTRIES} are allowed`);
  for (const index of indexes) {
    if ((registries[`${index}.InstanceId`] ?? '') === '') throw invalidParameter(`AcrRegistryInfo.${index}.InstanceId`, 'is required');
  }
  if (indexes.size > 0) cloud.AcrRegistryInfo = JSON.stringify(registries);
  return cloud;
}

export interface ChangeOptions {
  clientToken?: string;
  dryRun?: boolean;
}

function optionsOf(params: Params): ChangeOptions {
  const clientToken = params.text('ClientToken');
  const dryRun = params.flag('DryRun');
  return { ...(clientToken === undefined ? {} : { clientToken }), ...(dryRun === undefined ? {} : { dryRun }) };
}

export function readCreate(params: Params): { request: CreateCacheRequest; options: ChangeOptions } {
  const options = optionsOf(params);
  const values = { ...settingsOf(params), cloud: cloudOf(params) };
  params.refuseRest();
  return { request: checked(createCacheRequestSchema, present(values)), options };
}

export function readUpdate(params: Params): { id: string; patch: UpdateCacheRequest; options: ChangeOptions } {
  const id = params.required('ImageCacheId');
  const options = optionsOf(params);
  const values = settingsOf(params);
  // The vendor takes these at an update too; what is kept of them was said at creation.
  cloudOf(params);
  params.refuseRest();
  return { id, patch: checked(updateCacheRequestSchema, present(values)), options };
}

export function readDelete(params: Params): string {
  const id = params.required('ImageCacheId');
  params.text('RegionId');
  params.text('ClientToken');
  params.refuseRest();
  return id;
}

export function readDescribe(params: Params): { filter: CacheFilter; page: { limit?: number; after?: string } } {
  const id = params.text('ImageCacheId');
  params.text('RegionId');
  const filter = present({
    imageCacheIds: id === undefined ? undefined : [id],
    imageCacheName: params.text('ImageCacheName'),
    snapshotId: params.text('SnapshotId'),
    image: params.text('Image'),
    tags: params.objects('Tag', ['Key', 'Value'])?.map(({ Key, Value }) => present({ key: Key ?? '', value: Value })),
    resourceGroupId: params.text('ResourceGroupId'),
    matchImages: params.list('MatchImage'),
    imageFullMatch: params.flag('ImageFullMatch'),
    imageMatchCountRequest: params.integer('ImageMatchCountRequest'),
  });
  const page = present({ limit: params.integer('Limit'), after: params.text('NextToken') });
  params.refuseRest();
  return { filter, page };
}

const eventOf = ({ type, reason, message, name, count, firstTimestamp, lastTimestamp }: CacheEvent) => ({
  ...{ Type: type, Reason: reason, Message: message, Name: name },
  ...{ Count: count, FirstTimestamp: firstTimestamp, LastTimestamp: lastTimestamp },
});

/** R130; what a cache has not is left out. */
export function describedCache(cache: ImageCache): Record<string, unknown> {
  const values = {
    ImageCacheId: cache.imageCacheId,
    ImageCacheName: cache.imageCacheName,
    ImageCacheSize: cache.imageCacheSize,
    Images: cache.images.map((image) => image.reference),
    Status: cache.status,
    Progress: `${Math.floor(cache.progress)}%`,
    CreationTime: cache.creationTime,
    ExpireDateTime: cache.expireDateTime,
    LastMatchedTime: cache.lastMatchedTime,
    RegionId: cache.cloud.RegionId,
    ResourceGroupId: cache.resourceGroupId,
    ContainerGroupId: cache.containerGroupId,
    SnapshotId: cache.snapshotId,
    FlashSnapshotId: cache.flashSnapshotId,
    EliminationStrategy: cache.eliminationStrategy,
    RetentionDays: cache.retentionDays,
    Tags: cache.tags.map(({ key, value }) => ({ Key: key, Value: value })),
    Events: cache.events.map(eventOf),
  };
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null && value !== undefined));
}

export function usageAttributes(usage: CacheUsage): Record<string, number> {
  return {
    MaxImageCacheCount: usage.maxImageCacheCount,
    UsedImageCacheCount: usage.usedImageCacheCount,
    MaxAutoImageCacheCount: usage.maxAutoImageCacheCount,
    UsedAutoImageCacheCount: usage.usedAutoImageCacheCount,
    MaxImageCacheBytes: usage.budgetBytes,
    UsedImageCacheBytes: usage.committedBytes,
  };
}
