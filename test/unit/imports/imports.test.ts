import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve, sep } from 'node:path';
import { describe, expect, it } from 'vitest';

const repository = resolve(import.meta.dirname, '../../..');

/** The table of the design: what each part may import besides itself. `services` stands for the `service.ts` of every part. */
const BASE = ['base'];
const LOWER = [...BASE, 'image'];
const CONTROL = [...LOWER, 'kernel', 'file', 'registry', 'db'];
const CACHE = [...CONTROL, 'convert', 'sync', 'snapshotter'];
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  base: BASE,
  image: BASE,
  kernel: LOWER,
  db: LOWER,
  file: LOWER,
  registry: LOWER,
  fuse: ['base', 'kernel', 'file'],
  blockd: ['base', 'image', 'kernel', 'file', 'registry', 'fuse'],
  keeper: ['base', 'kernel'],
  convert: CONTROL,
  sync: CONTROL,
  snapshotter: CONTROL,
  cache: CACHE,
  cri: [...CACHE, 'cache'],
  kube: [...CACHE, 'cache'],
  admin: BASE,
};
/** Parts that meet a neighbour only through its public door. */
const DOOR_ONLY = new Set(['admin']);
const MAIN = 'main';

interface Import {
  specifier: string;
  line: number;
}

/** Blanks comments, so that an example in one is no import. Strings keep their place. */
function withoutComments(text: string): string {
  return text.replace(
    /("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)|\/\*[\s\S]*?\*\/|\/\/[^\n]*/g,
    (match, literal?: string) => (literal === undefined ? match.replace(/[^\n]/g, ' ') : match),
  );
}

/** Every specifier of `import … from`, `export … from`, `import '…'` and `import('…')`. */
function importsOf(text: string): Import[] {
  const code = withoutComments(text);
  const pattern =
    /(?:^|[;\s}])(?:import|export)\s[^'"`;]*?\bfrom\s*['"]([^'"]+)['"]|(?:^|[;\s])import\s*['"]([^'"]+)['"]|\bimport\s*\(\s*['"`]([^'"`]+)['"`]/g;
  return [...code.matchAll(pattern)].map((match) => ({
    specifier: match[1] ?? match[2] ?? match[3] ?? '',
    line: code.slice(0, match.index + match[0].search(/import|export/)).split('\n').length,
  }));
}

/** `plugin/base/config/x.ts` → `base`, `plugin/main.ts` → `main`, `db/x.ts` → `db`. */
function partOf(file: string): string {
  const [top, second, third] = file.split(sep);
  if (top !== 'plugin') return top ?? '';
  return third === undefined ? (second ?? '').replace(/\.ts$/, '') : (second ?? '');
}

function sourceFiles(): string[] {
  return ['plugin', 'admin', 'db'].flatMap((top) =>
    readdirSync(join(repository, top), { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name.endsWith('.ts') && !entry.parentPath.includes('node_modules'))
      .map((entry) => relative(repository, join(entry.parentPath, entry.name))),
  );
}

/** What is wrong with one file's imports, as `file:line: …`. */
function violations(file: string, text: string): string[] {
  const part = partOf(file);
  return importsOf(text).flatMap(({ specifier, line }) => {
    const complain = (what: string): string[] => [`${file}:${line}: ${what}`];
    if (!specifier.startsWith('.')) return specifier.startsWith('/') ? complain(`${specifier} is an absolute path`) : [];
    if (!/\.(ts|json)$/.test(specifier)) return complain(`${specifier} has no .ts extension`);
    const target = relative(repository, resolve(repository, dirname(file), specifier));
    if (!existsSync(join(repository, target))) return complain(`${specifier} does not exist`);
    const targetPart = partOf(target);
    if (target.startsWith('test')) return complain(`${specifier} lies in test/`);
    if (targetPart === part || part === MAIN) return [];
    const isDoor = DOOR_ONLY.has(part) && target.endsWith(`${sep}service.ts`);
    if (isDoor || MAY_IMPORT[part]?.includes(targetPart) === true) return [];
    return complain(`${part} may not import ${targetPart} (${specifier})`);
  });
}

/** Words that speak of the place where the code was written. Put together here, so that this file does not hold them. */
const FORBIDDEN_WORDS = [
  ['/wo', 'rk/'],
  ['/fa', 'rm/'],
  ['/ho', 'me/'],
  ['sub', 'agent'],
  ['TO', 'DO'],
  ['FIX', 'ME'],
].map((halves) => halves.join(''));

describe('imports', () => {
  const files = sourceFiles();

  it('looks at every source file of every part', () => {
    expect(files.length).toBeGreaterThan(20);
    const unknown = files.map(partOf).filter((part) => part !== MAIN && MAY_IMPORT[part] === undefined);
    expect([...new Set(unknown)]).toEqual([]);
  });

  it('point one way, as the table says', () => {
    expect(files.flatMap((file) => violations(file, readFileSync(join(repository, file), 'utf8')))).toEqual([]);
  });

  it('are found in every form, and not in comments or strings', () => {
    const text = [
      "import a from './a.ts';",
      "import { b,\n  c } from './b.ts';",
      "import type { D } from './d.ts';",
      "import './e.ts';",
      "export * from './f.ts';",
      "export { g } from './g.ts';",
      "const h = await import('./h.ts');",
      "// import x from './x.ts';",
      "/* import x from './x.ts'; */",
      "const text = 'no // comment'; import i from './i.ts';",
    ].join('\n');
    expect(importsOf(text).map(({ specifier }) => specifier)).toEqual(
      ['a', 'b', 'd', 'e', 'f', 'g', 'h', 'i'].map((name) => `./${name}.ts`),
    );
  });

  it('are refused when they point the wrong way', () => {
    expect(violations('plugin/base/x.ts', "import y from '../file/file.ts';")).toEqual([
      'plugin/base/x.ts:1: base may not import file (../file/file.ts)',
    ]);
    expect(violations('admin/x.ts', "import y from '../plugin/file/file.ts';")).toHaveLength(1);
    expect(violations('plugin/base/x.ts', "import y from './log';")).toHaveLength(1);
    expect(violations('plugin/blockd/x.ts', "import y from '../file/file.ts';\nimport z from '../base/log.ts';")).toEqual([]);
  });
});

describe('source files', () => {
  it('name no machine paths and no unfinished work', () => {
    const found = sourceFiles().flatMap((file) => {
      const text = readFileSync(join(repository, file), 'utf8');
      return FORBIDDEN_WORDS.filter((word) => text.includes(word)).map((word) => `${file}: ${word}`);
    });
    expect(found).toEqual([]);
  });
});
