/** blockd's control interface: JSON over HTTP on a root-only unix socket, for the control plane alone. */
import fs from 'node:fs';
import http from 'node:http';
import { getRequestListener } from '@hono/node-server';
import { type Context, Hono } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import { z } from 'zod';
import { AppError, describeError, ERROR_STATUS } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { blobSourceSchema } from '../file/device-spec.ts';
import type { ChunkStore } from '../file/store/chunk-store.ts';
import type { Devices } from './devices.ts';
import type { EventRing } from './events.ts';
import type { Fills } from './fills.ts';
import type { Grants } from './grants.ts';
import { MAX_PINNED_BLOBS, ownerSchema } from './pin-files.ts';
import type { Pins } from './pins.ts';
import { parseDeviceSpec } from './spec-files.ts';
import type { DataPlaneStats } from './stats.ts';

/** A spec of 255 layers is far smaller, and the pins of a cache are a few hundred bytes each. */
const MAX_BODY_BYTES = 4 * 1024 * 1024;

/** Digests in one question. */
const MAX_DIGESTS = 10_000;

const blobsSchema = z.array(blobSourceSchema).max(MAX_PINNED_BLOBS);
const evictSchema = z.strictObject({ bytes: z.int().min(1) });
/** Blobs of one answer: 150 bytes each. */
const limitSchema = z.int().min(1).max(10_000);
const digestsSchema = z.array(z.string().max(128)).max(MAX_DIGESTS);

export interface ControlServices {
  devices: Devices;
  fills: Fills;
  pins: Pins;
  /** Loaded at the first call: most nodes need none. */
  grants(): Promise<Grants>;
  events: EventRing;
  store: Pick<ChunkStore, 'list' | 'evict'>;
  stats(): Promise<DataPlaneStats>;
  log: Logger;
}

/** The routes; `signal` of a request is aborted when the caller hangs up. */
export function createControlApp(services: ControlServices): Hono {
  const { devices, fills, pins, events } = services;
  const app = new Hono();
  app.use(bodyLimit({ maxSize: MAX_BODY_BYTES }));
  app.get('/ping', (c) => c.json({ ok: true }));
  app.post('/devices', async (c) => c.json(await devices.attach(parseDeviceSpec(await c.req.json(), 'request'), c.req.raw.signal)));
  app.post('/check', async (c) => c.json(await devices.check(parseDeviceSpec(await c.req.json(), 'request'), c.req.raw.signal)));
  app.delete('/devices/:id', async (c) => {
    await devices.detach(c.req.param('id'));
    return c.json({});
  });
  app.get('/devices', (c) => c.json(devices.list()));
  app.post('/fill', async (c) => c.json(await fills.fetchWhole(await bodyOf(c, blobSourceSchema), c.req.raw.signal)));
  app.get('/pins', (c) => c.json(pins.list()));
  app.get('/pins/:owner', async (c) => c.json(await pins.status(ownerOf(c))));
  app.put('/pins/:owner', async (c) => {
    await pins.set(ownerOf(c), await bodyOf(c, blobsSchema));
    return c.json({});
  });
  app.post('/pins/:owner/fill', async (c) => {
    const isCheckedAgain = c.req.query('again') === 'true';
    return c.json(await pins.fill(ownerOf(c), await bodyOf(c, blobSourceSchema), c.req.raw.signal, { isCheckedAgain }));
  });
  app.get('/pins/:owner/filled', (c) => c.json(pins.filledBytes(ownerOf(c))));
  app.put('/pins/:owner/grant', async (c) => {
    (await services.grants()).set(ownerOf(c), await c.req.json());
    return c.json({});
  });
  app.delete('/pins/:owner', async (c) => {
    await pins.release(ownerOf(c));
    return c.json({});
  });
  app.post('/whole', async (c) => c.json(await pins.wholeOf(await bodyOf(c, digestsSchema))));
  app.get('/blobs', (c) => c.json(services.store.list(checked(Number(c.req.query('limit')), limitSchema, c.req.path))));
  app.post('/evict', async (c) => c.json(await services.store.evict((await bodyOf(c, evictSchema)).bytes)));
  app.get('/stats', async (c) => c.json(await services.stats()));
  app.get('/events', (c) => c.json(events.since(Number(c.req.query('since') ?? 0))));
  app.onError((error, c) => {
    const failure =
      error instanceof AppError ? error : new AppError('Internal', { op: c.req.method, subject: c.req.path, what: describeError(error) });
    if (failure.code === 'Internal') services.log.error({ err: error }, 'control request failed');
    return c.json(failure.toJSON(), ERROR_STATUS[failure.code].http as ContentfulStatusCode);
  });
  return app;
}

function checked<T>(value: unknown, schema: z.ZodType<T>, subject: string): T {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw new AppError('InvalidArgument', { op: 'read control request', subject, what: result.error.message.slice(0, 500) });
}

async function bodyOf<T>(c: Context, schema: z.ZodType<T>): Promise<T> {
  return checked(await c.req.json(), schema, c.req.path);
}

function ownerOf(c: Context): string {
  return checked(c.req.param('owner'), ownerSchema, c.req.path);
}

/** Listens on `socketPath`, which only root can open; replaces what a dead predecessor left there. */
export async function listenControl(app: Hono, socketPath: string): Promise<http.Server> {
  fs.rmSync(socketPath, { force: true });
  const server = http.createServer(getRequestListener(app.fetch));
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    const before = process.umask(0o177);
    server.listen(socketPath, () => resolve());
    process.umask(before);
  });
  return server;
}
