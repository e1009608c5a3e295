/**
 * The admin API as a Hono application: routes with their schemas, from which `/v1/openapi.json` is written. It knows no transport (see
 * `server.ts`) and no part but through the services it is given.
 */
import { OpenAPIHono } from '@hono/zod-openapi';
import { AppError } from '../plugin/base/errors.ts';
import type { Logger } from '../plugin/base/log.ts';
import type { CacheService } from '../plugin/cache/service.ts';
import type { ConvertService } from '../plugin/convert/service.ts';
import type { PodService } from '../plugin/cri/service.ts';
import type { Audit } from './audit.ts';
import { addAuditRoutes } from './audit-routes.ts';
import type { Tokens } from './auth/tokens.ts';
import { addCacheRoutes } from './cache-routes.ts';
import type { AdminApp, AdminEnv } from './context.ts';
import { addConvertRoutes } from './convert-routes.ts';
import { RequestRefusal, wireError } from './errors.ts';
import { createMetrics } from './metrics.ts';
import { addNodeRoutes } from './node-routes.ts';
import { addStatusPage } from './page/status-page.ts';
import { routedPath } from './path-names.ts';
import { addPodRoutes } from './pod-routes.ts';
import { addRegistryRoutes, type RegistryCredentials } from './registry-routes.ts';
import { addGuards, type RateLimits } from './request-guard.ts';
import { issuesText } from './route-kit.ts';
import { createActions } from './rpc/actions.ts';
import { actionFailure, isAction } from './rpc/failure.ts';
import type { AdminServices } from './services.ts';
import { addSystemRoutes } from './system-routes.ts';
import { addTokenRoutes } from './token-routes.ts';

export interface AdminAppOptions {
  services: AdminServices;
  caches: CacheService;
  convert: ConvertService;
  pods: PodService;
  registries: RegistryCredentials;
  tokens: Tokens;
  audit: Audit;
  version: string;
  log: Logger;
  rates?: RateLimits;
}

/** Hono's own refusals (a body that is no JSON) carry their answer; their text may hold the body, so it is not repeated. */
function refusalOf(error: Error, request: Request): unknown {
  if (request.signal.aborted && !(error instanceof AppError)) {
    return new AppError('Canceled', { op: 'read', subject: 'request', what: 'the caller hung up, or was too slow', cause: error });
  }
  if (!('getResponse' in error)) return error;
  return new AppError('InvalidArgument', { op: 'read', subject: 'request body', what: 'is no JSON', cause: error });
}

/** Builds the application. Every failure is answered as `{code, message, details, requestId}`; what is unexpected is logged whole and answered without detail. */
export function createAdminApp(options: AdminAppOptions): AdminApp {
  const { services, caches, convert, pods, registries, tokens, audit, version, log, rates } = options;
  const app: AdminApp = new OpenAPIHono<AdminEnv>({
    getPath: routedPath,
    defaultHook: (result) => {
      if (result.success) return;
      const what = issuesText(result.error);
      throw new AppError('InvalidArgument', { op: 'read', subject: `request ${result.target}`, what });
    },
  });
  app.onError((error, c) => {
    const thrown = refusalOf(error, c.req.raw);
    const requestId = c.get('requestId');
    if (!(thrown instanceof AppError)) log.error({ err: error, path: c.req.path, requestId }, 'admin request failed');
    const { status, body, headers } = isAction(c.req.method, c.req.url) ? actionFailure(thrown, requestId) : wireError(thrown, requestId);
    return c.json(body, status, headers);
  });
  app.notFound(async (c) => {
    const { method } = c.req;
    const subject = `${method} ${c.req.path.slice(0, 200)}`;
    const allowed = methodsOf(app, c.req.url);
    const what =
      allowed.length > 0 ? `this path takes ${allowed.join(', ')}` : 'no such resource; /v1/openapi.json and /v1/reference list them';
    const refusal =
      allowed.length > 0
        ? new RequestRefusal(405, 'Unimplemented', { op: 'find', subject, what })
        : new AppError('NotFound', { op: 'find', subject, what });
    const { status, body, headers } = wireError(refusal, c.get('requestId'));
    return c.json(body, status, allowed.length > 0 ? { ...headers, allow: allowed.join(', ') } : headers);
  });

  addGuards(app, audit, rates);
  addNodeRoutes(app, services);
  addCacheRoutes(app, caches, log);
  addConvertRoutes(app, convert, log);
  addPodRoutes(app, pods);
  addRegistryRoutes(app, registries);
  addTokenRoutes(app, tokens);
  addAuditRoutes(app, audit);
  addStatusPage(app, { services, caches, convert, answerAction: createActions(caches, log), log });
  addSystemRoutes(app, { services, metrics: createMetrics(services, caches, convert), version });
  return app;
}

/** Methods of the routes that fit an address. */
function methodsOf(app: AdminApp, url: string): string[] {
  const methods = ['GET', 'POST', 'PUT', 'PATCH', 'DELETE'];
  return methods.filter((method) => {
    const [handlers] = app.router.match(method, routedPath({ method, url }));
    // Guards fit every path; a route's handler is not one of theirs.
    return handlers.some(([entry]) => (entry as [unknown, { method: string }])[1].method === method);
  });
}
