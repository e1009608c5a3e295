/** The filter language, against the cases that containerd's documentation and its own callers use. */
import { describe, expect, test } from 'vitest';
import { parseFilters } from '../../../../plugin/snapshotter/filters.ts';

const SUBJECT = {
  name: 'k8s.io/7/sha256:abc',
  parent: 'p',
  kind: 'committed',
  labels: { 'containerd.io/snapshot.ref': 'sha256:abc', l: '1', 'a.b': 'dots', empty: '' },
};

describe('filters that match', () => {
  test.each([
    [[]],
    [['']],
    [['name==k8s.io/7/sha256:abc']],
    [['name=="k8s.io/7/sha256:abc"']],
    [['kind==committed,parent==p']],
    [['kind==active', 'kind==committed']],
    [['labels.l']],
    [['labels.empty']],
    [['labels.l==1']],
    [['labels."containerd.io/snapshot.ref"==sha256:abc,parent=="p"']],
    [['labels.a.b==dots']],
    [['labels.missing!=x']],
    [['parent!=""']],
    [['name~=^k8s']],
    [['name~=/sha256:[a-c]+/']],
    [['name~=|k8s.io/[0-9]|']],
    [[' kind == committed , labels.l == 1 ']],
    [['labels.l=="\\x31"']],
    [['labels.l=="\\u0031"']],
    [['labels.l=="\\061"']],
  ])('%j', (filters) => {
    expect(parseFilters(filters).matches(SUBJECT)).toBe(true);
  });
});

describe('filters that do not match', () => {
  test.each([
    [['name==other']],
    [['kind==active,parent==p']],
    [['labels.missing']],
    [['labels.l==2']],
    [['unknown']],
    [['name~=^x']],
    [['labels.constructor']],
  ])('%j', (filters) => {
    expect(parseFilters(filters).matches(SUBJECT)).toBe(false);
  });
});

describe('malformed filters are InvalidArgument, with where', () => {
  test.each([
    ['name=='],
    ['name=x'],
    ['==x'],
    ['name==a,'],
    ['name=="open'],
    ['name=="bad \\q escape"'],
    ['name==/alternative quotes need ~=/'],
    ['labels.'],
    ['name==a b'],
    ['name~="("'],
    ['na-me==x'],
  ])('%s', (filter) => {
    expect(() => parseFilters([filter])).toThrowError(expect.objectContaining({ code: 'InvalidArgument' }));
  });

  test('too many or too long', () => {
    expect(() => parseFilters(Array(65).fill('name==a'))).toThrowError(/64 filters/);
    expect(() => parseFilters([`name==${'x'.repeat(9000)}`])).toThrowError(/8192/);
  });
});

test('the look-up that containerd makes after AlreadyExists is answered from an index, others are not mistaken for it', () => {
  expect(parseFilters(['labels."containerd.io/snapshot.ref"==sha256:abc,parent=="p"']).chainRef).toBe('sha256:abc');
  expect(parseFilters(['labels."containerd.io/snapshot.ref"!=sha256:abc']).chainRef).toBeUndefined();
  expect(parseFilters(['labels."containerd.io/snapshot.ref"==a', 'kind==active']).chainRef).toBeUndefined();
});
