/** Annotations of pods: the whole decision table as data (R142 – R147, R153, R159), and that no value whatsoever stops a pod. */
import { describe, expect, test } from 'vitest';
import { ANNOTATIONS, type PodRules, type RuleInForce, readAnnotations, ruleInForce } from '../../../../plugin/cri/pods/annotations.ts';

const A = ANNOTATIONS;
const MIB_TEXT = 'x'.repeat(1024 * 1024);

interface Row {
  say: string;
  annotations: Record<string, string>;
  rule: RuleInForce;
  rules?: Partial<PodRules>;
  /** Annotations that are warned of, in order. */
  warned?: string[];
}

const TABLE: Row[] = [
  { say: 'nothing', annotations: {}, rule: 'best-match', rules: { isAutomatic: true, isPerfectMatch: false, matchCount: null, pin: null } },
  { say: 'foreign annotations', annotations: { 'k8s.aliyun.com/eci-other': 'x', 'imc-perfect-match': 'true' }, rule: 'best-match' },
  { say: 'auto true', annotations: { [A.auto]: 'true' }, rule: 'best-match' },
  { say: 'auto false', annotations: { [A.auto]: 'false' }, rule: 'off' },
  { say: 'auto by its older name', annotations: { [A.autoAlias]: 'false' }, rule: 'off' },
  {
    say: 'auto: the new name wins over false',
    annotations: { [A.auto]: 'true', [A.autoAlias]: 'false' },
    rule: 'best-match',
    warned: [A.autoAlias],
  },
  {
    say: 'auto: the new name wins over true',
    annotations: { [A.auto]: 'false', [A.autoAlias]: 'true' },
    rule: 'off',
    warned: [A.autoAlias],
  },
  { say: 'auto: both say the same', annotations: { [A.auto]: 'false', [A.autoAlias]: 'false' }, rule: 'off' },
  {
    say: 'auto: a bad new name leaves the older one',
    annotations: { [A.auto]: 'no', [A.autoAlias]: 'false' },
    rule: 'off',
    warned: [A.auto],
  },
  { say: 'perfect match', annotations: { [A.perfectMatch]: 'true' }, rule: 'perfect-match' },
  { say: 'perfect match false', annotations: { [A.perfectMatch]: 'false' }, rule: 'best-match' },
  { say: 'match count', annotations: { [A.matchCount]: '2' }, rule: 'match-count', rules: { matchCount: 2 } },
  {
    say: 'perfect match beats match count',
    annotations: { [A.perfectMatch]: 'true', [A.matchCount]: '2' },
    rule: 'perfect-match',
    rules: { matchCount: 2 },
  },
  { say: 'perfect match false leaves match count', annotations: { [A.perfectMatch]: 'false', [A.matchCount]: '2' }, rule: 'match-count' },
  {
    say: 'auto false beats perfect match and count',
    annotations: { [A.auto]: 'false', [A.perfectMatch]: 'true', [A.matchCount]: '1' },
    rule: 'off',
  },
  { say: 'a pin', annotations: { [A.pin]: 'imc-2ze5tm5gehgtiiga0000' }, rule: 'pin', rules: { pin: 'imc-2ze5tm5gehgtiiga0000' } },
  { say: 'a pin by its older name', annotations: { [A.pinAlias]: 'imc-b' }, rule: 'pin', rules: { pin: 'imc-b' } },
  {
    say: 'pin: the new name wins',
    annotations: { [A.pin]: 'imc-a', [A.pinAlias]: 'imc-b' },
    rule: 'pin',
    rules: { pin: 'imc-a' },
    warned: [A.pinAlias],
  },
  { say: 'pin beats auto false', annotations: { [A.pin]: 'imc-a', [A.auto]: 'false' }, rule: 'pin' },
  { say: 'pin beats auto true', annotations: { [A.pin]: 'imc-a', [A.auto]: 'true' }, rule: 'pin' },
  { say: 'pin beats all', annotations: { [A.pin]: 'imc-a', [A.auto]: 'true', [A.perfectMatch]: 'true', [A.matchCount]: '3' }, rule: 'pin' },
  { say: 'an old pin beats a new auto', annotations: { [A.pinAlias]: 'imc-a', [A.auto]: 'true' }, rule: 'pin' },
  ...['yes', 'True', 'TRUE', '1', '0', '', ' true', 'true ', 'tru', 'null', MIB_TEXT].flatMap((value): Row[] => [
    { say: 'a bad auto', annotations: { [A.auto]: value }, rule: 'best-match', warned: [A.auto] },
    { say: 'a bad older auto', annotations: { [A.autoAlias]: value }, rule: 'best-match', warned: [A.autoAlias] },
    { say: 'a bad perfect match', annotations: { [A.perfectMatch]: value }, rule: 'best-match', warned: [A.perfectMatch] },
  ]),
  ...['0', '-1', '1.5', '1e2', 'two', '', '+2', ' 2', '0x2', '101', '99999999999999999999', MIB_TEXT].map(
    (value): Row => ({ say: 'a bad count', annotations: { [A.matchCount]: value }, rule: 'best-match', warned: [A.matchCount] }),
  ),
  ...['', ' ', '-imc', 'imc a', 'imc/../x', 'imc-', '\u0000', MIB_TEXT].flatMap((value): Row[] => [
    { say: 'a bad pin', annotations: { [A.pin]: value }, rule: 'best-match', rules: { pin: null }, warned: [A.pin] },
    { say: 'a bad pin beside auto false', annotations: { [A.pin]: value, [A.auto]: 'false' }, rule: 'off', warned: [A.pin] },
    {
      say: 'a bad pin beside an older one',
      annotations: { [A.pin]: value, [A.pinAlias]: 'imc-b' },
      rule: 'pin',
      rules: { pin: 'imc-b' },
      warned: [A.pin],
    },
  ]),
  ...(
    [
      ['50Gi', 50],
      ['50', 50],
      ['0', 0],
      ['5000Gi', 5000],
      ['1Mi', 1],
      ['1Ti', 1024],
      ['10G', 10],
      ['2T', 1863],
      ['1.5Gi', 2],
      ['1e9', 1],
    ] as const
  ).map(
    ([value, gib]): Row => ({
      say: `storage ${value}`,
      annotations: { [A.extraEphemeral]: value },
      rule: 'best-match',
      rules: { extraEphemeralGib: gib },
    }),
  ),
  ...['5001Gi', '-1Gi', '1.5.1Gi', '50gb', '50 Gi', 'Gi', '', '99999999', MIB_TEXT].map(
    (value): Row => ({
      say: 'bad storage',
      annotations: { [A.extraEphemeral]: value },
      rule: 'best-match',
      rules: { extraEphemeralGib: 0 },
      warned: [A.extraEphemeral],
    }),
  ),
  {
    say: 'everything wrong at once',
    annotations: { [A.pin]: '?', [A.auto]: '?', [A.perfectMatch]: '?', [A.matchCount]: '?', [A.extraEphemeral]: '?' },
    rule: 'best-match',
    warned: [A.pin, A.auto, A.perfectMatch, A.matchCount, A.extraEphemeral],
  },
];

describe('the annotations of a pod', () => {
  test.each(TABLE)('decide by the table: $say → $rule', ({ annotations, rule, rules, warned }) => {
    const read = readAnnotations(annotations);
    expect(ruleInForce(read.rules)).toBe(rule);
    expect(read.rules).toMatchObject(rules ?? {});
    expect(read.warnings.map((warning) => warning.annotation)).toEqual(warned ?? []);
    for (const { message } of read.warnings) expect(message.length).toBeLessThan(300);
  });

  test('are read as they are, whatever their keys are named', () => {
    const annotations = Object.assign(Object.create({ [A.pin]: 'inherited' }), { __proto__x: 'y' }) as Record<string, string>;
    expect(ruleInForce(readAnnotations(annotations).rules)).toBe('best-match');
  });
});
