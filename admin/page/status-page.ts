/** The status page at `/`, what feeds it, and the vendor's actions, which share its path. */
import { createRoute, z } from '@hono/zod-openapi';
import { html, raw } from 'hono/html';
import { systemClock } from '../../plugin/base/clock.ts';
import type { Logger } from '../../plugin/base/log.ts';
import type { AdminApp, AdminContext } from '../context.ts';
import { soon } from '../deadline.ts';
import { streamEvents } from '../event-stream.ts';
import { OVERVIEW_INTERVAL_MS, PAGE_WATCHERS_MAX } from '../limits.ts';
import { eventStream, failure, json, noQuery, Watchers } from '../route-kit.ts';
import { Overview, type OverviewParts, overviewSchema } from './overview.ts';
import { pageHeaders } from './security-headers.ts';
import { STATUS_SCRIPT } from './status-script.ts';
import { STATUS_STYLE } from './status-style.ts';

const actionAnswer = z.looseObject({ RequestId: z.string() }).openapi('ActionAnswer');
const actionQuery = z.looseObject({
  Action: z
    .enum(['CreateImageCache', 'DescribeImageCaches', 'UpdateImageCache', 'DeleteImageCache', 'ListUsage'])
    .optional()
    .openapi({ description: 'the vendor’s actions, with their own parameters; without one, the status page' }),
});
const actionResponses = {
  default: {
    description: 'refused, with the vendor’s code',
    content: {
      'application/json': {
        schema: actionAnswer.extend({ HostId: z.string(), Code: z.string(), Message: z.string() }).openapi('ActionError'),
      },
    },
  },
};

const routes = {
  page: createRoute({
    method: 'get',
    path: '/',
    summary: 'The status page; with Action, the vendor’s RPC actions',
    request: { query: actionQuery },
    responses: {
      200: {
        description: 'page, or the action’s answer',
        content: { 'text/html': { schema: z.string() }, 'application/json': { schema: actionAnswer } },
      },
      ...actionResponses,
    },
  }),
  action: createRoute({
    method: 'post',
    path: '/',
    summary: 'The vendor’s RPC actions, with their parameters as query, form, or both',
    request: {
      query: actionQuery,
      body: { content: { 'application/x-www-form-urlencoded': { schema: z.looseObject({ Action: z.string().optional() }) } } },
    },
    responses: { 200: json(actionAnswer, 'the action’s answer'), ...actionResponses },
  }),
  overview: createRoute({
    method: 'get',
    path: '/v1/overview',
    summary: 'What the status page shows',
    request: { query: noQuery },
    responses: { 200: json(overviewSchema, 'overview'), default: failure },
  }),
  watch: createRoute({
    method: 'get',
    path: '/v1/overview:watch',
    summary: 'The overview now and at each change, at most once a second, as server-sent events (`overview`)',
    request: { query: noQuery },
    responses: { 200: eventStream('data is an Overview'), default: failure },
  }),
};

/** The page without any data, which its script fetches; so it is the same for everybody. */
const PAGE = html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>overlaybd-sidecar</title>
<link rel="icon" href="data:,">
<style>${raw(STATUS_STYLE)}</style>
</head>
<body>
<header><h1>overlaybd-sidecar</h1><p id="state" role="status">connecting</p></header>
<form id="login" hidden><label>Token <input id="token" type="password" autocomplete="off" required></label><button>Show</button></form>
<main id="main"><noscript>This page needs its script; the same is at <code>/v1/overview</code>.</noscript></main>
<script type="module">${raw(STATUS_SCRIPT)}</script>
</body>
</html>`;

export interface StatusPageParts extends OverviewParts {
  answerAction(c: AdminContext): Promise<Response>;
  log: Logger;
}

export function addStatusPage(app: AdminApp, { answerAction, log, ...parts }: StatusPageParts): void {
  const overview = new Overview(parts);
  const watchers = new Watchers(PAGE_WATCHERS_MAX);
  const headers = pageHeaders({ script: STATUS_SCRIPT, style: STATUS_STYLE });

  // The vendor's parameters are read by the actions themselves, so these two are described but not checked here.
  app.openAPIRegistry.registerPath(routes.page);
  app.openAPIRegistry.registerPath(routes.action);
  app.get('/', async (c) => (new URL(c.req.url).search === '' ? c.html(PAGE, 200, headers) : answerAction(c)));
  app.post('/', (c) => answerAction(c));

  app.openapi(routes.overview, async (c) => c.json(await soon('gather overview', c.req.raw, () => overview.look()), 200));
  app.openapi(routes.watch, (c) => {
    const leave = watchers.enter('overview');
    return streamEvents(c, log, leave, async (stream, signal) => {
      for (let last = ''; !signal.aborted; ) {
        const data = JSON.stringify(await overview.look());
        if (data !== last) await stream.writeSSE({ event: 'overview', data });
        last = data;
        await systemClock.sleep(OVERVIEW_INTERVAL_MS, signal);
      }
    });
  });
}
