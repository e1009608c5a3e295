/** Which proxy counts for which origin: the same answers as Go programs give for the same environment. */
import { describe, expect, test } from 'vitest';
import { ProxyRules } from '../../../../plugin/registry/proxy-env.ts';

const env = { HTTP_PROXY: 'http://plain.proxy:1', HTTPS_PROXY: 'tls.proxy:2' };

describe('proxies from the environment', () => {
  test.each<[string, Record<string, string>, string | undefined]>([
    ['http://a.example', env, 'http://plain.proxy:1/'],
    ['https://a.example', env, 'http://tls.proxy:2/'],
    ['https://a.example', { https_proxy: 'http://lower:3' }, 'http://lower:3/'],
    ['https://a.example', {}, undefined],
    ['https://a.example', { ...env, NO_PROXY: '*' }, undefined],
    ['https://a.example', { ...env, NO_PROXY: 'a.example' }, undefined],
    ['https://sub.a.example', { ...env, NO_PROXY: 'a.example' }, undefined],
    ['https://ba.example', { ...env, NO_PROXY: 'a.example' }, 'http://tls.proxy:2/'],
    ['https://a.example', { ...env, NO_PROXY: '.a.example' }, 'http://tls.proxy:2/'],
    ['https://sub.a.example', { ...env, NO_PROXY: 'x, .a.example' }, undefined],
    ['https://sub.a.example', { ...env, no_proxy: '*.a.example' }, undefined],
    ['https://a.example:5000', { ...env, NO_PROXY: 'a.example:5000' }, undefined],
    ['https://a.example', { ...env, NO_PROXY: 'a.example:5000' }, 'http://tls.proxy:2/'],
    ['https://10.1.2.3', { ...env, NO_PROXY: '10.0.0.0/8' }, undefined],
    ['https://11.1.2.3', { ...env, NO_PROXY: '10.0.0.0/8' }, 'http://tls.proxy:2/'],
    ['https://[2001:db8::5]', { ...env, NO_PROXY: '2001:db8::/32' }, undefined],
    ['https://10.1.2.3', { ...env, NO_PROXY: '10.1.2.3' }, undefined],
    ['http://localhost:5000', env, undefined],
    ['http://127.0.0.1:5000', env, undefined],
    ['https://a.example', { HTTPS_PROXY: 'http://[bad' }, undefined],
    ['https://a.example', { ...env, NO_PROXY: '10.0.0.0/99,,/8,:1' }, 'http://tls.proxy:2/'],
  ])('%s with %j: %s', (origin, environment, expected) => {
    expect(new ProxyRules(environment).proxyFor(origin)).toBe(expected);
  });
});
