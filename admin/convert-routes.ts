/** Conversion over the admin API: jobs with their log and progress, rules, notifications with their history, deletion of images. */
import { createRoute, z } from '@hono/zod-openapi';
import type { Logger } from '../plugin/base/log.ts';
import { type ConvertService, JOB_STATES, newNotificationSchema, ruleChangeSchema } from '../plugin/convert/service.ts';
import type { AdminApp } from './context.ts';
import { REMOVE_DEADLINE_MS } from './convert-limits.ts';
import {
  convertBodySchema,
  deliverySchema,
  jobSchema,
  logLineSchema,
  notificationSchema,
  removedImageSchema,
  ruleBodySchema,
  ruleSchema,
  viewDelivery,
  viewJob,
  viewNotification,
  viewRule,
} from './convert-schemas.ts';
import { streamEvents } from './event-stream.ts';
import { MAX_REFERENCE_CHARS, WATCHERS_MAX } from './limits.ts';
import { body, decimal, eventStream, failure, json, limitQuery, noQuery, Watchers } from './route-kit.ts';

const idParam = z.object({
  id: decimal(1).openapi({ param: { name: 'id', in: 'path' } }),
});
const before = decimal(1).optional().openapi({ description: 'only older ones (`next` of the page before)' });
const next = z.int().nullable();
const gone = { description: 'removed' };

const routes = {
  convert: createRoute({
    method: 'post',
    path: '/v1/convert',
    summary: 'Queues the conversion of one tag; the job that does the same already, if there is one',
    request: { query: noQuery, body: body(convertBodySchema) },
    responses: { 202: json(jobSchema, 'queued'), default: failure },
  }),
  jobs: createRoute({
    method: 'get',
    path: '/v1/convert/jobs',
    summary: 'Conversions, newest first',
    request: { query: z.strictObject({ state: z.enum(JOB_STATES).optional(), before, limit: limitQuery }) },
    responses: { 200: json(z.object({ jobs: z.array(jobSchema), next }), 'a page'), default: failure },
  }),
  job: createRoute({
    method: 'get',
    path: '/v1/convert/jobs/{id}',
    summary: 'One conversion with its progress',
    request: { query: noQuery, params: idParam },
    responses: { 200: json(jobSchema, 'job'), default: failure },
  }),
  cancel: createRoute({
    method: 'post',
    path: '/v1/convert/jobs/{id}/cancel',
    summary: 'Ends a conversion; answered when nothing of it runs any more',
    request: { query: noQuery, params: idParam },
    responses: { 200: json(jobSchema, 'FAILED with the code Canceled'), default: failure },
  }),
  log: createRoute({
    method: 'get',
    path: '/v1/convert/jobs/{id}/log',
    summary: 'Lines of a conversion’s log',
    request: { params: idParam, query: z.strictObject({ after: decimal(0).default(0), limit: limitQuery }) },
    responses: { 200: json(z.object({ lines: z.array(logLineSchema), next }), 'a page'), default: failure },
  }),
  watch: createRoute({
    method: 'get',
    path: '/v1/convert/jobs/{id}/events',
    summary: 'Progress as server-sent events (`job`): now and at each change, until the job has ended or the caller hangs up',
    request: { query: noQuery, params: idParam },
    responses: { 200: eventStream('data is a ConvertJob'), default: failure },
  }),
  addRule: createRoute({
    method: 'post',
    path: '/v1/convert/rules',
    summary: 'Converts what is pushed to a repository from now on',
    request: { query: noQuery, body: body(ruleBodySchema) },
    responses: { 201: json(ruleSchema, 'made'), default: failure },
  }),
  rules: createRoute({
    method: 'get',
    path: '/v1/convert/rules',
    summary: 'All rules',
    request: { query: noQuery },
    responses: { 200: json(z.object({ rules: z.array(ruleSchema) }), 'rules'), default: failure },
  }),
  rule: createRoute({
    method: 'get',
    path: '/v1/convert/rules/{id}',
    summary: 'One rule',
    request: { query: noQuery, params: idParam },
    responses: { 200: json(ruleSchema, 'rule'), default: failure },
  }),
  changeRule: createRoute({
    method: 'patch',
    path: '/v1/convert/rules/{id}',
    summary: 'Changes a rule; what is absent stays',
    request: { query: noQuery, params: idParam, body: body(ruleChangeSchema) },
    responses: { 200: json(ruleSchema, 'changed'), default: failure },
  }),
  removeRule: createRoute({
    method: 'delete',
    path: '/v1/convert/rules/{id}',
    summary: 'Removes a rule; jobs that are queued go on',
    request: { query: noQuery, params: idParam },
    responses: { 204: gone, default: failure },
  }),
  addNotification: createRoute({
    method: 'post',
    path: '/v1/convert/notifications',
    summary: 'Tells a receiver of finished conversions',
    request: { query: noQuery, body: body(newNotificationSchema) },
    responses: { 201: json(notificationSchema, 'made'), default: failure },
  }),
  notifications: createRoute({
    method: 'get',
    path: '/v1/convert/notifications',
    summary: 'Receivers of notifications',
    request: { query: noQuery },
    responses: { 200: json(z.object({ notifications: z.array(notificationSchema) }), 'notifications'), default: failure },
  }),
  removeNotification: createRoute({
    method: 'delete',
    path: '/v1/convert/notifications/{id}',
    summary: 'Removes a receiver with its history',
    request: { query: noQuery, params: idParam },
    responses: { 204: gone, default: failure },
  }),
  deliveries: createRoute({
    method: 'get',
    path: '/v1/convert/deliveries',
    summary: 'Notifications sent and to be sent, newest first',
    request: { query: z.strictObject({ before, limit: limitQuery }) },
    responses: { 200: json(z.object({ deliveries: z.array(deliverySchema), next }), 'a page'), default: failure },
  }),
  removeImage: createRoute({
    method: 'delete',
    path: '/v1/images',
    summary: 'Deletes an image from its registry; refused (FailedPrecondition) while something on this node would suffer',
    request: { query: z.strictObject({ reference: z.string().min(1).max(MAX_REFERENCE_CHARS) }) },
    responses: { 200: json(removedImageSchema, 'what is gone'), default: failure },
  }),
};

