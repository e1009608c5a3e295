/** References: each row is what containerd's (distribution's) parser makes of the text. */
import { describe, expect, test } from 'vitest';
import { formatReference, isLocalHost, isRegistryHost, parseReference, referenceObject } from '../../../../plugin/registry/reference.ts';

const D = `sha256:${'a1'.repeat(32)}`;

describe('references', () => {
  test.each([
    ['ubuntu', 'docker.io/library/ubuntu:latest'],
    ['ubuntu:22.04', 'docker.io/library/ubuntu:22.04'],
    ['library/ubuntu', 'docker.io/library/ubuntu:latest'],
    ['docker.io/ubuntu', 'docker.io/library/ubuntu:latest'],
    ['index.docker.io/ubuntu', 'docker.io/library/ubuntu:latest'],
    ['index.docker.io/team/app', 'docker.io/team/app:latest'],
    ['team/app', 'docker.io/team/app:latest'],
    ['team/deep/app:v1', 'docker.io/team/deep/app:v1'],
    ['localhost/app', 'localhost/app:latest'],
    ['localhost:5000/app', 'localhost:5000/app:latest'],
    ['localhost:5000/app:1', 'localhost:5000/app:1'],
    ['registry.example/app', 'registry.example/app:latest'],
    ['registry.example:5000/a/b/c:x', 'registry.example:5000/a/b/c:x'],
    ['127.0.0.1:5000/app', '127.0.0.1:5000/app:latest'],
    ['[::1]:5000/app', '[::1]:5000/app:latest'],
    ['[2001:db8::1]/app', '[2001:db8::1]/app:latest'],
    ['host:80/app', 'host:80/app:latest'],
    ['HOST/app', 'HOST/app:latest'],
    [`ubuntu@${D}`, `docker.io/library/ubuntu@${D}`],
    [`ubuntu:22.04@${D}`, `docker.io/library/ubuntu@${D}`],
    [`registry.example/app@${D}`, `registry.example/app@${D}`],
    ['a-b_c__d/e.f---h:T.a_g-1', 'docker.io/a-b_c__d/e.f---h:T.a_g-1'],
    [`app:${'t'.repeat(128)}`, `docker.io/library/app:${'t'.repeat(128)}`],
    [`${'a'.repeat(63)}/app`, `docker.io/${'a'.repeat(63)}/app:latest`],
  ])('%s is %s', (text, expected) => {
    const reference = parseReference(text);
    expect(formatReference(reference)).toBe(expected);
    expect(formatReference(parseReference(expected))).toBe(expected);
  });

  test('with tag and digest both are kept and the digest decides', () => {
    const reference = parseReference(`team/app:v1@${D}`);
    expect(reference).toEqual({ host: 'docker.io', repository: 'team/app', tag: 'v1', digest: D });
    expect(referenceObject(reference)).toBe(D);
  });

  test.each([
    ['nothing', ''],
    ['an upper-case repository', 'registry.example/Team/app:1'],
    ['an image id', 'a1'.repeat(32)],
    ['an empty tag', 'app:'],
    ['a tag of 129', `app:${'t'.repeat(129)}`],
    ['a tag beginning with a dot', 'app:.x'],
    ['a short digest', 'app@sha256:abc'],
    ['an upper-case digest', `app@${D.toUpperCase()}`],
    ['another algorithm', `app@sha512:${'a'.repeat(128)}`],
    ['two digests', `app@${D}@${D}`],
    ['an underscore in a host', 'a-b.c_d/e:1'],
    ['an empty component', 'registry.example//app'],
    ['a slash at the end', 'registry.example/app/'],
    ['a slash at the start', '/app'],
    ['going up', 'registry.example/../app'],
    ['a dot component', 'registry.example/./app'],
    ['a separator at the end', 'app-'],
    ['three underscores', 'a___b'],
    ['two dots', 'a..b'],
    ['a space', 'app :1'],
    ['a newline', 'app\n'],
    ['a null character', 'app\0'],
    ['a scheme', 'https://registry.example/app'],
    ['credentials', 'user:password@registry.example/app'],
    ['a query', 'registry.example/app?x=1'],
    ['a percent sign', 'registry.example/a%2fb'],
    ['a port that is none', 'registry.example:99999/app'],
    ['an empty port', 'registry.example:/app'],
    ['a host label ending in a dash', 'registry-.example/app'],
    ['a host ending in a dot', 'registry.example./app'],
    ['letters outside ASCII', 'registry.example/äpp'],
    ['a name over 255', `registry.example/${'a'.repeat(240)}`],
    ['a megabyte', 'a'.repeat(1024 * 1024)],
  ])('%s is refused with InvalidArgument', (_what, text) => {
    expect(() => parseReference(text)).toThrowError(expect.objectContaining({ code: 'InvalidArgument' }));
  });

  test('a refusal quotes at most 200 characters', () => {
    expect(() => parseReference('A'.repeat(400))).toThrowError(/^.{0,400}$/s);
  });

  test.each([
    ['localhost', true],
    ['localhost:5000', true],
    ['127.0.0.1', true],
    ['127.4.5.6:80', true],
    ['[::1]:5000', true],
    ['localhost.example', false],
    ['127.0.0.1.example', false],
    ['10.0.0.1', false],
  ])('%s is this machine: %s', (host, expected) => {
    expect(isLocalHost(host)).toBe(expected);
  });

  test.each(['registry.example/path', 'user@registry.example', 'registry.example:0x1', '', '[::1', 'a b'])(
    '%j is no registry host',
    (host) => {
      expect(isRegistryHost(host)).toBe(false);
    },
  );
});
