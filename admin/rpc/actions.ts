/**
 * The vendor's RPC actions, for clients of that API: `Action=CreateImageCache` and the like as a query or a form. Names are translated here
 * and nowhere further in. Answers are JSON with RequestId; failures {RequestId, HostId, Code, Message} with the codes of R133.
 */
import { AppError, describeError } from '../../plugin/base/errors.ts';
import type { Logger } from '../../plugin/base/log.ts';
import type { CacheService } from '../../plugin/cache/service.ts';
import type { Scope } from '../auth/scopes.ts';
import type { AdminContext } from '../context.ts';
import { knownError, RequestRefusal } from '../errors.ts';
import { demandScope } from '../request-guard.ts';
import { actionFailure } from './failure.ts';
import { Params } from './params.ts';
import { describedCache, readCreate, readDelete, readDescribe, readUpdate, usageAttributes } from './requests.ts';

type Answer = Record<string, unknown>;

interface Action {
  scope: Scope;
  run(params: Params): Promise<Answer> | Answer;
}

function actionsOf(caches: CacheService): ReadonlyMap<string, Action> {
  return new Map<string, Action>([
    [
      'CreateImageCache',
      {
        scope: 'cache',
        async run(params) {
          const { request, options } = readCreate(params);
          const cache = await caches.create(request, options);
          return { ImageCacheId: cache.imageCacheId, ContainerGroupId: cache.containerGroupId };
        },
      },
    ],
    [
      'DescribeImageCaches',
      {
        scope: 'read',
        run(params) {
          const { filter, page } = readDescribe(params);
          const { caches: found, next, totalCount } = caches.list(filter, page);
          return { TotalCount: totalCount, ImageCaches: found.map(describedCache), ...(next === null ? {} : { NextToken: next }) };
        },
      },
    ],
    [
      'UpdateImageCache',
      {
        scope: 'cache',
        async run(params) {
          const { id, patch, options } = readUpdate(params);
          await caches.update(id, patch, options);
          return {};
        },
      },
    ],
    [
      'DeleteImageCache',
      {
        scope: 'cache',
        async run(params) {
          await caches.delete(readDelete(params));
          return {};
        },
      },
    ],
    [
      'ListUsage',
      {
        scope: 'read',
        run(params) {
          params.text('RegionId');
          params.refuseRest();
          return { Attributes: usageAttributes(caches.usage()) };
        },
      },
    ],
  ]);
}

async function paramsOf(c: AdminContext): Promise<Params> {
  const query = new URL(c.req.url).searchParams;
  return c.req.method === 'POST' ? new Params(query, new URLSearchParams(await c.req.text())) : new Params(query);
}

/** The guards took it for a look, since they do not know actions. */
async function beforeChange(c: AdminContext, name: string): Promise<void> {
  if (c.req.method === 'HEAD') {
    const what = 'changes something, and HEAD must not; use GET or POST';
    throw new RequestRefusal(405, 'Unimplemented', { op: 'run', subject: `action ${name}`, what });
  }
  await c.get('takeChangeTurn')();
}

/** Answers one request that names an action. */
export function createActions(caches: CacheService, log: Logger): (c: AdminContext) => Promise<Response> {
  const actions = actionsOf(caches);
  return async (c) => {
    const RequestId = c.get('requestId');
    try {
      const params = await paramsOf(c);
      const action = actions.get(params.action);
      if (action === undefined) {
        const what = `there are ${[...actions.keys()].join(', ')}`;
        const details = { reason: 'InvalidAction.NotFound' };
        throw new AppError('NotFound', { op: 'find', subject: `action ${params.action.slice(0, 64)}`, what, details });
      }
      if (action.scope !== 'read') c.set('changeAction', params.action);
      demandScope(c, action.scope);
      if (action.scope !== 'read') await beforeChange(c, params.action);
      return c.json({ RequestId, ...(await action.run(params)) }, 200);
    } catch (thrown) {
      const error = knownError(thrown);
      if (error !== thrown) log.error({ err: thrown, requestId: RequestId, reason: describeError(thrown) }, 'action failed');
      if (error.code === 'PermissionDenied') c.set('isRefused', true);
      const { status, body, headers } = actionFailure(error, RequestId);
      return c.json(body, status, headers);
    }
  };
}
