/** Random images as lists of layers, and their tars. */
import fc from 'fast-check';
import { type RawEntry, rawTar } from '../../../unit/plugin/image/tar/raw-tar.ts';
import type { ModelEntry, ModelTree } from './model.ts';

/** Few names, so that layers meet each other's objects; some that sort around "." and some long, so that blocks fill. */
const NAMES = ['a', 'b', 'c', '!', '-', '~', '.x', '\xe9\xff', `l${'o'.repeat(200)}`, `m${'n'.repeat(254)}`];
const part = fc.constantFrom(...NAMES);
const path = fc.array(part, { minLength: 1, maxLength: 3 });
const sizes = [0, 1, 100, 511, 2047, 2048, 2049, 3900, 4032, 4033, 4095, 4096, 4097, 9000, 70_000, 150_000];

const content = fc.tuple(fc.constantFrom(...sizes), fc.integer({ min: 0, max: 255 }), fc.boolean()).map(([size, seed, isSparse]) => {
  const bytes = Buffer.alloc(size, seed);
  if (isSparse) bytes.fill(0, Math.floor(size / 8), size - Math.floor(size / 16));
  return bytes;
});

const xattrs = fc.oneof(
  { weight: 5, arbitrary: fc.constant({} as Record<string, string>) },
  {
    weight: 3,
    arbitrary: fc.dictionary(
      fc.constantFrom('user.a', 'user.bb', 'trusted.c', 'security.capability', 'system.posix_acl_access', 'system.posix_acl_default'),
      fc.oneof(fc.constantFrom('', 'v', '\0\x01', 'x'.repeat(900), 'y'.repeat(3500), 'z'.repeat(20_000))),
      { maxKeys: 3 },
    ),
  },
);

export const entry: fc.Arbitrary<ModelEntry> = fc.record({
  type: fc.oneof(
    { weight: 6, arbitrary: fc.constant('file' as const) },
    { weight: 5, arbitrary: fc.constant('directory' as const) },
    { weight: 3, arbitrary: fc.constant('hardlink' as const) },
    { weight: 3, arbitrary: fc.constant('whiteout' as const) },
    { weight: 3, arbitrary: fc.constantFrom('symlink' as const, 'char' as const, 'fifo' as const, 'opaque' as const) },
  ),
  path: fc.oneof({ weight: 12, arbitrary: path }, { weight: 1, arbitrary: fc.constant([] as string[]) }),
  mode: fc.constantFrom(0, 0o644, 0o755, 0o4755, 0o2775, 0o1777),
  uid: fc.constantFrom(0, 1000, 4_294_967_294),
  gid: fc.constantFrom(0, 65_536),
  mtime: fc.constantFrom(0, 1_700_000_000, -5, 4_102_444_800, 2 ** 34),
  nanoseconds: fc.constantFrom(0, 1, 999_999_999),
  xattrs,
  content,
  target: fc.constantFrom('t', '../x/../y', '/abs', `long/${'u/'.repeat(1000)}`),
  targetPath: path,
  pick: fc.oneof(fc.constant(0), fc.nat()),
  targetPick: fc.oneof({ weight: 1, arbitrary: fc.constant(0) }, { weight: 5, arbitrary: fc.nat() }),
  device: fc.record({ major: fc.constantFrom(1, 259, 4095), minor: fc.constantFrom(3, 300, 1_048_575) }),
});

/** Many files in one directory, or most of them hidden again: directories of several blocks. */
const bulk = fc
  .tuple(
    path,
    fc.oneof({ weight: 5, arbitrary: fc.integer({ min: 20, max: 400 }) }, { weight: 1, arbitrary: fc.constant(1500) }),
    fc.constantFrom('file' as const, 'whiteout' as const),
    entry,
  )
  .map(([directory, count, type, base]) =>
    Array.from(
      { length: count },
      (_, i): ModelEntry => ({
        ...base,
        type,
        path: [...directory.slice(0, 2), `bulk-${(i * 7919) % 1000}`],
        content: Buffer.alloc(0),
        xattrs: {},
      }),
    ),
  );

export const layer = fc
  .array(fc.oneof({ weight: 14, arbitrary: entry.map((one) => [one]) }, { weight: 1, arbitrary: bulk }), { maxLength: 14 })
  .map((groups) => groups.flat());

export const image = fc.array(layer, { minLength: 1, maxLength: 5 });

const TYPE_FLAG = { file: '0', hardlink: '1', symlink: '2', char: '3', directory: '5', fifo: '6', whiteout: '0', opaque: '0' } as const;

/** The entry as it is written to a tar. */
export function rawEntryOf(one: ModelEntry): RawEntry {
  const parts = [...one.path];
  if (one.type === 'whiteout') parts.push(`.wh.${parts.pop()}`);
  if (one.type === 'opaque') parts.push('.wh..wh..opq');
  const isMark = one.type === 'whiteout' || one.type === 'opaque';
  const raw: RawEntry = {
    name: 'see-pax',
    type: TYPE_FLAG[one.type],
    mode: one.mode,
    devMajor: 0,
    pax: [
      ['path', parts.join('/') || './'],
      ['uid', String(one.uid)],
      ['gid', String(one.gid)],
      ['mtime', paxTime(one.mtime, one.nanoseconds)],
      ...(one.type === 'symlink' ? [['linkpath', one.target] as const] : []),
      ...(one.type === 'hardlink' ? [['linkpath', one.targetPath.join('/')] as const] : []),
      ...Object.entries(one.xattrs).map(([name, value]) => [`SCHILY.xattr.${name}`, value] as const),
    ],
  };
  if (one.type === 'file') raw.content = one.content;
  if (one.type === 'char') Object.assign(raw, { devMajor: one.device.major, devMinor: one.device.minor });
  if (isMark) raw.content = '';
  return raw;
}

function paxTime(seconds: number, nanoseconds: number): string {
  // Times before 1970 with a fraction are written towards zero: -5 s + 1 ns is -4.999999999.
  if (seconds >= 0) return `${seconds}.${String(nanoseconds).padStart(9, '0')}`;
  if (nanoseconds === 0) return String(seconds);
  return `-${-seconds - 1}.${String(1_000_000_000 - nanoseconds).padStart(9, '0')}`;
}

/** Applies a layer to the model and returns the tar of what the model accepted. */
export function tarOfLayer(model: ModelTree, entries: readonly ModelEntry[]): Buffer {
  model.beginLayer();
  const accepted: ModelEntry[] = [];
  for (const one of entries) {
    const chosen = one.pick === 0 && (one.targetPick === 0 || one.type !== 'hardlink') ? one : withPicks(one, model.paths());
    if (model.apply(chosen)) accepted.push(chosen);
  }
  return rawTar(accepted.map(rawEntryOf));
}

/** Most paths that are made up meet nothing; chosen ones do. */
export function withPicks(one: ModelEntry, paths: readonly string[][]): ModelEntry {
  const at = (pick: number, otherwise: string[]): string[] => (pick === 0 || paths.length === 0 ? otherwise : paths[pick % paths.length]!);
  return { ...one, path: one.path.length === 0 ? [] : at(one.pick, one.path), targetPath: at(one.targetPick, one.targetPath) };
}
