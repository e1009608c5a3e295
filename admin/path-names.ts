/**
 * Two names of one thing: conversions and their rules are documented as `/v1/conversions` and `/v1/conversion-rules`, and are also known as
 * `/v1/convert…`. The router sees the second; guards and handlers see what the router sees.
 */
import { getPath } from 'hono/utils/url';

/** Method (or any), documented beginning, beginning that is routed. */
const NAMES: readonly (readonly [method: string | undefined, documented: string, routed: string])[] = [
  ['POST', '/v1/conversions', '/v1/convert'],
  [undefined, '/v1/conversions', '/v1/convert/jobs'],
  [undefined, '/v1/conversion-rules', '/v1/convert/rules'],
];

/** The rest of a path behind a beginning: empty or from a slash on; undefined when it begins otherwise. */
function behind(path: string, beginning: string): string | undefined {
  const rest = path.startsWith(beginning) ? path.slice(beginning.length) : undefined;
  return rest === '' || rest?.startsWith('/') === true ? rest : undefined;
}

/** Hono's path of a request, under the routed name. */
export function routedPath(request: Pick<Request, 'method' | 'url'>): string {
  const path = getPath(request as Request);
  for (const [method, documented, routed] of NAMES) {
    const rest = behind(path, documented);
    if (rest === undefined || (method !== undefined && (method !== request.method || rest !== ''))) continue;
    return routed + rest;
  }
  return path;
}

/** The documented name of a routed path. */
export function documentedPath(method: string, path: string): string {
  for (const [only, documented, routed] of NAMES) {
    const rest = behind(path, routed);
    if (rest === undefined || (only !== undefined && (only !== method || rest !== ''))) continue;
    return documented + rest;
  }
  return path;
}
