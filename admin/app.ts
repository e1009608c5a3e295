/**
 * The admin API as a Hono application: routes with their schemas, from which `/openapi.json` is written. It knows no transport (see
 * `server.ts`) and no part but through {@link AdminServices}.
 */
import { createRoute, OpenAPIHono, z } from '@hono/zod-openapi';
import { bodyLimit } from 'hono/body-limit';
import { AppError } from '../plugin/base/errors.ts';
import type { Logger } from '../plugin/base/log.ts';
import type { ConvertService } from '../plugin/convert/service.ts';
import { addConvertRoutes } from './convert-routes.ts';
import { errorSchema, wireError } from './errors.ts';
import {
  ANSWER_DEADLINE_MS,
  MATERIALIZE_DEADLINE_MS,
  MAX_MATERIALIZATIONS,
  MAX_REFERENCE_CHARS,
  MAX_REQUEST_BYTES,
  PAGE_ROWS_DEFAULT,
  PAGE_ROWS_MAX,
} from './limits.ts';
import { createMetrics } from './metrics.ts';
import {
  type AdminServices,
  deviceSchema,
  eventSchema,
  materializeResultSchema,
  snapshotSchema,
  statusSchema,
  storeSchema,
  trafficSchema,
} from './services.ts';

export interface AdminAppOptions {
  services: AdminServices;
  convert: ConvertService;
  version: string;
  log: Logger;
}

const json = <T extends z.ZodType>(schema: T, description: string) => ({ description, content: { 'application/json': { schema } } });
const failure = json(errorSchema, 'What failed, on what, and the limit or expectation');

const limitQuery = z.coerce
  .number()
  .int()
  .min(1)
  .max(PAGE_ROWS_MAX)
  .default(PAGE_ROWS_DEFAULT)
  .openapi({ description: `rows per page, 1 to ${PAGE_ROWS_MAX}` });

