/** blockd's control interface: JSON over HTTP on a root-only unix socket, for the control plane alone. */
import fs from 'node:fs';
import http from 'node:http';
import { getRequestListener } from '@hono/node-server';
import { Hono } from 'hono';
import { bodyLimit } from 'hono/body-limit';
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import { AppError, describeError, ERROR_STATUS } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { blobSourceSchema } from '../file/device-spec.ts';
import type { Devices } from './devices.ts';
import type { EventRing } from './events.ts';
import type { Fills } from './fills.ts';
import { parseDeviceSpec } from './spec-files.ts';
import type { DataPlaneStats } from './stats.ts';

/** A spec of 255 layers is far smaller. */
const MAX_BODY_BYTES = 4 * 1024 * 1024;

export interface ControlServices {
  devices: Devices;
  fills: Fills;
  events: EventRing;
  stats(): Promise<DataPlaneStats>;
  log: Logger;
}

/** The routes; `signal` of a request is aborted when the caller hangs up. */
export function createControlApp(services: ControlServices): Hono {
  const { devices, fills, events } = services;
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
  app.post('/fill', async (c) => {
    const source = blobSourceSchema.safeParse(await c.req.json());
    if (!source.success)
      throw new AppError('InvalidArgument', { op: 'fill', subject: 'request', what: source.error.message.slice(0, 500) });
    return c.json(await fills.fetchWhole(source.data, c.req.raw.signal));
  });
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
