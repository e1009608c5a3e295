/** Image caches over REST: create, list, look, change, delete, follow, and explain a match. */
import { createRoute, z } from '@hono/zod-openapi';
import { AppError, isAppError } from '../plugin/base/errors.ts';
import type { Logger } from '../plugin/base/log.ts';
import { type CacheService, clientTokenSchema } from '../plugin/cache/service.ts';
import {
  cacheChangeSchema,
  cacheEventsSchema,
  cachePageSchema,
  cacheSchema,
  createBodySchema,
  dryRunQuerySchema,
  explanationSchema,
  listQuerySchema,
  matchBodySchema,
  updateBodySchema,
  usageSchema,
  viewCache,
  viewChange,
  viewEvents,
  viewExplanation,
  viewUsage,
  watchQuerySchema,
} from './cache-schemas.ts';
import type { AdminApp } from './context.ts';
import { RequestRefusal } from './errors.ts';
import { streamEvents } from './event-stream.ts';
import { PAGE_WATCHERS_MAX } from './limits.ts';
import { body, eventStream, failure, json, noQuery, Watchers } from './route-kit.ts';

const idParam = z.object({
  id: z
    .string()
    .min(1)
    .max(64)
    .openapi({ param: { name: 'id', in: 'path' }, example: 'imc-0123456789abcdefghij' }),
});
const changeHeaders = z.object({
  'idempotency-key': clientTokenSchema.optional().openapi({ description: 'as `clientToken` of the body' }),
});
const matchHeaders = changeHeaders.extend({
  'if-match': z
    .string()
    .max(64)
    .optional()
    .openapi({ description: 'the ETag that was seen: refused with 412 when the cache has changed since' }),
});
const withETag = (description: string) => ({
  ...json(cacheSchema, description),
  headers: { etag: { description: 'the version, for If-Match', schema: { type: 'string' as const } } },
});

const routes = {
  create: createRoute({
    method: 'post',
    path: '/v1/image-caches',
    summary: 'Makes a cache; durable when answered, the images follow',
    request: { headers: changeHeaders, query: dryRunQuerySchema, body: body(createBodySchema) },
    responses: { 201: withETag('made, or made before with the same client token'), default: failure },
  }),
  list: createRoute({
    method: 'get',
    path: '/v1/image-caches',
    summary: 'Caches, newest first; with matchImage, what a pod of these images would match, best first',
    request: { query: listQuerySchema },
    responses: { 200: json(cachePageSchema, 'a page'), default: failure },
  }),
  watch: createRoute({
    method: 'get',
    path: '/v1/image-caches:watch',
    summary: 'Every cache as `added`, then each change, as server-sent events (`cache`), until the caller hangs up',
    request: { query: watchQuerySchema },
    responses: { 200: eventStream('data is a CacheChange'), default: failure },
  }),
  match: createRoute({
    method: 'post',
    path: '/v1/image-caches:match',
    summary: 'Explains which cache a pod would get: every candidate with its scores and why it lost; changes nothing',
    request: { query: noQuery, body: body(matchBodySchema) },
    responses: { 200: json(explanationSchema, 'explanation'), default: failure },
  }),
  get: createRoute({
    method: 'get',
    path: '/v1/image-caches/{id}',
    summary: 'One cache with its events',
    request: { query: noQuery, params: idParam },
    responses: { 200: withETag('cache'), default: failure },
  }),
  update: createRoute({
    method: 'patch',
    path: '/v1/image-caches/{id}',
    summary: 'Changes what is given; new images or size are built while the former content serves',
    request: { params: idParam, headers: matchHeaders, query: dryRunQuerySchema, body: body(updateBodySchema) },
    responses: { 200: withETag('changed, or Updating'), default: failure },
  }),
  remove: createRoute({
    method: 'delete',
    path: '/v1/image-caches/{id}',
    summary: 'Removes a cache; what running containers use goes with the last of them',
    request: { query: noQuery, params: idParam },
    responses: { 204: { description: 'removed' }, default: failure },
  }),
  events: createRoute({
    method: 'get',
    path: '/v1/image-caches/{id}/events',
    summary: 'The 50 newest events of a cache, oldest first',
    request: { query: noQuery, params: idParam },
    responses: { 200: json(cacheEventsSchema, 'events'), default: failure },
  }),
  usage: createRoute({
    method: 'get',
    path: '/v1/usage',
    summary: 'Quotas and bytes of image caches, and what of them is used',
    request: { query: noQuery },
    responses: { 200: json(usageSchema, 'usage'), default: failure },
  }),
};

