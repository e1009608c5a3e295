/** Routes that describe the API itself and whether the service works: health, ready, metrics, OpenAPI document, reference page. */
import { createRoute, z } from '@hono/zod-openapi';
import { scopeOf } from './auth/scopes.ts';
import type { AdminApp, AdminContext } from './context.ts';
import { soon } from './deadline.ts';
import type { Metrics } from './metrics.ts';
import { type ApiDocument, REFERENCE_STYLE, referencePage } from './page/reference-page.ts';
import { pageHeaders } from './page/security-headers.ts';
import { documentedPath } from './path-names.ts';
import { failure, json, noQuery } from './route-kit.ts';
import type { AdminServices } from './services.ts';

const readyResponses = {
  200: json(z.object({ status: z.literal('ok') }), 'every part works'),
  503: json(z.object({ status: z.literal('degraded'), degraded: z.array(z.string()) }), 'degraded'),
  default: failure,
};
const text = (type: string, description: string) => ({ description, content: { [type]: { schema: z.string() } } });

const routes = {
  health: createRoute({
    method: 'get',
    path: '/v1/health',
    summary: '200 as long as the control plane answers',
    request: { query: noQuery },
    responses: { 200: json(z.object({ status: z.literal('ok') }), 'it answers'), default: failure },
  }),
  ready: createRoute({
    method: 'get',
    path: '/v1/ready',
    summary: '200 when every part works, 503 with the reasons otherwise',
    request: { query: noQuery },
    responses: readyResponses,
  }),
  healthz: createRoute({
    method: 'get',
    path: '/healthz',
    summary: 'As /v1/ready',
    request: { query: noQuery },
    responses: readyResponses,
  }),
  metrics: createRoute({
    method: 'get',
    path: '/v1/metrics',
    summary: 'Metrics for Prometheus; also at /metrics',
    request: { query: noQuery },
    responses: { 200: text('text/plain', 'text exposition format'), default: failure },
  }),
  document: createRoute({
    method: 'get',
    path: '/v1/openapi.json',
    summary: 'This document; also at /openapi.json',
    request: { query: noQuery },
    responses: { 200: json(z.looseObject({ openapi: z.string() }), 'OpenAPI 3.1'), default: failure },
  }),
  reference: createRoute({
    method: 'get',
    path: '/v1/reference',
    summary: 'The same for people',
    request: { query: noQuery },
    responses: { 200: text('text/html', 'page'), default: failure },
  }),
};

export interface SystemParts {
  services: AdminServices;
  metrics: Metrics;
  version: string;
}

/** Adds the routes; to be called last, since the document describes what was added before. */
export function addSystemRoutes(app: AdminApp, { services, metrics, version }: SystemParts): void {
  app.openapi(routes.health, (c) => c.json({ status: 'ok' as const }, 200));
  for (const route of [routes.ready, routes.healthz]) {
    app.openapi(route, async (c) => {
      const status = await soon('read status', c.req.raw, (signal) => services.status(signal));
      if (status.isReady) return c.json({ status: 'ok' as const }, 200);
      return c.json({ status: 'degraded' as const, degraded: status.degraded }, 503);
    });
  }
  const renderMetrics = async (c: AdminContext) => {
    const rendered = await soon('render metrics', c.req.raw, (signal) => metrics.render(signal));
    return c.text(rendered, 200, { 'content-type': metrics.contentType });
  };
  app.openapi(routes.metrics, renderMetrics);
  app.get('/metrics', renderMetrics);

  let written: ApiDocument | undefined;
  const document = (): ApiDocument => (written ??= writeDocument(app, version));
  const sendDocument = (c: AdminContext) => c.json(document() as { openapi: string }, 200);
  app.openapi(routes.document, sendDocument);
  app.get('/openapi.json', sendDocument);
  app.openapi(routes.reference, (c) => c.html(referencePage(document()), 200, pageHeaders({ style: REFERENCE_STYLE })));
}

/** The document, with the scope that each operation takes on TCP. */
function writeDocument(app: AdminApp, version: string): ApiDocument {
  app.openAPIRegistry.registerComponent('securitySchemes', 'bearer', {
    type: 'http',
    scheme: 'bearer',
    description: 'On TCP only; the unix socket is for root. Scopes: read, cache, convert, admin.',
  });
  const document = app.getOpenAPI31Document({
    openapi: '3.1.0',
    info: {
      title: 'overlaybd-sidecar admin API',
      version,
      description: 'Served on a root-only unix socket, and on TCP with bearer tokens; see README.md.',
    },
  });
  const paths: ApiDocument['paths'] = {};
  for (const [path, item] of Object.entries((document as unknown as ApiDocument).paths)) {
    for (const [method, operation] of Object.entries(item)) {
      if (operation === undefined) continue;
      const scope = scopeOf(method.toUpperCase(), path);
      const name = documentedPath(method.toUpperCase(), path);
      paths[name] = { ...paths[name], [method]: { ...operation, security: scope === 'handler' ? [{}] : [{ bearer: [scope] }] } };
    }
  }
  return { ...document, paths } as unknown as ApiDocument;
}
