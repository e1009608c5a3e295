/** Bearer tokens for TCP: made, listed, removed. All of it takes the scope `admin`. */
import { createRoute, z } from '@hono/zod-openapi';
import { SCOPES } from './auth/scopes.ts';
import type { Tokens } from './auth/tokens.ts';
import type { AdminApp } from './context.ts';
import { body, failure, json, noQuery } from './route-kit.ts';

const TOKEN_DAYS_MAX = 3650;
const scopes = z.array(z.enum(SCOPES)).min(1).max(SCOPES.length);

const tokenShape = {
  id: z.string(),
  name: z.string(),
  scopes: z.array(z.enum(SCOPES)),
  createdAt: z.string(),
  expiresAt: z.string().nullable(),
};
const tokenSchema = z.object(tokenShape).openapi('Token');
const newTokenSchema = z.object({ ...tokenShape, token: z.string().openapi({ description: 'shown this once' }) }).openapi('NewToken');
export type NewTokenView = z.infer<typeof newTokenSchema>;

const routes = {
  create: createRoute({
    method: 'post',
    path: '/v1/tokens',
    summary: 'Makes a bearer token for TCP; its text is in this answer only',
    request: {
      query: noQuery,
      body: body(
        z
          .strictObject({
            name: z
              .string()
              .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/, 'is not 1 to 64 of A-Z a-z 0-9 . _ -')
              .openapi({ description: 'who uses it; in the audit log' }),
            scopes: scopes.openapi({ description: 'each may read; admin may everything' }),
            expiresInDays: z.int().min(1).max(TOKEN_DAYS_MAX).optional().openapi({ description: 'absent: until it is removed' }),
          })
          .openapi('CreateToken'),
      ),
    },
    responses: { 201: json(newTokenSchema, 'made'), default: failure },
  }),
  list: createRoute({
    method: 'get',
    path: '/v1/tokens',
    summary: 'Tokens, oldest first, without their text',
    request: { query: noQuery },
    responses: { 200: json(z.object({ tokens: z.array(tokenSchema) }), 'tokens'), default: failure },
  }),
  remove: createRoute({
    method: 'delete',
    path: '/v1/tokens/{id}',
    summary: 'Removes a token; it is refused from then on',
    request: {
      query: noQuery,
      params: z.object({
        id: z
          .string()
          .min(1)
          .max(64)
          .openapi({ param: { name: 'id', in: 'path' } }),
      }),
    },
    responses: { 204: { description: 'removed' }, default: failure },
  }),
};

export function addTokenRoutes(app: AdminApp, tokens: Tokens): void {
  app.openapi(routes.create, (c) => c.json(tokens.create(c.req.valid('json')), 201, { 'cache-control': 'no-store' }));
  app.openapi(routes.list, (c) => c.json({ tokens: tokens.list() }, 200));
  app.openapi(routes.remove, (c) => {
    tokens.remove(c.req.valid('param').id);
    return c.body(null, 204);
  });
}
