/** What image caches must refuse, for each way in: REST, the vendor's actions and obdctl. Ours. */
import http from 'node:http';
import { errnoOf } from '../../../plugin/base/errors.ts';

export interface Asked {
  status: number;
  headers: http.IncomingHttpHeaders;
  text: string;
}

export interface Question {
  method?: string;
  path: string;
  body?: string;
  headers?: Readonly<Record<string, string>>;
  /** Sends the body without telling its length. */
  isChunked?: boolean;
}

/** One request through the socket, byte for byte as given: curl would tidy it up. */
export const ask = (socketPath: string, question: Question): Promise<Asked> => sendAgain({ socketPath }, question);

/** The same through loopback. */
export const askTcp = (port: number, question: Question): Promise<Asked> => sendAgain({ host: '127.0.0.1', port }, question);

const TRIES = 5;

/** A refusal may come while the body is still sent, and be lost with the connection that is closed then; so it is asked for again. */
async function sendAgain(where: http.RequestOptions, question: Question): Promise<Asked> {
  for (let left = TRIES - 1; ; left -= 1) {
    try {
      return await send(where, question);
    } catch (error) {
      if (left === 0 || !['EPIPE', 'ECONNRESET'].includes(errnoOf(error) ?? '')) throw error;
    }
  }
}

function send(where: http.RequestOptions, { method = 'GET', path, body, headers = {}, isChunked = false }: Question): Promise<Asked> {
  return new Promise((resolve, reject) => {
    const length = body === undefined || isChunked ? {} : { 'content-length': String(Buffer.byteLength(body)) };
    const request = http.request({
      ...where,
      agent: false,
      method,
      path,
      headers: { host: 'localhost', ...length, ...headers },
      timeout: 60_000,
    });
    let isAnswered = false;
    request.on('response', (response) => {
      isAnswered = true;
      let text = '';
      response.setEncoding('utf8').on('data', (chunk: string) => (text += chunk));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, headers: response.headers, text }));
      response.on('error', reject);
    });
    request.on('timeout', () => request.destroy(new Error('no answer')));
    request.on('error', (error) => {
      // The rest of a body that nobody wants meets a closed connection.
      if (!isAnswered) reject(error);
    });
    request.end(body);
  });
}

const IMAGE = '127.0.0.1:1/team/app:1';
const images = (count: number): string[] => Array.from({ length: count }, (_, n) => `127.0.0.1:1/team/app:${n}`);

/** References that are none. */
const MALFORMED = [
  '',
  ' ',
  'registry.example/UPPER/case',
  'a b',
  'http://registry.example/a',
  '../../etc/passwd',
  'a:b:c',
  'a@sha256:12',
  'ünï/cödé:1',
  'a/b:1\u0000',
  'x'.repeat(600),
];

/** A good request with what makes it a bad one, and the field that the refusal must name. */
const FIELDS: readonly (readonly [what: string, change: Readonly<Record<string, unknown>>, field: string])[] = [
  ['21 images', { images: images(21) }, 'images'],
  ['no image', { images: [] }, 'images'],
  ['no list of images', { images: IMAGE }, 'images'],
  ['one image twice', { images: [IMAGE, IMAGE] }, 'images'],
  ...MALFORMED.map((text) => [`the reference ${JSON.stringify(text.slice(0, 30))}`, { images: [text] }, 'images.0'] as const),
  ['19 GiB', { imageCacheSize: 19 }, 'imageCacheSize'],
  ['32,769 GiB', { imageCacheSize: 32_769 }, 'imageCacheSize'],
  ['half a GiB', { imageCacheSize: 20.5 }, 'imageCacheSize'],
  ['a size as text', { imageCacheSize: '20' }, 'imageCacheSize'],
  ['no day', { retentionDays: 0 }, 'retentionDays'],
  ['days before now', { retentionDays: -1 }, 'retentionDays'],
  ['65,537 days', { retentionDays: 65_537 }, 'retentionDays'],
  ['another strategy', { eliminationStrategy: 'FIFO' }, 'eliminationStrategy'],
  ['21 tags', { tags: Array.from({ length: 21 }, (_, n) => ({ key: `k${n}`, value: '' })) }, 'tags'],
  ['a tag twice', { tags: [{ key: 'a' }, { key: 'a' }] }, 'tags'],
  ['a tag without a key', { tags: [{ key: '', value: 'x' }] }, 'tags.0.key'],
  [
    'credentials of no host',
    { imageRegistryCredentials: [{ server: 'a b', userName: 'u', password: 'hunter2' }] },
    'imageRegistryCredentials.0.server',
  ],
  ['credentials without a password', { imageRegistryCredentials: [{ server: 'a', userName: 'u' }] }, 'imageRegistryCredentials.0.password'],
  ['a name in another alphabet', { imageCacheName: '缓存' }, 'imageCacheName'],
  ['a name of one letter', { imageCacheName: 'a' }, 'imageCacheName'],
  ['a name of 129 letters', { imageCacheName: 'a'.repeat(129) }, 'imageCacheName'],
  ['a name with a line break', { imageCacheName: 'a\r\nx-evil: 1' }, 'imageCacheName'],
  ['a name that is markup', { imageCacheName: '<script>' }, 'imageCacheName'],
  ['the reserved prefix', { imageCacheName: 'auto-create-for-x' }, 'auto-create-for-'],
  ['an unknown field', { imagecachename: 'x' }, 'body'],
  ['a prototype', { ['__proto__']: { isAdmin: true } }, 'body'],
];

