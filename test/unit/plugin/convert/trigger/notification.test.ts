/** Envelopes of docker-registry: pushes by tag are found, everything else is passed over, what is no envelope is refused. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { parsePushEvents } from '../../../../../plugin/convert/trigger/notification.ts';

const digest = `sha256:${'a'.repeat(64)}`;
const push = (target: object, more: object = {}) => ({
  action: 'push',
  timestamp: '2026-01-31T12:00:00.5Z',
  target,
  request: { host: 'r:5000' },
  ...more,
});
const parse = (...events: object[]) => parsePushEvents(JSON.stringify({ events }));

test('a push by tag; blobs, pulls, pushes by digest and nonsense are none', () => {
  const good = push({ repository: 'team/app', tag: '1', digest, mediaType: 'x', size: 5, url: 'http://x' });
  expect(parse(good)).toEqual([{ host: 'r:5000', repository: 'team/app', tag: '1', digest, atMs: Date.parse('2026-01-31T12:00:00.500Z') }]);
  expect(
    parse(
      push({ repository: 'team/app', digest }),
      push({ repository: '../x', tag: '1', digest }),
      push({ repository: 'a', tag: 'a b', digest }),
      push({ repository: 'a', tag: '1', digest: 'md5:x' }),
      push({}),
      { ...good, action: 'pull' },
      good,
    ),
  ).toHaveLength(1);
});

test('what a pusher calls the registry is a name or nothing: it is kept in events', () => {
  const target = { repository: 'a', tag: '1', digest };
  const hosts = ['r.example:5000', 'x'.repeat(1_000_000), 'a\u001b[2J', 'a/b', ''];
  expect(parse(...hosts.map((host) => push(target, { request: { host } }))).map((event) => event.host)).toEqual([hosts[0], '', '', '', '']);
});

test('a time that is missing or wrong is no reason to pass a push over', () => {
  const target = { repository: 'a', tag: '1', digest };
  expect(parse(push(target, { timestamp: 'soon' }), push(target, { timestamp: undefined })).map((event) => event.atMs)).toEqual([
    Infinity,
    Infinity,
  ]);
});

test('any text gives events or InvalidArgument', () => {
  fc.assert(
    fc.property(
      fc.oneof(
        fc.json(),
        fc.string(),
        fc.json().map((inner) => `{"events":[{"action":"push","target":${inner}}]}`),
      ),
      (text) => {
        try {
          parsePushEvents(text);
        } catch (error) {
          expect(error).toBeInstanceOf(AppError);
          expect((error as AppError).code).toBe('InvalidArgument');
        }
      },
    ),
    { interruptAfterTimeLimit: 2_000, numRuns: 2_000 },
  );
});
