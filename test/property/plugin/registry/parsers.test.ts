/** Parsers of registry text never throw anything but AppError, never take long, and accept what they have written. Seeds are printed on failure. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { AppError } from '../../../../plugin/base/errors.ts';
import { parseChallenges } from '../../../../plugin/registry/challenge.ts';
import { parseHostsToml } from '../../../../plugin/registry/hosts-toml.ts';
import { formatReference, parseReference } from '../../../../plugin/registry/reference.ts';

/** Each property may run this long; slow ones stop early. */
const TIME_BOX = { interruptAfterTimeLimit: 3000, numRuns: 20_000 };

const label = fc.stringMatching(/^[a-z0-9]{1,8}$/);
const separator = fc.constantFrom('.', '_', '__', '-', '--');
const component = fc
  .tuple(label, fc.array(fc.tuple(separator, label), { maxLength: 2 }))
  .map(([head, tail]) => head + tail.flat().join(''));
const host = fc
  .tuple(fc.array(label, { minLength: 2, maxLength: 3 }), fc.option(fc.integer({ min: 1, max: 65_535 }), { nil: undefined }))
  .map(([labels, port]) => labels.join('.') + (port === undefined ? '' : `:${port}`));
const tag = fc.stringMatching(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}$/);
const digest = fc.stringMatching(/^[0-9a-f]{64}$/).map((hex) => `sha256:${hex}`);

test('what is made of valid parts parses into those parts and survives formatting', () => {
  fc.assert(
    fc.property(host, fc.array(component, { minLength: 1, maxLength: 3 }), fc.option(tag), fc.option(digest), (h, path, t, d) => {
      const text = `${h}/${path.join('/')}${t === null ? '' : `:${t}`}${d === null ? '' : `@${d}`}`;
      const reference = parseReference(text);
      expect(reference.host).toBe(h);
      expect(reference.repository).toBe(path.join('/'));
      expect(reference.tag).toBe(t ?? (d === null ? 'latest' : undefined));
      expect(reference.digest).toBe(d ?? undefined);
      const again = parseReference(formatReference(reference));
      expect(formatReference(again)).toBe(formatReference(reference));
    }),
    TIME_BOX,
  );
});

test('any text is either refused with InvalidArgument or formats to a fixed point', () => {
  const nearly = fc.array(fc.constantFrom('a', 'A', '0', '.', '_', '-', ':', '/', '@', '[', ']', '%', ' ', 'sha256:', 'docker.io', 'ü'), {
    maxLength: 40,
  });
  fc.assert(
    fc.property(
      fc.oneof(
        nearly.map((parts) => parts.join('')),
        fc.string({ maxLength: 600, unit: 'binary' }),
      ),
      (text) => {
        let formatted: string;
        try {
          formatted = formatReference(parseReference(text));
        } catch (error) {
          expect(error).toBeInstanceOf(AppError);
          expect((error as AppError).code).toBe('InvalidArgument');
          return;
        }
        expect(formatReference(parseReference(formatted))).toBe(formatted);
        // Nothing of it can leave the path or the host when it becomes a URL.
        expect(formatted).toMatch(/^[A-Za-z0-9.:[\]-]+\/[a-z0-9._/-]+(:[\w.-]+|@sha256:[0-9a-f]{64})$/);
        expect(parseReference(text).repository).not.toContain('..');
      },
    ),
    TIME_BOX,
  );
});

test('any challenge text parses within bounds, and a well-formed one comes back', () => {
  fc.assert(
    fc.property(fc.string({ maxLength: 10_000, unit: 'binary' }), (text) => {
      expect(parseChallenges(text).length).toBeLessThanOrEqual(16);
    }),
    TIME_BOX,
  );
  const value = fc.string({ maxLength: 50, unit: 'grapheme-ascii' });
  fc.assert(
    fc.property(value, value, (realm, service) => {
      const quote = (text: string) => `"${text.replace(/(["\\])/g, '\\$1')}"`;
      const [challenge] = parseChallenges(`Bearer realm=${quote(realm)},service=${quote(service)}`);
      expect(challenge?.parameters.get('realm')).toBe(realm);
      expect(challenge?.parameters.get('service')).toBe(service);
    }),
    TIME_BOX,
  );
});

test('any hosts.toml is refused with FailedPrecondition or gives at least the server', () => {
  const value = fc.oneof(
    fc.string(),
    fc.boolean(),
    fc.integer(),
    fc.array(fc.string(), { maxLength: 3 }),
    fc.constant('pull'),
    fc.constant('https://x.example'),
  );
  const key = fc.constantFrom('server', 'capabilities', 'ca', 'client', 'skip_verify', 'override_path', 'dial_timeout', 'header', 'x');
  const document = fc.oneof(
    fc.string({ maxLength: 300 }),
    fc
      .tuple(
        fc.dictionary(key, value),
        fc.dictionary(fc.constantFrom('https://m.example', 'm', '__proto__', 'http://u:p@m'), fc.dictionary(key, value), { maxKeys: 2 }),
      )
      .map(([top, hosts]) => {
        const lines = (table: object) => Object.entries(table).map(([name, content]) => `${name} = ${JSON.stringify(content)}`);
        return [
          ...lines(top),
          ...Object.entries(hosts).flatMap(([name, table]) => [`[host.${JSON.stringify(name)}]`, ...lines(table)]),
        ].join('\n');
      }),
  );
  fc.assert(
    fc.property(document, (text) => {
      try {
        expect(parseHostsToml(text, 'hosts.toml').length).toBeGreaterThan(0);
      } catch (error) {
        expect(error).toBeInstanceOf(AppError);
        expect((error as AppError).code).toBe('FailedPrecondition');
      }
    }),
    TIME_BOX,
  );
});
