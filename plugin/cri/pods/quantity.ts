/** Kubernetes quantities (`50Gi`, `1.5G`, `1e9`). Source: apimachinery, `resource.Quantity`. */

const FACTORS: Readonly<Record<string, number>> = {
  n: 1e-9,
  u: 1e-6,
  m: 1e-3,
  '': 1,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

// Linear: digits, at most one point, then a suffix that begins with something else.
const QUANTITY = /^([0-9]{1,18}(?:\.[0-9]{0,9})?)(?:(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)|[eE]([+-]?[0-9]{1,2}))?$/;

/** The amount, bytes for storage; undefined for text that is no quantity or a negative one. */
export function parseQuantity(text: string): number | undefined {
  const match = QUANTITY.exec(text);
  if (match === null) return undefined;
  const factor = match[3] === undefined ? FACTORS[match[2] ?? '']! : 10 ** Number(match[3]);
  return Number(match[1]) * factor;
}
