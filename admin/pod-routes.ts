/** Pods over the admin API: what their annotations asked for, and what was decided for each of their images, with the reasons. */
import { createRoute, z } from '@hono/zod-openapi';
import type { PodService, PodView } from '../plugin/cri/service.ts';
import type { AdminApp } from './context.ts';
import { soon } from './deadline.ts';
import { failure, json, limitQuery, noQuery } from './route-kit.ts';

const at = z.string().openapi({ description: 'ISO 8601, UTC' });

const podSchema = z
  .object({
    uid: z.string(),
    namespace: z.string(),
    name: z.string(),
    firstSeenAt: at,
    lastSeenAt: at,
    rules: z
      .object({
        inForce: z.enum(['pin', 'off', 'perfect-match', 'match-count', 'best-match']),
        pin: z.string().nullable(),
        isAutomatic: z.boolean(),
        isPerfectMatch: z.boolean(),
        matchCount: z.int().nullable(),
        extraEphemeralGib: z.int().openapi({ description: 'GiB beyond what every pod has' }),
        isSelected: z.boolean().openapi({ description: 'false: it does not have the label of cri.pod_selector' }),
      })
      .openapi({ description: 'what its annotations said when it was first seen; they are not read again' }),
    images: z.array(z.string()),
    imagesFrom: z.enum(['pulls', 'api-server', 'manifest']),
    decisions: z.array(
      z.object({
        image: z.string(),
        decision: z.enum(['pinned-cache', 'matched-cache', 'pull', 'refused']),
        imageCacheId: z.string().nullable(),
        digest: z.string().nullable(),
        outcome: z
          .enum(['cache', 'twin', 'lazy', 'ordinary', 'present'])
          .nullable()
          .openapi({ description: 'null: it has not come, or not yet' }),
        reasons: z.array(z.string()),
        decidedAt: at,
      }),
    ),
  })
  .openapi('Pod');

const routes = {
  pods: createRoute({
    method: 'get',
    path: '/v1/pods',
    summary: 'Pods that pulled images through the image service, last seen first',
    request: { query: z.strictObject({ limit: limitQuery }) },
    responses: { 200: json(z.object({ pods: z.array(podSchema) }), 'pods'), default: failure },
  }),
  explain: createRoute({
    method: 'get',
    path: '/v1/pods/{pod}',
    summary: 'Why each image of a pod came as it did',
    request: {
      query: noQuery,
      params: z.object({
        pod: z
          .string()
          .min(1)
          .max(600)
          .openapi({
            param: { name: 'pod', in: 'path' },
            description: 'uid, or namespace/name (a / is %2F in the path)',
            example: 'default%2Fweb-0',
          }),
      }),
    },
    responses: { 200: json(podSchema, 'pod'), default: failure },
  }),
};

const shown = (pod: PodView): z.infer<typeof podSchema> => ({
  ...pod,
  images: [...pod.images],
  decisions: pod.decisions.map((decision) => ({ ...decision, reasons: [...decision.reasons] })),
});

export function addPodRoutes(app: AdminApp, pods: PodService): void {
  app.openapi(routes.pods, async (c) => {
    const { limit } = c.req.valid('query');
    return c.json({ pods: (await soon('list pods', c.req.raw, async () => pods.pods(limit))).map(shown) }, 200);
  });
  app.openapi(routes.explain, async (c) => {
    const { pod } = c.req.valid('param');
    return c.json(shown(await soon('explain pod', c.req.raw, async () => pods.explainPod(pod))), 200);
  });
}