const GOOD = { imageCacheName: 'good', images: [IMAGE] };
const JSON_HEADER = { 'content-type': 'application/json' };

export interface BadCase {
  what: string;
  question: Question;
  status: number;
  /** In the message. */
  says?: string;
}

const create = (
  what: string,
  body: string,
  status = 400,
  says?: string,
  headers: Readonly<Record<string, string>> = JSON_HEADER,
): BadCase => ({
  ...{ what, status, question: { method: 'POST', path: '/v1/image-caches', body, headers } },
  ...(says === undefined ? {} : { says }),
});

/** Bad requests of REST. `id` is that of a cache named `taken`, which exists. */
export function badRest(id: string): BadCase[] {
  const of = (method: string, path: string, status: number, body?: unknown, headers: Readonly<Record<string, string>> = {}): BadCase => ({
    what: `${method} ${path.slice(0, 60)} ${JSON.stringify(headers)}`,
    status,
    question: {
      method,
      path,
      headers: { ...(body === undefined ? {} : JSON_HEADER), ...headers },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    },
  });
  const missing = '/v1/image-caches/imc-00000000000000000000';
  const large = JSON.stringify({ ...GOOD, pad: 'x'.repeat(10 * 1024 * 1024) });
  return [
    // Spread would set the prototype and not the field.
    ...FIELDS.map(([what, change, says]) =>
      create(what, JSON.stringify(Object.assign(Object.create(null), GOOD, Object.fromEntries(Object.entries(change)))), 400, says),
    ),
    create('a name that is taken', JSON.stringify({ ...GOOD, imageCacheName: 'taken' }), 409, 'taken'),
    create('half a body', '{"imageCacheName": "go', 400, 'is no JSON'),
    create('no object', '[]', 400),
    create('a list in a list, and so on', `${'['.repeat(20_000)}${']'.repeat(20_000)}`, 400),
    create('no body', '', 400),
    create('text', JSON.stringify(GOOD), 415, 'text/plain', { 'content-type': 'text/plain' }),
    create('a form', 'imageCacheName=good', 415, 'x-www-form-urlencoded', { 'content-type': 'application/x-www-form-urlencoded' }),
    create('a form of a browser', JSON.stringify(GOOD), 415, undefined, { 'content-type': 'multipart/form-data; boundary=x' }),
    create('no content type', JSON.stringify(GOOD), 415, undefined, {}),
    create('10 MiB', large, 413),
    { ...create('10 MiB of unknown length', large, 413), question: { ...create('', large).question, isChunked: true } },
    create('two client tokens', JSON.stringify({ ...GOOD, clientToken: 'a' }), 400, 'client token', {
      ...JSON_HEADER,
      'idempotency-key': 'b',
    }),
    create('a client token in another alphabet', JSON.stringify({ ...GOOD, clientToken: 'ключ' }), 400),
    of('GET', missing, 404),
    of('GET', `${missing}/events`, 404),
    of('DELETE', missing, 404),
    of('PATCH', missing, 404, { retentionDays: 1 }),
    of('DELETE', `/v1/image-caches/${id}?dryRun=true`, 400),
    of('GET', `/v1/image-caches/${'x'.repeat(600)}`, 400),
    of('GET', '/v1/image-caches/..%2f..%2fetc%2fpasswd', 404),
    of('GET', '/v1/image-caches/%00', 404),
    of('PATCH', `/v1/image-caches/${id}`, 400, { imageCacheSize: 5 }),
    of('PATCH', `/v1/image-caches/${id}`, 400, { retentionDays: 7, nonsense: true }),
    of('PATCH', `/v1/image-caches/${id}`, 400, {}),
    of('PATCH', `/v1/image-caches/${id}`, 400, { retentionDays: 7 }, { 'if-match': '1' }),
    of('PATCH', `/v1/image-caches/${id}`, 412, { retentionDays: 7 }, { 'if-match': '"4711"' }),
    ...['0', '-1', '101', '99999999999999999999', '1e9', 'all', ''].map((limit) => of('GET', `/v1/image-caches?limit=${limit}`, 400)),
    ...['4711', '%ff', '../../x', 'x'.repeat(600), Buffer.from('c1.imc-x').toString('base64url')].map((after) =>
      of('GET', `/v1/image-caches?after=${after}`, 400),
    ),
    ...[
      '/v1/snapshots?limit=2001',
      '/v1/events?limit=0',
      '/v1/events?since=yesterday',
      '/v1/audit?before=0',
      '/v1/conversions?before=x',
    ].map((path) => of('GET', path, 400)),
    of('GET', '/v1/image-caches?image=UPPER', 400),
    of('GET', '/v1/image-caches?nonsense=1', 400),
    of('POST', '/v1/image-caches:match', 400, { images: [] }),
    of('POST', '/v1/image-caches:match', 400, { images: Array.from({ length: 101 }, () => ({ reference: 'a' })) }),
  ];
}

