/**
 * Any bytes as a CRI message: reading ends in fields that make up exactly the same bytes, or in a refusal; changing one field leaves all others.
 */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { isAppError } from '../../../../plugin/base/errors.ts';
import { bytesField, numberField, readFields, textField, withField } from '../../../../plugin/cri/wire/fields.ts';
import { readImageFilesystems, readPullImageRequest, withAuth, withPinned } from '../../../../plugin/cri/wire/messages.ts';

const TIME_MS = 2_000;
const PARAMETERS = { interruptAfterTimeLimit: TIME_MS, numRuns: 100_000 } as const;

const joined = (fields: readonly { raw: Uint8Array }[]): Buffer => Buffer.concat(fields.map(({ raw }) => raw));

/** Fields as a writer makes them. */
const field = fc.oneof(
  fc.tuple(fc.integer({ min: 1, max: 20 }), fc.string()).map(([number, text]) => textField(number, text)),
  fc.tuple(fc.integer({ min: 1, max: 20 }), fc.maxSafeNat()).map(([number, value]) => numberField(number, value)),
  fc.tuple(fc.integer({ min: 1, max: 536_870_911 }), fc.uint8Array({ maxLength: 300 })).map(([number, bytes]) => bytesField(number, bytes)),
);

test('random bytes are read whole or refused, by every reader', () => {
  const readers = [
    readFields,
    readPullImageRequest,
    readImageFilesystems,
    (bytes: Uint8Array) => withAuth(bytes, {}),
    (bytes: Uint8Array) => withPinned(bytes, () => true),
  ];
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
      for (const read of readers) {
        try {
          read(bytes);
        } catch (error) {
          if (!isAppError(error, 'InvalidArgument')) throw error;
        }
      }
      try {
        expect(joined(readFields(bytes))).toEqual(Buffer.from(bytes));
      } catch (error) {
        if (!isAppError(error, 'InvalidArgument')) throw error;
      }
    }),
    PARAMETERS,
  );
});

test('written fields come back, and one is replaced without touching another', () => {
  fc.assert(
    fc.property(
      fc.array(field, { maxLength: 30 }),
      fc.integer({ min: 1, max: 20 }),
      fc.string({ minLength: 1 }),
      (written, number, text) => {
        const bytes = Buffer.concat(written);
        const fields = readFields(bytes);
        expect(joined(fields)).toEqual(bytes);
        const changed = readFields(withField(fields, number, textField(number, text)));
        expect(joined(changed.filter((one) => one.number !== number))).toEqual(joined(fields.filter((one) => one.number !== number)));
        expect(Buffer.from(changed.at(-1)!.content).toString('utf8')).toBe(Buffer.from(text, 'utf8').toString('utf8'));
      },
    ),
    PARAMETERS,
  );
});
