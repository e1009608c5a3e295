/**
 * The vendor's RPC actions, for clients of that API: `Action=CreateImageCache` and the like as a query or a form. Names are translated here
 * and nowhere further in. Answers are JSON with RequestId; failures {RequestId, HostId, Code, Message} with the codes of R133.
 */
import type { ContentfulStatusCode } from 'hono/utils/http-status';
import { AppError, describeError } from '../../plugin/base/errors.ts';
import type { Logger } from '../../plugin/base/log.ts';
import { CACHE_ERROR_REASONS, type CacheService } from '../../plugin/cache/service.ts';
import type { Scope } from '../auth/scopes.ts';
import type { AdminContext } from '../context.ts';
import { knownError, reasonOf, statusOf } from '../errors.ts';
import { demandScope } from '../request-guard.ts';
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

const OWN_REASONS: ReadonlySet<unknown> = new Set([...CACHE_ERROR_REASONS, 'MissingParameter', 'InvalidAction.NotFound']);

/** The vendor's code of a failure. */
function codeOf(error: AppError): string {
  const { reason } = error.details;
  if (typeof reason === 'string' && OWN_REASONS.has(reason)) return reason;
  const known = reasonOf(error);
  if (known !== undefined) return known;
  if (error.code === 'InvalidArgument') return 'InvalidParameter';
  return error.code === 'PermissionDenied' ? 'Forbidden.Scope' : error.code;
}

/** R133: conflicts and duplicates are 400 here. */
function httpStatusOf(error: AppError): ContentfulStatusCode {
  return error.code === 'Conflict' || error.code === 'AlreadyExists' ? 400 : statusOf(error);
}

async function paramsOf(c: AdminContext): Promise<Params> {
  const query = new URL(c.req.url).searchParams;
  return c.req.method === 'POST' ? new Params(query, new URLSearchParams(await c.req.text())) : new Params(query);
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
      return c.json({ RequestId, ...(await action.run(params)) }, 200);
    } catch (thrown) {
      const error = knownError(thrown);
      if (error !== thrown) log.error({ err: thrown, requestId: RequestId, reason: describeError(thrown) }, 'action failed');
      if (error.code === 'PermissionDenied') c.set('isRefused', true);
      return c.json({ RequestId, HostId: 'localhost', Code: codeOf(error), Message: error.message }, httpStatusOf(error));
    }
  };
}