const routes = {
  health: createRoute({
    method: 'get',
    path: '/healthz',
    summary: '200 when every part works, 503 with the reasons otherwise',
    responses: {
      200: json(z.object({ status: z.literal('ok') }), 'ready'),
      503: json(z.object({ status: z.literal('degraded'), degraded: z.array(z.string()) }), 'degraded'),
      default: failure,
    },
  }),
  status: createRoute({
    method: 'get',
    path: '/v1/status',
    summary: 'Processes, counts and what does not work',
    responses: { 200: json(statusSchema, 'status'), default: failure },
  }),
  snapshots: createRoute({
    method: 'get',
    path: '/v1/snapshots',
    summary: 'Snapshots by key, with the decision for their image and why a broken one is broken',
    request: {
      query: z.object({
        broken: z.enum(['true', 'false']).optional().openapi({ description: 'only broken ones, or only usable ones' }),
        after: z.string().max(1024).optional().openapi({ description: 'continue behind this key (`next` of the page before)' }),
        limit: limitQuery,
      }),
    },
    responses: { 200: json(z.object({ snapshots: z.array(snapshotSchema), next: z.string().nullable() }), 'a page'), default: failure },
  }),
  devices: createRoute({
    method: 'get',
    path: '/v1/devices',
    summary: 'Block devices and what was read and fetched for each',
    responses: { 200: json(z.object({ devices: z.array(deviceSchema) }), 'devices'), default: failure },
  }),
  store: createRoute({
    method: 'get',
    path: '/v1/store',
    summary: 'The local store: budget, use, evictions',
    responses: { 200: json(storeSchema, 'store'), default: failure },
  }),
  traffic: createRoute({
    method: 'get',
    path: '/v1/traffic',
    summary: 'What the kernel read and the registries sent, on the whole node',
    responses: { 200: json(trafficSchema, 'traffic'), default: failure },
  }),
  events: createRoute({
    method: 'get',
    path: '/v1/events',
    summary: 'What happened lately, oldest first',
    request: {
      query: z.object({
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
      body: {
        required: true,
        content: { 'application/json': { schema: z.strictObject({ reference: z.string().min(1).max(MAX_REFERENCE_CHARS) }) } },
      },
    },
    responses: { 200: json(materializeResultSchema, 'every layer is local'), default: failure },
  }),
};

/** A signal that fires when the caller hangs up or the deadline passes. */
function deadline(request: Request, limitMs: number): AbortSignal {
  return AbortSignal.any([request.signal, AbortSignal.timeout(limitMs)]);
}

/** Awaits `work`, but no longer than its signal allows: a service that forgets the signal must not hold the caller. */
async function within<T>(op: string, signal: AbortSignal, work: (signal: AbortSignal) => Promise<T>): Promise<T> {
  const expired = (): AppError => {
    const isTimeout = signal.reason instanceof DOMException && signal.reason.name === 'TimeoutError';
    return new AppError(isTimeout ? 'DeadlineExceeded' : 'Canceled', {
      op,
      subject: 'request',
      what: isTimeout ? 'no answer within the deadline' : 'the caller hung up',
      cause: signal.reason,
    });
  };
  if (signal.aborted) throw expired();
  let onAbort = (): void => {};
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => reject(expired());
    signal.addEventListener('abort', onAbort, { once: true });
  });
  try {
    return await Promise.race([work(signal), aborted]);
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/** Builds the application. Every failure is answered as AppError JSON; what is unexpected is logged whole and answered without detail. */
export function createAdminApp({ services, convert, version, log }: AdminAppOptions): OpenAPIHono {
  const metrics = createMetrics(services);
  let materializations = 0;

  const app = new OpenAPIHono({
    defaultHook: (result) => {
      if (result.success) return;
      const what = result.error.issues.map((issue) => `${issue.path.join('.') || 'body'}: ${issue.message}`).join('; ');
      throw new AppError('InvalidArgument', { op: 'read', subject: `request ${result.target}`, what: what.slice(0, 1000) });
    },
  });

  app.use(
    bodyLimit({
      maxSize: MAX_REQUEST_BYTES,
      onError: () => {
        throw new AppError('InvalidArgument', { op: 'read', subject: 'request body', what: `longer than ${MAX_REQUEST_BYTES} bytes` });
      },
    }),
  );

  app.onError((error, c) => {
    // Hono's own refusals (a body that is no JSON) carry their answer.
    const isRefusal = 'getResponse' in error;
    const thrown = isRefusal
      ? new AppError('InvalidArgument', { op: 'read', subject: 'request body', what: error.message, cause: error })
      : error;
    if (!(thrown instanceof AppError)) log.error({ err: error, path: c.req.path }, 'admin request failed');
    const { status, body, headers } = wireError(thrown);
    return c.json(body, status, headers);
  });
  app.notFound((c) => {
    const path = c.req.path.slice(0, 200);
    const { status, body } = wireError(
      new AppError('NotFound', { op: c.req.method, subject: path, what: 'no such resource; /openapi.json lists them' }),
    );
    return c.json(body, status);
  });

  app.openapi(routes.health, async (c) => {
    const status = await within('read status', deadline(c.req.raw, ANSWER_DEADLINE_MS), (signal) => services.status(signal));
    return status.isReady
      ? c.json({ status: 'ok' as const }, 200)
      : c.json({ status: 'degraded' as const, degraded: status.degraded }, 503);
  });

  app.openapi(routes.status, async (c) => {
    return c.json(await within('read status', deadline(c.req.raw, ANSWER_DEADLINE_MS), (signal) => services.status(signal)), 200);
  });

  app.openapi(routes.snapshots, async (c) => {
    const { broken, after, limit } = c.req.valid('query');
    const all = await within('list snapshots', deadline(c.req.raw, ANSWER_DEADLINE_MS), (signal) => services.snapshots(signal));
    const rows = all.filter(
      (row) => (after === undefined || row.key > after) && (broken === undefined || (row.broken !== null) === (broken === 'true')),
    );
    const page = rows.slice(0, limit);
    return c.json({ snapshots: page, next: rows.length > limit ? (page.at(-1)?.key ?? null) : null }, 200);
  });

  app.openapi(routes.devices, async (c) => {
    const devices = await within('list devices', deadline(c.req.raw, ANSWER_DEADLINE_MS), (signal) => services.devices(signal));
    return c.json({ devices: [...devices] }, 200);
  });

  app.openapi(routes.store, async (c) => {
    return c.json(await within('read store', deadline(c.req.raw, ANSWER_DEADLINE_MS), (signal) => services.store(signal)), 200);
  });

  app.openapi(routes.traffic, async (c) => {
    return c.json(await within('read traffic', deadline(c.req.raw, ANSWER_DEADLINE_MS), (signal) => services.traffic(signal)), 200);
  });

  app.openapi(routes.events, async (c) => {
    const { since, limit } = c.req.valid('query');
    const all = await within('list events', deadline(c.req.raw, ANSWER_DEADLINE_MS), (signal) => services.events(signal));
    if (since === undefined) return c.json({ events: all.slice(-limit) }, 200);
    const sinceMs = Date.parse(since);
    return c.json({ events: all.filter((event) => Date.parse(event.at) >= sinceMs).slice(0, limit) }, 200);
  });

  app.openapi(routes.materialize, async (c) => {
    const { reference } = c.req.valid('json');
    if (materializations >= MAX_MATERIALIZATIONS) {
      const what = `${MAX_MATERIALIZATIONS} materializations are running already`;
      throw new AppError('ResourceExhausted', { op: 'materialize', subject: reference, what, retryAfterMs: 10_000 });
    }
    materializations += 1;
    try {
      const signal = deadline(c.req.raw, MATERIALIZE_DEADLINE_MS);
      return c.json(await within('materialize', signal, () => services.materialize(reference, signal)), 200);
    } finally {
      materializations -= 1;
    }
  });

  addConvertRoutes(app, convert);

  app.get('/metrics', async (c) => {
    const text = await within('render metrics', deadline(c.req.raw, ANSWER_DEADLINE_MS), (signal) => metrics.render(signal));
    return c.text(text, 200, { 'content-type': metrics.contentType });
  });

  app.doc31('/openapi.json', {
    openapi: '3.1.0',
    info: { title: 'overlaybd-sidecar admin API', version, description: 'Served on a root-only unix socket; see README.md.' },
  });
  return app;
}
