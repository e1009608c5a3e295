/** Bytes of caches: what images share counts once, as it is on disk, and while it is not there, as the registry tells it. */
import { expect, test } from 'vitest';
import { ByteLedger, sizeOfImages } from '../../../../plugin/cache/byte-ledger.ts';
import type { HeldPart, ResolvedImage } from '../../../../plugin/cache/image-store.ts';
import { fakeImage, MIB } from '../../../support/fake-caches.ts';

const ordinary = (name: string, held: readonly HeldPart[]): ResolvedImage => ({
  ...fakeImage(`registry.example/${name}:1`, ['base', name], { layerMib: 10 }),
  form: 'ordinary',
  held,
  sizeBytes: held.reduce((sum, { bytes }) => sum + bytes, 0),
});

test('an unpacked base that two images share counts once, and goes with the last of them', () => {
  const base = { name: 'snapshot base', bytes: 70 * MIB };
  const a = ordinary('a', [base, { name: 'snapshot a', bytes: 5 * MIB }]);
  const b = ordinary('b', [base, { name: 'snapshot b', bytes: 6 * MIB }]);
  expect(sizeOfImages([a, b])).toBe(81 * MIB);
  const ledger = new ByteLedger();
  ledger.set('imc-a', [a]);
  ledger.set('imc-b', [b]);
  expect(ledger.totalBytes).toBe(81 * MIB);
  expect(ledger.freedBy('imc-a')).toBe(5 * MIB);
  ledger.set('imc-a', []);
  expect(ledger.totalBytes).toBe(76 * MIB);
  ledger.set('imc-b', []);
  expect(ledger.totalBytes).toBe(0);
});

test('what is not here yet counts as its layers do; what is here counts as it is, also when that is less', () => {
  const ledger = new ByteLedger();
  const before = fakeImage('registry.example/a:1', ['base', 'a'], { layerMib: 10 });
  ledger.set('imc-a', [before]);
  expect(ledger.totalBytes).toBe(20 * MIB);
  ledger.set('imc-a', [{ ...before, held: [{ name: 'snapshot a', bytes: 3 * MIB }] }]);
  expect(ledger.totalBytes).toBe(3 * MIB);
});
