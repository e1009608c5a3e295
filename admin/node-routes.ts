/** Routes about this node: status, snapshots, devices, store, traffic, events, and fetching what is missing of an image. */
import { createRoute, z } from '@hono/zod-openapi';
import { AppError } from '../plugin/base/errors.ts';
import type { AdminApp } from './context.ts';
import { deadline, soon, within } from './deadline.ts';
import { EVENTS_MAX, MATERIALIZE_DEADLINE_MS, MAX_MATERIALIZATIONS, MAX_REFERENCE_CHARS } from './limits.ts';
import { body, failure, json, limitQuery, nextKey, noQuery } from './route-kit.ts';
import {
  type AdminServices,
  deviceSchema,
  eventSchema,
  evictionSchema,
  materializeResultSchema,
  snapshotSchema,
  statusSchema,
  storeBlobSchema,
  storeSchema,
  trafficSchema,
} from './services.ts';

const routes = {
  status: createRoute({
    method: 'get',
    path: '/v1/status',
    summary: 'Processes, counts and what does not work',
    request: { query: noQuery },
    responses: { 200: json(statusSchema, 'status'), default: failure },
  }),
  snapshots: createRoute({
    method: 'get',
    path: '/v1/snapshots',
    summary: 'Snapshots by key, with the decision for their image and why a broken one is broken',
    request: {
      query: z.strictObject({
        broken: z.enum(['true', 'false']).optional().openapi({ description: 'only broken ones, or only usable ones' }),
        after: z.string().max(1024).optional().openapi({ description: 'continue behind this key (`next` of the page before)' }),
        limit: limitQuery,
      }),
    },
    responses: { 200: json(z.object({ snapshots: z.array(snapshotSchema), next: nextKey }), 'a page'), default: failure },
  }),
  devices: createRoute({
    method: 'get',
    path: '/v1/devices',
    summary: 'Block devices and what was read and fetched for each',
    request: { query: noQuery },
    responses: { 200: json(z.object({ devices: z.array(deviceSchema) }), 'devices'), default: failure },
  }),
  store: createRoute({
    method: 'get',
    path: '/v1/store',
    summary: 'The local store: budget, use, evictions',
    request: { query: noQuery },
    responses: { 200: json(storeSchema, 'store'), default: failure },
  }),
  blobs: createRoute({
    method: 'get',
    path: '/v1/store/blobs',
    summary: 'The ledger: every blob of the store with its bytes and why it stays; least recently used first',
    request: { query: z.strictObject({ limit: limitQuery }) },
    responses: {
      200: json(z.object({ blobs: z.array(storeBlobSchema), totalCount: z.int().min(0) }), 'a page'),
      default: failure,
    },
  }),
  evict: createRoute({
    method: 'post',
    path: '/v1/store:evict',
    summary: 'Removes what nothing uses, least recently used first, until at least so many bytes are free',
    request: {
      query: noQuery,
      body: body(z.strictObject({ bytes: z.int().min(1).openapi({ description: 'bytes to free' }) }).openapi('EvictRequest')),
    },
    responses: { 200: json(evictionSchema, 'what went'), default: failure },
  }),
  traffic: createRoute({
    method: 'get',
    path: '/v1/traffic',
    summary: 'What the kernel read and the registries sent, on the whole node',
    request: { query: noQuery },
    responses: { 200: json(trafficSchema, 'traffic'), default: failure },
  }),
  events: createRoute({
    method: 'get',
    path: '/v1/events',
    summary: 'What happened lately, changes over this API and refusals included, oldest first',
    request: {
      query: z.strictObject({
        since: z.iso.datetime().optional().openapi({ description: 'only events at or after this time (ISO 8601, UTC)' }),
        limit: limitQuery,
      }),
    },
    responses: { 200: json(z.object({ events: z.array(eventSchema) }), 'events'), default: failure },
  }),
  materialize: createRoute({
    method: 'post',
    path: '/v1/materialize',
    summary: 'Fetches what is missing of an image, so that it can be exported or pushed; ends when the caller hangs up',
    request: {
      query: noQuery,
      body: body(z.strictObject({ reference: z.string().min(1).max(MAX_REFERENCE_CHARS) }).openapi('MaterializeRequest')),
    },
    responses: { 200: json(materializeResultSchema, 'every layer is local'), default: failure },
  }),
};

export function addNodeRoutes(app: AdminApp, services: AdminServices): void {
  app.openapi(routes.status, async (c) => c.json(await soon('read status', c.req.raw, (signal) => services.status(signal)), 200));
  app.openapi(routes.snapshots, async (c) => {
    const { broken, after, limit } = c.req.valid('query');
    const all = await soon('list snapshots', c.req.raw, (signal) => services.snapshots(signal));
    const rows = all.filter(
      (row) => (after === undefined || row.key > after) && (broken === undefined || (row.broken !== null) === (broken === 'true')),
    );
    const page = rows.slice(0, limit);
    return c.json({ snapshots: page, next: rows.length > limit ? (page.at(-1)?.key ?? null) : null }, 200);
  });
  app.openapi(routes.devices, async (c) => {
    const devices = await soon('list devices', c.req.raw, (signal) => services.devices(signal));
    return c.json({ devices: [...devices] }, 200);
  });
  app.openapi(routes.store, async (c) => c.json(await soon('read store', c.req.raw, (signal) => services.store(signal)), 200));
  app.openapi(routes.blobs, async (c) => {
    const { limit } = c.req.valid('query');
    return c.json(await soon('list blobs', c.req.raw, (signal) => services.storeBlobs(limit, signal)), 200);
  });
  app.openapi(routes.evict, async (c) => {
    const { bytes } = c.req.valid('json');
    return c.json(await soon('evict', c.req.raw, (signal) => services.evict(bytes, signal)), 200);
  });
  app.openapi(routes.traffic, async (c) => c.json(await soon('read traffic', c.req.raw, (signal) => services.traffic(signal)), 200));
  app.openapi(routes.events, async (c) => {
    const { since, limit } = c.req.valid('query');
    const wanted = since === undefined ? limit : EVENTS_MAX;
    const all = await soon('list events', c.req.raw, (signal) => services.events(wanted, signal));
    if (since === undefined) return c.json({ events: [...all] }, 200);
    const sinceMs = Date.parse(since);
    return c.json({ events: all.filter((event) => Date.parse(event.at) >= sinceMs).slice(0, limit) }, 200);
  });
  addMaterialize(app, services);
}

function addMaterialize(app: AdminApp, services: AdminServices): void {
  let running = 0;
  app.openapi(routes.materialize, async (c) => {
    const { reference } = c.req.valid('json');
    if (running >= MAX_MATERIALIZATIONS) {
      const what = `${MAX_MATERIALIZATIONS} materializations are running already`;
      throw new AppError('ResourceExhausted', { op: 'materialize', subject: reference, what, retryAfterMs: 10_000 });
    }
    running += 1;
    try {
      const signal = deadline(c.req.raw, MATERIALIZE_DEADLINE_MS);
      return c.json(await within('materialize', signal, () => services.materialize(reference, signal)), 200);
    } finally {
      running -= 1;
    }
  });
}
