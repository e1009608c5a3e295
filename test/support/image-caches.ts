/** Image caches as people make them: through the admin API of a running product. Ours. */
import type { Sidecar } from './sidecar.ts';
import { waitFor } from './wait.ts';

/** The part of the admin API's answer that tests look at. */
export interface ShownCache {
  imageCacheId: string;
  imageCacheName: string;
  status: string;
  images: { reference: string; digest: string | null }[];
  matchCount: number;
  /** Percent of the whole content. */
  progress: number;
  events: { reason: string; message: string }[];
}

export interface NewCache {
  imageCacheName: string;
  images: readonly string[];
  flash?: boolean;
  autoMatchImageCache?: boolean;
  imageRegistryCredentials?: readonly { server: string; userName: string; password: string }[];
}

/** Creates a cache; its images follow. */
export async function createCache(sidecar: Sidecar, request: NewCache): Promise<ShownCache> {
  return JSON.parse(await sidecar.admin('POST', '/v1/image-caches', request)) as ShownCache;
}

export async function cacheById(sidecar: Sidecar, id: string): Promise<ShownCache> {
  return JSON.parse(await sidecar.admin('GET', `/v1/image-caches/${id}`)) as ShownCache;
}

/** All of them, or those made by hand or by the system. At most one page. */
export async function listCaches(sidecar: Sidecar, owner?: 'user' | 'system'): Promise<ShownCache[]> {
  const query = owner === undefined ? '' : `?owner=${owner}`;
  return (JSON.parse(await sidecar.admin('GET', `/v1/image-caches${query}`)) as { imageCaches: ShownCache[] }).imageCaches;
}

/** Waits until a cache is in this state; fails with its events, at once when it has ended in another one. */
export async function waitCache(sidecar: Sidecar, id: string, status: 'Ready' | 'Failed', timeoutMs = 120_000): Promise<ShownCache> {
  const cache = await waitFor(
    async () => {
      const now = await cacheById(sidecar, id);
      return ['Ready', 'Failed'].includes(now.status) ? now : undefined;
    },
    { what: `image cache ${id} to be ${status}`, timeoutMs, everyMs: 100, details: () => sidecar.logTail() },
  );
  if (cache.status !== status) throw new Error(`image cache ${id} is ${cache.status}, not ${status}: ${JSON.stringify(cache.events)}`);
  return cache;
}

/** Waits until the system has made a cache that holds exactly these images and is Ready. */
export async function waitAutomaticCache(sidecar: Sidecar, images: readonly string[], timeoutMs = 120_000): Promise<ShownCache> {
  const wanted = [...images].sort().join();
  const holds = (cache: ShownCache): boolean =>
    cache.images
      .map(({ reference }) => reference)
      .sort()
      .join() === wanted;
  const cache = await waitFor(async () => (await listCaches(sidecar, 'system')).find(holds), {
    what: `an automatic image cache of ${wanted}`,
    timeoutMs,
    everyMs: 100,
    details: () => sidecar.logTail(),
  });
  return waitCache(sidecar, cache.imageCacheId, 'Ready', timeoutMs);
}

/** What the product decided for a pod, as `obdctl pod explain` shows it. */
export interface ExplainedPod {
  imagesFrom: string;
  rules: { inForce: string };
  decisions: { image: string; decision: string; imageCacheId: string | null; outcome: string | null; reasons: string[] }[];
}

export async function explainPod(sidecar: Sidecar, uid: string): Promise<ExplainedPod> {
  return JSON.parse(await sidecar.admin('GET', `/v1/pods/${uid}`)) as ExplainedPod;
}
