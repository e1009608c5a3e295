/** WWW-Authenticate headers as registries send them, and hostile ones. */
import { expect, test } from 'vitest';
import { scopesFor } from '../../../../plugin/registry/auth.ts';
import { parseChallenges } from '../../../../plugin/registry/challenge.ts';

const plain = (header: string | string[]) =>
  parseChallenges(header).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)]);

test.each<[string, string | string[], unknown]>([
  [
    'Docker Hub',
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull"',
    [['bearer', { realm: 'https://auth.docker.io/token', service: 'registry.docker.io', scope: 'repository:library/x:pull' }]],
  ],
  [
    'a comma inside quotes',
    'Bearer scope="repository:x:pull,push",realm="r"',
    [['bearer', { scope: 'repository:x:pull,push', realm: 'r' }]],
  ],
  ['bare values and spaces', 'bearer realm = r , service=s', [['bearer', { realm: 'r', service: 's' }]]],
  [
    'two in one header',
    'Basic realm="a", Bearer realm="b",service="c"',
    [
      ['basic', { realm: 'a' }],
      ['bearer', { realm: 'b', service: 'c' }],
    ],
  ],
  [
    'two headers',
    ['Negotiate', 'Basic realm="a"'],
    [
      ['negotiate', {}],
      ['basic', { realm: 'a' }],
    ],
  ],
  ['escaped quotes', 'Basic realm="a\\"b\\\\c"', [['basic', { realm: 'a"b\\c' }]]],
  ['the first of two equal names counts', 'Basic realm="a",realm="b"', [['basic', { realm: 'a' }]]],
  ['no parameters', 'Basic', [['basic', {}]]],
  [
    'a token68',
    'Negotiate YWJj==, Basic realm="a"',
    [
      ['negotiate', {}],
      ['basic', { realm: 'a' }],
    ],
  ],
  [
    'an open quote',
    'Bearer realm="abc',
    [
      ['bearer', {}],
      ['realm', {}],
    ],
  ],
  ['nothing', '', []],
  ['too long', `Bearer realm="${'x'.repeat(9000)}"`, []],
])('%s', (_what, header, expected) => {
  expect(plain(header)).toEqual(expected);
});

test('a scope is cut down to the actions a request needs, whatever the registry asks for', () => {
  const access = { repository: { host: 'h', repository: 'team/app' }, actions: ['pull'] as const };
  expect(scopesFor('repository:team/app:pull,push,delete', access)).toEqual(['repository:team/app:pull']);
  expect(scopesFor('repository:proxy/team/app:*', access)).toEqual(['repository:proxy/team/app:pull']);
  expect(scopesFor('registry:catalog:*', access)).toEqual(['repository:team/app:pull']);
  expect(scopesFor(undefined, access)).toEqual(['repository:team/app:pull']);
  expect(scopesFor(undefined, { ...access, actions: ['pull', 'push'], alsoPull: 'team/base' })).toEqual([
    'repository:team/app:pull,push',
    'repository:team/base:pull',
  ]);
});
