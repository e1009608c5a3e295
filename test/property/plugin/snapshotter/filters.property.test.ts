/** Filters from anywhere: each is compiled or refused as InvalidArgument, and quoting finds exactly the value that was quoted. */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isAppError } from '../../../../plugin/base/errors.ts';
import { parseFilters } from '../../../../plugin/snapshotter/filters.ts';

const TIME_MS = 2_000;
const SUBJECT = { name: 'n', parent: '', kind: 'active', labels: {} };

/** Text made of the pieces that the grammar knows, so that most of it nearly parses. */
const nearly = fc
  .array(
    fc.constantFrom('name', 'labels', '.', ',', '==', '!=', '"', '\\', '/', '|', ' ', 'x', '1', '\\x41', '\\u0041', '\n', '\0', 'é', '💧'),
    {
      maxLength: 24,
    },
  )
  .map((pieces) => pieces.join(''));

test('hostile filters end in a match function or in InvalidArgument', () => {
  fc.assert(
    fc.property(fc.oneof(nearly, fc.string()), (text) => {
      try {
        parseFilters([text]).matches(SUBJECT);
      } catch (error) {
        expect(isAppError(error, 'InvalidArgument'), String(error)).toBe(true);
      }
    }),
    { numRuns: 100_000, interruptAfterTimeLimit: TIME_MS },
  );
});

test('a quoted label key and value match that label and no other value', () => {
  const quote = (text: string): string => `"${text.replace(/["\\]/g, '\\$&').replaceAll('\n', '\\n')}"`;
  fc.assert(
    fc.property(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' }), fc.string(), (key, value, other) => {
      const filter = parseFilters([`labels.${quote(key)}==${quote(value)}`]);
      expect(filter.matches({ ...SUBJECT, labels: { [key]: value } })).toBe(true);
      expect(filter.matches({ ...SUBJECT, labels: { [key]: other } })).toBe(other === value);
    }),
    { numRuns: 100_000, interruptAfterTimeLimit: TIME_MS },
  );
});
