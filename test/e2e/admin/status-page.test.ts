/**
 * The status page in a real browser, Debian's Chromium: what it shows, that it is live, that hostile text stays text, that it fits a phone,
 * loads nothing from elsewhere, and asks for a token where one is needed. With OBD_SCREENSHOTS=DIRECTORY it leaves pictures there.
 */
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type AdminServer, startAdminServer } from '../../../admin/server.ts';
import { MemoryCaches } from '../../support/memory-caches.ts';
import { Scratch } from '../../support/scratch.ts';
import { fakeApp } from '../../unit/admin/fake-app.ts';
import { fakeConvert, JOB } from '../../unit/admin/fake-convert.ts';
import { DEVICE, fakeServices } from '../../unit/admin/fake-services.ts';

const BROWSER = '/usr/bin/chromium';
const HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>';
const WAIT_MS = 30_000;

let browser: Browser;
let scratch: Scratch;
let server: AdminServer;
let page: Page;
let url: string;
let readToken: string;
let isBlockdAway = false;
const caches = new MemoryCaches({ nowMs: () => Date.now() });
const complaints: string[] = [];
const requested: string[] = [];

beforeAll(async () => {
  if (!existsSync(BROWSER)) throw new Error(`${BROWSER} is missing: .ci/setup-test installs it`);
  scratch = await Scratch.create('page');
  await fill();
  const services = fakeServices();
  const { app, tokens, audit } = fakeApp({
    caches,
    services: {
      ...services,
      devices: async () => {
        if (isBlockdAway) throw new Error('gone');
        return [DEVICE, { ...DEVICE, id: 'f'.repeat(32), image: HOSTILE, state: 'failed', detail: HOSTILE, hitCount: 0, readCount: 4 }];
      },
      status: async (signal) => {
        const status = await services.status(signal);
        return isBlockdAway ? { ...status, isReady: false, degraded: ['Blockd does not answer.'] } : status;
      },
    },
    convert: fakeConvert({ jobs: ({ state }) => (state === 'BUILDING' ? [JOB] : []) }),
  });
  readToken = tokens.create({ name: 'browser', scopes: ['read'] }).token;
  const tcp = { address: '127.0.0.1:0', callerOf: (token: string) => tokens.callerOf(token), audit };
  server = await startAdminServer({ app, socketPath: scratch.join('admin.sock'), tcp });
  url = `http://127.0.0.1:${server.tcpPort}/`;
  browser = await chromium.launch({
    executablePath: BROWSER,
    args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu'],
    timeout: 120_000,
  });
  page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  page.on('pageerror', (error) => complaints.push(`error: ${error.message}`));
  page.on('console', (message) => {
    if (message.type() === 'error' && !message.text().includes('401')) complaints.push(`console: ${message.text()}`);
  });
  page.on('request', (request) => requested.push(request.url()));
  await page.goto(url);
});
afterAll(async () => {
  await browser?.close();
  await server?.close();
  await scratch?.[Symbol.asyncDispose]();
});

/** Caches in every state that a person looks for. */
async function fill(): Promise<void> {
  const make = async (imageCacheName: string, ...images: string[]) => (await caches.create({ imageCacheName, images })).imageCacheId;
  const sized = (sizeBytes: number) => (image: object) => ({ ...image, sizeBytes });
  const web = await make('web-frontend', 'registry.example/team/web-frontend:2026.01.31', 'nginx:1.27', 'redis:7');
  const images = caches.get(web).images.map(sized(412 * 2 ** 20)) as never;
  caches.advance(web, 'Ready', 100, { images, lastMatchedTime: new Date().toISOString() });
  caches.advance(await make('training', 'registry.example/ml/pytorch-cuda12:24.12-py3'), 'Creating', 37);
  caches.advance(await make('too-big', 'registry.example/data/warehouse:1'), 'Failed', 12, {
    failure: 'The images take 43.1 GiB, and the cache has 20 GiB.',
  });
}

const text = (selector: string): Promise<string> => page.locator(selector).innerText({ timeout: WAIT_MS });

async function picture(name: string): Promise<void> {
  const directory = process.env.OBD_SCREENSHOTS;
  if (directory === undefined) return;
  mkdirSync(directory, { recursive: true });
  await page.screenshot({ path: join(directory, `${name}.png`), fullPage: true });
}