const quoted = (version: number): string => `"${version}"`;

/** The version of If-Match; undefined when any will do. Throws InvalidArgument. */
function versionOf(header: string | undefined): number | undefined {
  if (header === undefined || header === '*') return undefined;
  const digits = /^"(\d{1,15})"$/.exec(header)?.[1];
  if (digits !== undefined) return Number(digits);
  throw new AppError('InvalidArgument', {
    op: 'read',
    subject: 'header if-match',
    what: `${header.slice(0, 64)} is not an ETag of this API`,
  });
}

/** One client token from header and body. Throws InvalidArgument when they differ. */
function clientTokenOf(header: string | undefined, inBody: string | undefined): { clientToken?: string } {
  if (header !== undefined && inBody !== undefined && header !== inBody) {
    throw new AppError('InvalidArgument', { op: 'read', subject: 'client token', what: 'header and body differ' });
  }
  const clientToken = inBody ?? header;
  return clientToken === undefined ? {} : { clientToken };
}

/** Leaves out what was not given. */
function given<T extends object>(values: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as never;
}

/** Adds the routes. Failures are thrown, and answered by the application. */
export function addCacheRoutes(app: AdminApp, caches: CacheService, log: Logger): void {
  app.openapi(routes.create, async (c) => {
    const { clientToken, ...request } = c.req.valid('json');
    const options = { ...clientTokenOf(c.req.valid('header')['idempotency-key'], clientToken), ...given(c.req.valid('query')) };
    const cache = await caches.create(given(request), options);
    return c.json(viewCache(cache), 201, { etag: quoted(cache.version), location: `/v1/image-caches/${cache.imageCacheId}` });
  });
  app.openapi(routes.list, (c) => {
    const { id, name, tag, matchImage, limit, after, ...rest } = c.req.valid('query');
    const filter = given({ ...rest, imageCacheIds: id, imageCacheName: name, tags: tag?.map(given), matchImages: matchImage });
    const page = caches.list(filter, { limit, ...given({ after }) });
    return c.json({ imageCaches: page.caches.map(viewCache), next: page.next, totalCount: page.totalCount }, 200);
  });
  app.openapi(routes.match, (c) => c.json(viewExplanation(caches.explain(given(c.req.valid('json')))), 200));
  app.openapi(routes.get, (c) => {
    const cache = caches.get(c.req.valid('param').id);
    return c.json(viewCache(cache), 200, { etag: quoted(cache.version) });
  });
  app.openapi(routes.update, async (c) => {
    const { clientToken, ...patch } = c.req.valid('json');
    const headers = c.req.valid('header');
    const version = versionOf(headers['if-match']);
    const options = { ...given({ version }), ...clientTokenOf(headers['idempotency-key'], clientToken), ...given(c.req.valid('query')) };
    try {
      const cache = await caches.update(c.req.valid('param').id, patch, options);
      return c.json(viewCache(cache), 200, { etag: quoted(cache.version) });
    } catch (error) {
      throw version === undefined ? error : asFailedCondition(error);
    }
  });
  app.openapi(routes.remove, async (c) => {
    await caches.delete(c.req.valid('param').id);
    return c.body(null, 204);
  });
  app.openapi(routes.events, (c) => c.json({ events: viewEvents(caches.events(c.req.valid('param').id)) }, 200));
  app.openapi(routes.usage, (c) => c.json(viewUsage(caches.usage()), 200));
  addWatch(app, caches, log);
}

/** HTTP's name for "If-Match did not hold" is 412. */
function asFailedCondition(error: unknown): unknown {
  if (!isAppError(error, 'Conflict') || error.details.reason !== 'OperationConflict') return error;
  const { op, subject, details } = error;
  const what = String(error.toJSON().what);
  return new RequestRefusal(412, 'Conflict', { op, subject, what, details, cause: error });
}

function addWatch(app: AdminApp, caches: CacheService, log: Logger): void {
  app.openAPIRegistry.register('CacheChange', cacheChangeSchema);
  const watchers = new Watchers(PAGE_WATCHERS_MAX);
  app.openapi(routes.watch, (c) => {
    const { id, owner } = c.req.valid('query');
    const leave = watchers.enter('image caches');
    return streamEvents(c, log, leave, async (stream, signal) => {
      for await (const change of caches.watch(signal, given({ imageCacheIds: id, owner }))) {
        await stream.writeSSE({ event: 'cache', data: JSON.stringify(viewChange(change)) });
      }
    });
  });
}
