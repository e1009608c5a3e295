/** Pods over the admin API: listed, explained by uid and by name, and refused politely when unknown. */
import { expect, test } from 'vitest';
import { fakeApp } from './fake-app.ts';
import { POD } from './fake-pods.ts';

test('pods are listed and explained by uid or name; unknown ones are NotFound', async () => {
  const { app } = fakeApp();
  const get = async (path: string): Promise<{ status: number; body: unknown }> => {
    const response = await app.request(path);
    return { status: response.status, body: await response.json() };
  };
  expect(await get('/v1/pods')).toEqual({ status: 200, body: { pods: [POD] } });
  expect(await get(`/v1/pods/${POD.uid}`)).toEqual({ status: 200, body: POD });
  expect(await get('/v1/pods/team%2Fweb-0')).toEqual({ status: 200, body: POD });
  expect(await get('/v1/pods/team%2Fother')).toMatchObject({ status: 404, body: { code: 'NotFound' } });
});
