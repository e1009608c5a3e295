/**
 * Credentials of registries, write-only: they are given here, used for pulls that bring none of their own, and never shown again. Who keeps
 * them (sealed) implements {@link RegistryCredentials}.
 */
import { createRoute, z } from '@hono/zod-openapi';
import type { AdminApp } from './context.ts';
import { soon } from './deadline.ts';
import { body, failure, json, noQuery } from './route-kit.ts';

/** A refresh token of a cloud registry is some 4 KiB. */
const MAX_SECRET_CHARS = 16_384;

/** `registry.example:5000`, or a part of it: `registry.example:5000/team`. */
const SCOPE = /^[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(?::\d{1,5})?(?:\/[a-z0-9._/-]{1,255})?$/;

export type RegistrySecret = { userName: string; password: string } | { identityToken: string };

export interface StoredCredential {
  /** Registry host with its port, and below it a repository or the beginning of one; the longest that fits an image wins. */
  scope: string;
  kind: 'password' | 'identity-token';
  updatedAt: string;
}

/** Where the credentials of this API are kept. Failures are AppError, and hold nothing secret. */
export interface RegistryCredentials {
  list(signal: AbortSignal): Promise<readonly StoredCredential[]>;
  /** Durable when it resolves; counts for pulls from then on. Replaces what the scope had. */
  put(scope: string, secret: RegistrySecret, signal: AbortSignal): Promise<StoredCredential>;
  /** Throws NotFound. */
  remove(scope: string, signal: AbortSignal): Promise<void>;
}

const registrySchema = z
  .object({
    registry: z.string().openapi({ example: 'registry.example:5000/team' }),
    kind: z.enum(['password', 'identity-token']),
    updatedAt: z.string().openapi({ description: 'ISO 8601, UTC' }),
  })
  .openapi('Registry');
export type RegistryView = z.infer<typeof registrySchema>;

const secretSchema = z
  .union([
    z.strictObject({ userName: z.string().min(1).max(1024), password: z.string().min(1).max(MAX_SECRET_CHARS) }),
    z.strictObject({ identityToken: z.string().min(1).max(MAX_SECRET_CHARS) }),
  ])
  .openapi('RegistrySecret');

const registryParam = z.object({
  registry: z
    .string()
    .regex(SCOPE, 'is not a registry host, with a port and a repository or part of one if wanted (a / is %2F in the path)')
    .openapi({ param: { name: 'registry', in: 'path' }, example: 'registry.example:5000%2Fteam' }),
});

const routes = {
  list: createRoute({
    method: 'get',
    path: '/v1/registries',
    summary: 'Registries that have credentials here; not the credentials',
    request: { query: noQuery },
    responses: { 200: json(z.object({ registries: z.array(registrySchema) }), 'registries'), default: failure },
  }),
  put: createRoute({
    method: 'put',
    path: '/v1/registries/{registry}',
    summary: 'Sets the credentials of a registry, or of a part of one',
    request: { query: noQuery, params: registryParam, body: body(secretSchema) },
    responses: { 200: json(registrySchema, 'kept; counts from now on'), default: failure },
  }),
  remove: createRoute({
    method: 'delete',
    path: '/v1/registries/{registry}',
    summary: 'Forgets the credentials of a registry',
    request: { query: noQuery, params: registryParam },
    responses: { 204: { description: 'forgotten' }, default: failure },
  }),
};

const view = ({ scope, kind, updatedAt }: StoredCredential): RegistryView => ({ registry: scope, kind, updatedAt });

export function addRegistryRoutes(app: AdminApp, registries: RegistryCredentials): void {
  app.openapi(routes.list, async (c) => {
    const rows = await soon('list', c.req.raw, (signal) => registries.list(signal));
    return c.json({ registries: rows.map(view) }, 200);
  });
  app.openapi(routes.put, async (c) => {
    const { registry } = c.req.valid('param');
    const secret = c.req.valid('json');
    return c.json(view(await soon('keep credentials', c.req.raw, (signal) => registries.put(registry, secret, signal))), 200);
  });
  app.openapi(routes.remove, async (c) => {
    const { registry } = c.req.valid('param');
    await soon('forget credentials', c.req.raw, (signal) => registries.remove(registry, signal));
    return c.body(null, 204);
  });
}
