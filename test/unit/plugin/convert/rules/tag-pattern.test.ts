/** Expressions for tags: they mean what JavaScript's mean, they cost linear time, and what is not understood is refused by position. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { AppError } from '../../../../../plugin/base/errors.ts';
import { compileTagFilter, tagFilterSchema } from '../../../../../plugin/convert/rules/tag-filter.ts';
import { TagPattern } from '../../../../../plugin/convert/rules/tag-pattern.ts';

describe('meaning', () => {
  test.each([
    ['_accelerated$', ['1_accelerated', 'x_containerd_accelerated'], ['_accelerated1', '']],
    ['^v\\d+\\.\\d+$', ['v1.0', 'v12.34'], ['v1', 'xv1.0', 'v1.0-rc']],
    ['^(release|stable)-', ['release-1', 'stable-x'], ['prerelease-1']],
    ['^[a-c^]{2,3}$', ['ab', 'c^a'], ['a', 'abca', 'ad']],
    ['^[^0-9]+$', ['abc'], ['ab1']],
    ['a.c', ['xabcx', 'a-c'], ['ac']],
    ['^(?:a|bc)*$', ['', 'abca'], ['b']],
    ['^[]a-]$', [']', '-', 'a'], ['b']],
    ['x{3}', ['axxxa'], ['xx']],
    ['^$', [''], ['a']],
    ['|b', ['anything'], []],
  ] as const)('%s', (source, matching, others) => {
    const pattern = new TagPattern(source);
    expect(matching.filter((tag) => !pattern.test(tag))).toEqual([]);
    expect(others.filter((tag) => pattern.test(tag))).toEqual([]);
  });

  test('random expressions agree with the engine of JavaScript', () => {
    const atom = fc.constantFrom('a', 'b', '.', '[ab]', '[^a]', '\\d', '\\w', '^', '$', '1');
    const { tree } = fc.letrec<{ tree: string }>((tie) => ({
      tree: fc.oneof(
        { maxDepth: 4, withCrossShrink: true },
        atom,
        fc.tuple(tie('tree'), tie('tree')).map(([a, b]) => a + b),
        fc.tuple(tie('tree'), tie('tree')).map(([a, b]) => `(${a}|${b})`),
        fc.tuple(tie('tree'), fc.constantFrom('*', '+', '?', '{2}', '{1,3}', '{0,}')).map(([a, times]) => `(?:${a})${times}`),
      ),
    }));
    const text = fc.string({ unit: fc.constantFrom('a', 'b', '1', '-'), maxLength: 8 });
    fc.assert(
      fc.property(tree, fc.array(text, { minLength: 1, maxLength: 8 }), (source, texts) => {
        fc.pre(source.length <= 256);
        const ours = new TagPattern(source);
        const theirs = new RegExp(source);
        for (const tag of texts) expect([tag, ours.test(tag)]).toEqual([tag, theirs.test(tag)]);
      }),
      { interruptAfterTimeLimit: 3_000, numRuns: 3_000 },
    );
  });
});

describe('bounds', () => {
  test('an expression that makes backtracking engines run for years costs no more than another', () => {
    const pattern = new TagPattern('^(a+)+(a|aa)*(.*.*.*.*)*x$');
    const begin = performance.now();
    expect(pattern.test('a'.repeat(128))).toBe(false);
    // Microseconds, and a machine that is busy in between.
    expect(performance.now() - begin).toBeLessThan(30_000);
  });

  test.each([
    ['(a', '")"'],
    ['a)', '"("'],
    ['[a', '"]"'],
    ['*a', 'nothing to repeat (at character 1)'],
    ['a**', 'repeats a repetition'],
    ['a{2,1}', 'counts'],
    ['a{x', '{m}'],
    ['(?=a)', 'look-around'],
    ['\\1', 'not supported'],
    ['\\', 'backslash'],
    ['[z-a]', 'backwards'],
    ['(((((a{128}){128}){128}){128}){128})', 'repeats too much'],
    ['(((((){128}){128}){128}){128}){128}', 'repeats too much'],
    ['('.repeat(40), 'groups inside each other'],
    ['', '0 characters'],
    ['a'.repeat(257), '257 characters'],
  ])('%s is refused', (source, what) => {
    let thrown: unknown;
    try {
      new TagPattern(source);
    } catch (error) {
      thrown = error;
    }
    expect(thrown).toBeInstanceOf(AppError);
    expect((thrown as AppError).code).toBe('InvalidArgument');
    expect((thrown as AppError).message).toContain(what);
  });
});

test('filters: all, at most ten tags, an expression', () => {
  expect(compileTagFilter({ type: 'ALL' })('x')).toBe(true);
  const listed = compileTagFilter({ type: 'TAG_LIST', tags: ['1', '2'] });
  expect(['1', '2', '3'].filter(listed)).toEqual(['1', '2']);
  expect(['v1', 'w1'].filter(compileTagFilter({ type: 'TAG_REG_EXP', expression: '^v' }))).toEqual(['v1']);
  const tags = Array.from({ length: 11 }, (_, i) => `t${i}`);
  expect(tagFilterSchema.safeParse({ type: 'TAG_LIST', tags }).success).toBe(false);
  expect(tagFilterSchema.safeParse({ type: 'TAG_LIST', tags: ['a b'] }).success).toBe(false);
});