/** The id to continue behind, when the page is full. */
function nextOf(rows: readonly { id: number }[], wanted: number): number | null {
  return rows.length === wanted ? (rows.at(-1)?.id ?? null) : null;
}

/** Adds the routes. Failures are thrown, and answered by the application. */
export function addConvertRoutes(app: AdminApp, convert: ConvertService, log: Logger): void {
  app.openapi(routes.convert, (c) => {
    const { reference, buildType: _, ...request } = c.req.valid('json');
    return c.json(viewJob(convert.convert(reference, request)), 202);
  });
  app.openapi(routes.jobs, (c) => {
    const { state, before: older, limit: wanted } = c.req.valid('query');
    const rows = convert.jobs({
      limit: wanted,
      ...(state === undefined ? {} : { state }),
      ...(older === undefined ? {} : { before: older }),
    });
    return c.json({ jobs: rows.map(viewJob), next: nextOf(rows, wanted) }, 200);
  });
  app.openapi(routes.job, (c) => c.json(viewJob(convert.job(c.req.valid('param').id)), 200));
  app.openapi(routes.cancel, async (c) => c.json(viewJob(await convert.cancel(c.req.valid('param').id)), 200));
  app.openapi(routes.log, (c) => {
    const { after, limit: wanted } = c.req.valid('query');
    const lines = convert.log(c.req.valid('param').id, after, wanted);
    const more = lines.length === wanted ? (lines.at(-1)?.lineNumber ?? null) : null;
    const shown = lines.map(({ lineNumber, atUs, message }) => ({ lineNumber, at: new Date(atUs / 1000).toISOString(), message }));
    return c.json({ lines: shown, next: more }, 200);
  });
  addJobEvents(app, convert, log);

  app.openapi(routes.addRule, (c) => c.json(viewRule(convert.addRule(c.req.valid('json'))), 201));
  app.openapi(routes.rules, (c) => c.json({ rules: convert.rules().map(viewRule) }, 200));
  app.openapi(routes.rule, (c) => c.json(viewRule(convert.rule(c.req.valid('param').id)), 200));
  app.openapi(routes.changeRule, (c) => c.json(viewRule(convert.changeRule(c.req.valid('param').id, c.req.valid('json'))), 200));
  app.openapi(routes.removeRule, (c) => {
    convert.removeRule(c.req.valid('param').id);
    return c.body(null, 204);
  });

  app.openapi(routes.addNotification, (c) => c.json(viewNotification(convert.addNotification(c.req.valid('json'))), 201));
  app.openapi(routes.notifications, (c) => c.json({ notifications: convert.notifications().map(viewNotification) }, 200));
  app.openapi(routes.removeNotification, (c) => {
    convert.removeNotification(c.req.valid('param').id);
    return c.body(null, 204);
  });
  app.openapi(routes.deliveries, (c) => {
    const { before: older, limit: wanted } = c.req.valid('query');
    const rows = convert.deliveries({ limit: wanted, ...(older === undefined ? {} : { before: older }) });
    return c.json({ deliveries: rows.map(viewDelivery), next: nextOf(rows, wanted) }, 200);
  });

  app.openapi(routes.removeImage, async (c) => {
    const signal = AbortSignal.any([c.req.raw.signal, AbortSignal.timeout(REMOVE_DEADLINE_MS)]);
    return c.json(await convert.removeImage(c.req.valid('query').reference, signal), 200);
  });
}

function addJobEvents(app: AdminApp, convert: ConvertService, log: Logger): void {
  const watchers = new Watchers(WATCHERS_MAX);
  app.openapi(routes.watch, (c) => {
    const { id } = c.req.valid('param');
    // Refuses an unknown one before the stream begins.
    convert.job(id);
    const leave = watchers.enter(`job ${id}`);
    return streamEvents(c, log, leave, async (stream, signal) => {
      for await (const job of convert.watch(id, signal)) await stream.writeSSE({ event: 'job', data: JSON.stringify(viewJob(job)) });
    });
  });
}
