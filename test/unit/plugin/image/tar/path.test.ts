import { describe, expect, it } from 'vitest';
import { pathParts } from '../../../../../plugin/image/tar/path.ts';

describe('pathParts', () => {
  it('cleans a name lexically and roots absolute ones in the image', () => {
    const cases: [string, string[]][] = [
      ['a/b', ['a', 'b']],
      ['./a//b/./c/', ['a', 'b', 'c']],
      ['/etc/passwd', ['etc', 'passwd']],
      ['a/../b', ['b']],
      ['a/b/../../c', ['c']],
      ['/', []],
      ['./', []],
      ['', []],
      ['a/..', []],
      ['...', ['...']],
    ];
    for (const [name, parts] of cases) expect(pathParts(name, 0)).toEqual(parts);
  });

  it('refuses names that climb above the root, are too long, or have too long a part', () => {
    for (const name of ['..', '../a', 'a/../../b', '/..', './../x'])
      expect(() => pathParts(name, 512)).toThrow(/byte 512: path climbs above the root/);
    expect(() => pathParts('x'.repeat(256), 0)).toThrow(/256 bytes, at most 255/);
    expect(() => pathParts('a/'.repeat(2100), 0)).toThrow(/4200 bytes, at most 4095/);
    expect(pathParts('x'.repeat(255), 0)).toHaveLength(1);
  });
});