describe('the status page', () => {
  it('asks for a token on TCP, says when it is wrong, and shows nothing before', async () => {
    await page.locator('#login').waitFor({ state: 'visible', timeout: WAIT_MS });
    expect(await text('#state')).toBe('a token is needed');
    await page.fill('#token', 'wrong-token');
    await page.click('#login button');
    await expect.poll(() => text('#state'), { timeout: WAIT_MS }).toBe('the token was refused');
    expect(await page.locator('section').count()).toBe(0);
    await page.fill('#token', readToken);
    await page.click('#login button');
    await expect.poll(() => text('#state'), { timeout: WAIT_MS }).toBe('ready');
  });

  it('shows caches with state and progress, devices with hit rates, conversions, the store and events', async () => {
    expect(await text('#caches')).toMatch(/web-frontend[\s\S]*Ready/);
    expect(await text('#caches')).toMatch(/training[\s\S]*Creating[\s\S]*37 %/);
    expect(await text('#caches')).toContain('The images take 43.1 GiB, and the cache has 20 GiB.');
    expect(await text('#devices')).toMatch(/registry\.example\/app:1[\s\S]*attached[\s\S]*80 %[\s\S]*10 reads/);
    expect(await text('#conversions')).toMatch(/registry\.example\/team\/app:1[\s\S]*BUILDING[\s\S]*layers 1 of 4/);
    expect(await text('#store')).toContain('500 B of 1000 B in 3 blobs');
    expect(await text('#events')).toContain('store-degraded');
    await picture('desktop');
  });

  it('is live: progress and new caches appear without a reload', async () => {
    const [training] = caches.list({ imageCacheName: 'training' }).caches;
    caches.advance(training!.imageCacheId, 'Creating', 64);
    await expect.poll(() => text('#caches'), { timeout: WAIT_MS }).toContain('64 %');
    await caches.create({ imageCacheName: 'fresh', images: ['busybox:1'] });
    await expect.poll(() => text('#caches'), { timeout: WAIT_MS }).toMatch(/fresh[\s\S]*Preparing/);
  });

  it('shows hostile text as text, runs no script but its own, and loads nothing from elsewhere', async () => {
    expect(await text('#devices')).toContain('<img src=x onerror=');
    expect(await page.evaluate('window.hacked')).toBeUndefined();
    expect(await page.locator('main img, main script').count()).toBe(0);
    const injected = page.evaluate(
      "(() => { const s = document.createElement('script'); s.textContent = 'window.hacked = 2'; document.body.append(s); return window.hacked; })()",
    );
    expect(await injected).toBeUndefined();
    expect(complaints.splice(0).filter((one) => !one.includes('Content Security Policy'))).toEqual([]);
    expect(requested.filter((address) => !address.startsWith(url) && address !== 'data:,')).toEqual([]);
    const paths = new Set(requested.filter((address) => !address.startsWith('data:')).map((address) => new URL(address).pathname));
    expect([...paths].sort()).toEqual(['/', '/v1/overview:watch']);
  });

  it('fits a phone: nothing is wider than 390 pixels, and every value has its label', async () => {
    await page.setViewportSize({ width: 390, height: 844 });
    expect(await page.evaluate('document.documentElement.scrollWidth')).toBeLessThanOrEqual(390);
    const label = await page.evaluate("getComputedStyle(document.querySelector('#caches td'), '::before').content");
    expect(label).toBe('"Cache"');
    await picture('phone');
    await page.setViewportSize({ width: 320, height: 640 });
    expect(await page.evaluate('document.documentElement.scrollWidth')).toBeLessThanOrEqual(320);
    await page.setViewportSize({ width: 390, height: 844 });
    await page.emulateMedia({ colorScheme: 'dark' });
    await picture('phone-dark');
    await page.emulateMedia({ colorScheme: 'light' });
    await page.setViewportSize({ width: 1280, height: 900 });
  });

  it('says why it is refused, and goes on by itself when it is not any more', async () => {
    const stream = '**/v1/overview:watch';
    const message = 'watch overview: 12 callers watch already';
    await page.route(stream, (route) => route.fulfill({ status: 507, json: { code: 'ResourceExhausted', message } }));
    await page.reload();
    await expect.poll(() => text('#state'), { timeout: WAIT_MS }).toBe(message);
    await page.unroute(stream);
    await expect.poll(() => text('#state'), { timeout: WAIT_MS }).toBe('ready');
  });

  it('says what does not work, and when the connection is lost', async () => {
    isBlockdAway = true;
    await expect.poll(() => text('#state'), { timeout: WAIT_MS }).toBe('degraded');
    expect(await text('#problems')).toContain('Blockd does not answer.');
    expect(await text('#devices')).toContain('The data plane does not answer.');
    await picture('degraded');
    await server.close();
    await expect.poll(() => text('#state'), { timeout: WAIT_MS }).toBe('connection lost; what is shown may be old');
    expect(await text('#caches')).toContain('web-frontend');
  });
});
