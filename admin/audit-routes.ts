/** The audit log over the admin API. */
import { createRoute, z } from '@hono/zod-openapi';
import type { Audit, AuditRecord } from './audit.ts';
import type { AdminApp } from './context.ts';
import { decimal, failure, json, limitQuery } from './route-kit.ts';

const entrySchema = z
  .object({
    id: z.int(),
    at: z.string().openapi({ description: 'ISO 8601, UTC' }),
    kind: z.enum(['change', 'refusal']).openapi({ description: 'asked for by somebody who may, whatever came of it, or who may not' }),
    caller: z.string().openapi({ description: '`socket`, `token <id> (<name>)`, `token file` or `nobody`' }),
    action: z.string().openapi({ description: 'HTTP method, or the vendor’s action' }),
    path: z.string(),
    status: z.int().openapi({ description: 'HTTP status of the answer' }),
    requestId: z.string(),
    leftOut: z.int().min(0).openapi({ description: 'refusals since the one before that were not written down' }),
  })
  .openapi('AuditEntry');
export type AuditEntryView = z.infer<typeof entrySchema>;

const route = createRoute({
  method: 'get',
  path: '/v1/audit',
  summary: 'Who changed what over this API and who was refused, newest first; the newest 10,000 of each kind are kept',
  request: {
    query: z.strictObject({
      kind: z.enum(['change', 'refusal']).optional(),
      before: decimal(1).optional().openapi({ description: 'only older ones (`next` of the page before)' }),
      limit: limitQuery,
    }),
  },
  responses: {
    200: json(z.object({ entries: z.array(entrySchema), next: z.int().nullable() }), 'a page'),
    default: failure,
  },
});

const view = ({ atUs, ...record }: AuditRecord & { id: number }): AuditEntryView => ({
  ...record,
  at: new Date(atUs / 1000).toISOString(),
});

export function addAuditRoutes(app: AdminApp, audit: Audit): void {
  app.openapi(route, (c) => {
    const { kind, before, limit } = c.req.valid('query');
    const rows = audit.list({ limit, ...(kind === undefined ? {} : { kind }), ...(before === undefined ? {} : { before }) });
    const next = rows.length === limit ? (rows.at(-1)?.id ?? null) : null;
    return c.json({ entries: rows.map(view), next }, 200);
  });
}