/** Bad requests of the vendor's actions, with the vendor's code. */
export function badActions(id: string): { what: string; params: Readonly<Record<string, string>>; status: number; code: string }[] {
  const good = { Action: 'CreateImageCache', ImageCacheName: 'good', 'Image.1': IMAGE };
  const numbered = (count: number) => Object.fromEntries(images(count).map((image, n) => [`Image.${n + 1}`, image]));
  const bad = (what: string, params: Readonly<Record<string, string>>, status = 400, code = 'InvalidParameter') => ({
    what,
    params,
    status,
    code,
  });
  return [
    bad('21 images', { ...good, ...numbered(21) }),
    bad('no image', { Action: 'CreateImageCache', ImageCacheName: 'good' }),
    ...MALFORMED.map((text) => bad(`the reference ${JSON.stringify(text.slice(0, 30))}`, { ...good, 'Image.1': text })),
    bad('19 GiB', { ...good, ImageCacheSize: '19' }),
    bad('32,769 GiB', { ...good, ImageCacheSize: '32769' }),
    bad('a size that is none', { ...good, ImageCacheSize: '2e1' }),
    bad('no day', { ...good, RetentionDays: '0' }),
    bad('65,537 days', { ...good, RetentionDays: '65537' }),
    bad('a name that is taken', { ...good, ImageCacheName: 'taken' }, 400, 'ImageCache.NameDuplicated'),
    bad('the reserved prefix', { ...good, ImageCacheName: 'auto-create-for-x' }),
    bad('a name in another alphabet', { ...good, ImageCacheName: '缓存' }),
    bad('an unknown parameter', { ...good, Nonsense: '1' }),
    bad('an unknown action', { Action: 'RunInstances' }, 404, 'InvalidAction.NotFound'),
    bad('an id that does not exist', { Action: 'DeleteImageCache', ImageCacheId: 'imc-00000000000000000000' }, 404, 'ImageCacheNotFound'),
    bad(
      'an update of what does not exist',
      { Action: 'UpdateImageCache', ImageCacheId: 'imc-x', RetentionDays: '1' },
      404,
      'ImageCacheNotFound',
    ),
    bad(
      'an update of what is not Ready',
      { Action: 'UpdateImageCache', ImageCacheId: id, RetentionDays: '7' },
      400,
      'ImageCache.IncorrectStatus',
    ),
    bad('no id', { Action: 'DeleteImageCache' }, 400, 'MissingParameter'),
    bad('a huge page', { Action: 'DescribeImageCaches', Limit: '999999999' }),
    bad('a page that was never given', { Action: 'DescribeImageCaches', NextToken: '../..' }),
  ];
}

/** Arguments of obdctl that must fail, with the exit code and what it must say. */
export const BAD_ARGUMENTS: readonly [args: readonly string[], code: number, says: RegExp][] = [
  [['cache', 'create', 'good', ...images(21)], 1, /images: .*20/],
  [['cache', 'create', 'good'], 2, /missing required argument 'image'/],
  [['cache', 'create', 'good', IMAGE, '--size', '5'], 1, /imageCacheSize: /],
  [['cache', 'create', 'good', IMAGE, '--days', '99999'], 1, /retentionDays: /],
  [['cache', 'create', 'good', IMAGE, '--days', 'soon'], 2, /is not a whole number/],
  [['cache', 'create', 'auto-create-for-x', IMAGE], 1, /auto-create-for-/],
  [['cache', 'create', 'taken', IMAGE], 1, /taken/],
  [['cache', 'create', 'good', 'registry.example/UPPER/case'], 1, /images\.0: is not an image reference/],
  [['cache', 'create', 'good', IMAGE, '--credential', 'nobody'], 1, /is not server=user/],
  [['cache', 'rm', 'imc-00000000000000000000'], 1, /imc-0/],
  [['cache', 'show', 'no-such-cache'], 1, /obdctl cache ls/],
  [['cache', 'update', 'taken'], 2, /nothing to change/],
  [['cache', 'explode'], 2, /unknown command 'explode'/],
];
