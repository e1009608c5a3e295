import { describe, expect, it } from 'vitest';
import { MAX_MATERIALIZATIONS, MAX_REQUEST_BYTES } from '../../../admin/limits.ts';
import type { AdminServices } from '../../../admin/services.ts';
import { AppError } from '../../../plugin/base/errors.ts';
import { fakeApp } from './fake-app.ts';
import { DEVICE, EVENTS, fakeServices, SNAPSHOTS } from './fake-services.ts';

const appOf = (overrides: Partial<AdminServices> = {}) => fakeApp({ services: fakeServices(overrides) }).app;

// biome-ignore lint/suspicious/noExplicitAny: answers are compared, not used
async function get(path: string, app = appOf(), init: RequestInit = {}): Promise<{ status: number; body: any }> {
  const response = await app.request(path, init);
  return { status: response.status, body: await response.json() };
}

const post = (body: string, app = appOf()) =>
  get('/v1/materialize', app, { method: 'POST', body, headers: { 'content-type': 'application/json' } });

describe('admin API', () => {
  it('answers health by the status of the parts', async () => {
    expect(await get('/healthz')).toEqual({ status: 200, body: { status: 'ok' } });
    const status = { ...(await fakeServices().status(AbortSignal.timeout(1000))), isReady: false, degraded: ['blockd is down'] };
    expect(await get('/healthz', appOf({ status: async () => status }))).toEqual({
      status: 503,
      body: { status: 'degraded', degraded: ['blockd is down'] },
    });
  });

  it('is alive while a part does not work, and ready when all do', async () => {
    expect(await get('/v1/health', appOf({ status: () => Promise.reject(new Error('gone')) }))).toEqual({
      status: 200,
      body: { status: 'ok' },
    });
    expect(await get('/v1/ready')).toEqual({ status: 200, body: { status: 'ok' } });
  });

  it('shows the ledger of the store and evicts from it', async () => {
    expect((await get('/v1/store/blobs?limit=1')).body).toMatchObject({ blobs: [{ diskBytes: 300, use: 'idle' }], totalCount: 2 });
    const evict = (body: object) =>
      get('/v1/store:evict', appOf(), { method: 'POST', body: JSON.stringify(body), headers: { 'content-type': 'application/json' } });
    expect(await evict({ bytes: 100 })).toEqual({ status: 200, body: { freedBytes: 100, evictedBlobs: 1, usedBytes: 200 } });
    expect((await evict({ bytes: 0 })).status).toBe(400);
  });

  it('gives status, devices and store as the services have them', async () => {
    expect((await get('/v1/status')).body).toMatchObject({ version: '0.1.0', counts: { snapshots: 4 } });
    expect((await get('/v1/devices')).body).toEqual({ devices: [DEVICE] });
    expect((await get('/v1/store')).body).toMatchObject({ budgetBytes: 1000, degradedBy: null });
    expect((await get('/v1/traffic')).body).toMatchObject({ readCount: 10, fetchedBytes: { demand: 65_536 } });
  });

  it('pages through snapshots without losing or repeating one, and filters broken ones', async () => {
    const keys: string[] = [];
    let after = '';
    for (let page = 0; page < 4; page += 1) {
      const { body } = await get(`/v1/snapshots?limit=1${after}`);
      keys.push(...body.snapshots.map((row: { key: string }) => row.key));
      if (body.next === null) break;
      after = `&after=${encodeURIComponent(body.next)}`;
    }
    expect(keys).toEqual(SNAPSHOTS.map((row) => row.key));
    const broken = await get('/v1/snapshots?broken=true');
    expect(broken.body).toMatchObject({ snapshots: [{ key: 'default/c', broken: { reason: 'directory 3 is missing' } }], next: null });
    expect((await get('/v1/snapshots?broken=false')).body.snapshots).toHaveLength(3);
  });

  it('gives the latest events, or those since a time', async () => {
    expect((await get('/v1/events?limit=2')).body.events).toEqual(EVENTS.slice(1));
    expect((await get('/v1/events?since=2026-01-31T12:00:02Z&limit=1')).body.events).toEqual([EVENTS[1]]);
  });

  it.each([
    ['/v1/snapshots?limit=0', 'limit'],
    ['/v1/snapshots?limit=2001', 'limit'],
    ['/v1/snapshots?broken=perhaps', 'broken'],
    ['/v1/events?since=yesterday', 'since'],
  ])('refuses %s and names the parameter', async (path, name) => {
    const { status, body } = await get(path);
    expect(status).toBe(400);
    expect(body).toMatchObject({ code: 'InvalidArgument', details: { kind: 'InvalidArgument' } });
    expect(body.message).toContain(`${name}: `);
  });

  it('materializes an image; bad bodies and unknown images are told apart', async () => {
    expect(await post('{"reference":"registry.example/app:1"}')).toMatchObject({ status: 200, body: { fetchedBytes: 1024 } });
    expect(await post('{"reference":"nothing"}')).toMatchObject({
      status: 404,
      body: { code: 'NotFound', message: 'materialize nothing: no such image', details: { limit: 1 }, requestId: expect.any(String) },
    });
    expect(await post('{"reference":""}')).toMatchObject({ status: 400, body: { code: 'InvalidArgument' } });
    expect(await post('{"reference":"a/b","x":1}')).toMatchObject({ status: 400 });
    expect(await post('{')).toMatchObject({ status: 400, body: { code: 'InvalidArgument', message: 'read request body: is no JSON' } });
    const long = await post(JSON.stringify({ reference: 'x'.repeat(MAX_REQUEST_BYTES) }));
    expect(long).toMatchObject({ status: 413, body: { message: `read request body: longer than ${MAX_REQUEST_BYTES} bytes` } });
  });

  it('runs a bounded number of materializations, and ends one when its caller hangs up', async () => {
    const signals: AbortSignal[] = [];
    const app = appOf({
      materialize: (_, signal) => {
        signals.push(signal);
        return new Promise((_resolve, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true }));
      },
    });
    const callers = Array.from({ length: MAX_MATERIALIZATIONS }, () => new AbortController());
    const running = callers.map(({ signal }) =>
      app.request('/v1/materialize', {
        method: 'POST',
        body: '{"reference":"a/b"}',
        headers: { 'content-type': 'application/json' },
        signal,
      }),
    );
    await expect.poll(() => signals.length, { timeout: 30_000 }).toBe(MAX_MATERIALIZATIONS);
    const refused = await post('{"reference":"a/b"}', app);
    expect(refused).toMatchObject({ status: 507, body: { code: 'ResourceExhausted', details: { retryAfterMs: 10_000 } } });
    for (const caller of callers) caller.abort();
    for (const response of await Promise.all(running)) expect(response.status).toBe(499);
    expect(signals.every((signal) => signal.aborted)).toBe(true);
  });

  it('maps AppError to its HTTP status with Retry-After, and hides what is unexpected', async () => {
    const unavailable = new AppError('Unavailable', { op: 'ask', subject: 'blockd', what: 'does not answer', retryAfterMs: 1500 });
    const response = await appOf({ devices: () => Promise.reject(unavailable) }).request('/v1/devices');
    expect([response.status, response.headers.get('retry-after')]).toEqual([503, '2']);
    const internal = await get('/v1/devices', appOf({ devices: () => Promise.reject(new Error('password=hunter2')) }));
    expect(internal.status).toBe(500);
    expect(JSON.stringify(internal.body)).not.toContain('hunter2');
  });

  it('says for an unknown path that it is unknown, and for a known one which methods it takes', async () => {
    expect(await get('/v2')).toMatchObject({ status: 404, body: { code: 'NotFound' } });
    const response = await appOf().request('/v1/store', { method: 'DELETE' });
    expect([response.status, response.headers.get('allow')]).toEqual([405, 'GET']);
    expect(await response.json()).toMatchObject({ code: 'Unimplemented', message: 'find DELETE /v1/store: this path takes GET' });
  });

  it('takes numbers in addresses as decimal digits and nothing else', async () => {
    for (const text of ['0x7', '1e3', '7.0', '+7', ' 7', '', '-1', '0', '9999999999999999', 'NaN']) {
      for (const path of [
        `/v1/conversions/${encodeURIComponent(text)}`,
        `/v1/events?limit=${encodeURIComponent(text)}`,
        `/v1/audit?before=${encodeURIComponent(text)}`,
      ]) {
        // Without an id it is another route.
        if (!path.endsWith('/')) expect([path, (await get(path)).status]).toEqual([path, 400]);
      }
    }
    expect((await get('/v1/conversions/7')).status).toBe(200);
    expect((await get('/v1/events?limit=7')).status).toBe(200);
  });

  it('exposes metrics, also while a part does not answer', async () => {
    const text = await (await appOf({ store: () => Promise.reject(new Error('gone')) }).request('/metrics')).text();
    expect(text).toContain('overlaybd_snapshots{state="broken"} 1');
    expect(text).toContain(`overlaybd_device_present_bytes{device="${DEVICE.id}",image=`);
    expect(text).toContain('overlaybd_fetched_bytes_total{for="demand"} 65536');
    expect(text).toContain('overlaybd_up{part="store"} 0');
    const types = new Map([...text.matchAll(/^# TYPE (\S+) (\S+)$/gm)].map(([, name, type]) => [name, type]));
    expect(types.get('overlaybd_reads_total')).toBe('counter');
    expect([...types].filter(([name, type]) => name!.endsWith('_total') !== (type === 'counter'))).toEqual([]);
    expect(text).toContain('overlaybd_up{part="devices"} 1');
    expect(text).toContain('overlaybd_sidecar_process_resident_memory_bytes');
  });
});
