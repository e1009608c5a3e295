/**
 * Images made from Debian packages, kept as layer tar.gz in the test cache. Above what packages bring, every image has layers that change what
 * lies below: hidden files and directories, opaque directories, objects of another type, and one layer that lists no directories, as builders
 * make it when a step touches single files.
 */
import { mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { setXattr } from '../../kernel/plugin/convert/mounted-tree.ts';
import { bookwormPackages } from '../../support/debian-image.ts';
import { unpackPackages } from '../../support/debian-packages.ts';
import { RECIPE_TIME_S } from '../../support/layered-image.ts';
import { buildImage, type Image, type Layer, layerOfTarFile } from '../../support/oci-image.ts';
import { run } from '../../support/process.ts';
import { gzipFile, tarDirectory, tarOf } from '../../support/tar.ts';
import { cached, keyOf } from '../../support/test-cache.ts';

const BASE_PACKAGES = ['base-files', 'bash', 'coreutils', 'dash', 'grep', 'login', 'mount', 'passwd', 'sed', 'tar'] as const;

/** Left out of every image but the first, so that trees stay small. */
const NOT_NEEDED = [
  'usr/share/doc',
  'usr/share/locale',
  'usr/share/man',
  'usr/share/info',
  'usr/share/i18n',
  'usr/share/zoneinfo',
  'usr/share/bug',
];

export interface RealImage {
  name: string;
  packages: readonly string[];
  /** Packages of the closure that are left out, by the file's name. */
  without?: RegExp;
  /** Each of these packages becomes a layer of its own; the rest is one layer. */
  ownLayers?: RegExp;
  keepsDocumentation?: boolean;
  /** Shell commands, each run in the directory of one more layer. */
  changes: readonly string[];
  /** Files of the topmost layer, whose tar lists no directory; `.wh.` hides. */
  loneFiles: readonly string[];
}

export const REAL_IMAGES: readonly RealImage[] = [
  {
    name: 'minbase',
    packages: ['adduser', 'debian-archive-keyring', 'diffutils', 'findutils', 'gzip', 'hostname', 'init-system-helpers', 'util-linux'],
    keepsDocumentation: true,
    changes: [
      // Hides documentation, whole and below an opaque directory; devices, links and special modes.
      `mkdir -p usr/share/doc usr/share/man dev etc var/mail
       touch usr/share/.wh.bug usr/share/.wh.locale usr/share/man/.wh..wh..opq usr/share/doc/.wh.bash usr/share/doc/.wh.coreutils
       echo none > usr/share/man/README
       mknod -m 0666 dev/null c 1 3; mknod -m 0660 dev/loop0 b 7 0; mkfifo -m 0600 dev/initctl
       echo debian > etc/hostname; ln etc/hostname etc/mailname; ln -s mailname etc/mail-name
       chown 0:8 var/mail; chmod 2775 var/mail; touch -d '2021-02-03 04:05:06.789012345' etc/hostname var/mail`,
      // Other types in place of what is there.
      `mkdir -p etc/mail-name usr/share/doc/tar usr/share/man dev
       echo inside > etc/mail-name/file; mkdir -p dev/null; echo no > dev/null/device
       ln -s ../dash usr/share/doc/grep; echo one > usr/share/doc/sed; mkfifo usr/share/man/README`,
    ],
    loneFiles: ['etc/motd', 'usr/share/doc/.wh.tar', 'srv/new/below/new/file'],
  },
  {
    name: 'python3',
    packages: ['python3', 'python3-yaml', 'python3-pkg-resources'],
    ownLayers: /^python3-/,
    changes: [
      `mkdir -p usr/lib/python3.11/email usr/lib/python3.11/unittest usr/bin
       touch usr/lib/python3.11/email/.wh..wh..opq usr/lib/python3.11/.wh.lib2to3
       touch usr/lib/python3.11/unittest/.wh.mock.py; echo 'x = 1' > usr/lib/python3.11/email/__init__.py; ln -s /usr/bin/python3.11 usr/bin/python`,
    ],
    loneFiles: ['usr/lib/python3.11/lib2to3', 'usr/lib/python3.11/json/.wh.tool.py'],
  },
  {
    name: 'nodejs',
    packages: ['nodejs'],
    without: /^(python3|libpython3|openssl|ca-certificates|debconf|perl)/,
    ownLayers: /^libnode/,
    changes: [
      `mkdir -p usr/share/nodejs/acorn app/node_modules
       touch usr/share/nodejs/acorn/.wh..wh..opq
       for i in $(seq 1 2000); do echo "module.exports = $i;" > app/node_modules/module-$i.js; done
       echo '{}' > usr/share/nodejs/acorn/package.json; ln usr/share/nodejs/acorn/package.json app/package.json`,
      `mkdir -p app/node_modules; touch app/node_modules/.wh.module-{1..900}.js; mkdir app/node_modules/module-1000.js app/package.json`,
    ],
    loneFiles: ['app/node_modules/module-1001.js', 'app/node_modules/.wh.module-1002.js'],
  },
  {
    name: 'perl',
    packages: ['perl', 'libwww-perl', 'libjson-perl', 'libdatetime-perl'],
    without: /^(ca-certificates|openssl|debconf)/,
    ownLayers: /^(libwww-perl|libjson-perl|libdatetime-perl|libhtml-parser-perl|liburi-perl|libdatetime-timezone-perl)/,
    changes: [
      `mkdir -p usr/share/perl5/URI usr/share/perl5/JSON; touch usr/share/perl5/URI/.wh..wh..opq usr/share/perl5/.wh.LWP usr/share/perl5/.wh.LWP.pm`,
      // What the layer below hid comes back as something else.
      `mkdir -p usr/share/perl5/URI usr/share/perl5/LWP; echo back > usr/share/perl5/URI/http.pm; ln -s LWP usr/share/perl5/LWP.pm`,
    ],
    loneFiles: ['usr/share/perl5/JSON/new.pm', 'usr/share/perl5/URI/.wh.http.pm'],
  },
  {
    name: 'postgresql',
    packages: ['postgresql-15'],
    without: /^(libllvm|libz3|locales|perl|libperl|debconf|python3|openssl|ssl-cert)/,
    ownLayers: /^postgresql-15/,
    changes: [
      `mkdir -p var/lib/postgresql/15/main/base usr/share/postgresql/15/tsearch_data
       head -c 8388608 /dev/zero | tr '\\0' 'x' > var/lib/postgresql/15/main/base/1; truncate -s 16M var/lib/postgresql/15/main/base/2
       chown -R 101:103 var/lib/postgresql; chmod 0700 var/lib/postgresql/15/main
       touch usr/share/postgresql/15/tsearch_data/.wh..wh..opq`,
      `mkdir -p var/lib/postgresql/15; touch var/lib/postgresql/15/.wh.main; mkdir -p usr/share/postgresql/15; touch usr/share/postgresql/15/.wh.timezonesets`,
    ],
    loneFiles: ['var/lib/postgresql/15/main', 'usr/share/postgresql/15/.wh.extension'],
  },
];

/** The base's packages, and its layer's two forms: with documentation and without. */
function baseDirectory(): Promise<string> {
  return cached(`real-image-base-${keyOf(...BASE_PACKAGES, ...NOT_NEEDED)}`, async (made) => {
    const debs = await bookwormPackages(made, 'base', BASE_PACKAGES);
    await writeFile(join(made, 'debs.json'), JSON.stringify(debs.map((deb) => basename(deb))));
    const tree = join(made, 'tree');
    await unpackPackages(debs, tree);
    await tarDirectory(tree, join(made, 'full.tar'), { latestMtimeS: RECIPE_TIME_S });
    await strip(tree);
    await tarDirectory(tree, join(made, 'small.tar'), { latestMtimeS: RECIPE_TIME_S });
    await run('rm', ['-r', tree, join(made, 'apt-base')]);
  });
}

async function strip(tree: string): Promise<void> {
  for (const path of NOT_NEEDED) await rm(join(tree, path), { recursive: true, force: true });
}

async function make(source: RealImage, made: string): Promise<void> {
  const base = await baseDirectory();
  const inBase = new Set(JSON.parse(await readFile(join(base, 'debs.json'), 'utf8')) as string[]);
  const all = await bookwormPackages(made, 'all', [...BASE_PACKAGES, ...source.packages]);
  const debs = all.filter((deb) => !inBase.has(basename(deb)) && source.without?.test(basename(deb)) !== true);
  const own = debs.filter((deb) => source.ownLayers?.test(basename(deb)) === true);
  const groups = [debs.filter((deb) => !own.includes(deb)), ...own.map((deb) => [deb])];
  const tars = [join(base, source.keepsDocumentation === true ? 'full.tar' : 'small.tar')];
  const directories: string[] = [];
  for (const [index, group] of groups.entries()) {
    const directory = join(made, `packages-${index}`);
    await unpackPackages(group, directory);
    if (source.keepsDocumentation !== true) await strip(directory);
    directories.push(directory);
  }
  for (const [index, script] of source.changes.entries()) {
    const directory = join(made, `change-${index}`);
    await mkdir(directory);
    await run('bash', ['-e', '-u', '-c', script], { cwd: directory });
    directories.push(directory);
  }
  await addAttributes(directories[0]!);
  for (const directory of directories) {
    tars.push(`${directory}.tar`);
    await tarDirectory(directory, `${directory}.tar`, { latestMtimeS: RECIPE_TIME_S });
  }
  const lone = join(made, 'lone.tar');
  await writeFile(lone, await tarOf(source.loneFiles.map((name) => ({ name, content: name.includes('.wh.') ? '' : `${name}\n` }))));
  const layers: Omit<Layer, 'blob'>[] = [];
  for (const [index, tar] of [...tars, lone].entries()) {
    const gzip = join(made, `layer${index}.tar.gz`);
    await gzipFile(tar, gzip);
    const { blob: _, ...layer } = await layerOfTarFile(tar, gzip);
    layers.push(layer);
  }
  await run('rm', ['-r', join(made, 'apt-all'), lone, ...directories, ...directories.map((directory) => `${directory}.tar`)]);
  await writeFile(join(made, 'layers.json'), JSON.stringify(layers));
}

/** Attributes that installing would have set: a capability (cap_net_raw, VFS_CAP_REVISION_2) and others' marks. */
async function addAttributes(directory: string): Promise<void> {
  const { stdout } = await run('find', [directory, '-type', 'f', '-size', '-200k'], {});
  const [first, second] = stdout.trim().split('\n').sort();
  if (first === undefined || second === undefined) throw new Error(`${directory} holds no two files`);
  setXattr(Buffer.from(first), 'security.capability', Buffer.from('0100000200200000000000000000000000000000', 'hex'));
  setXattr(Buffer.from(second), 'user.origin', Buffer.from('debian'));
  setXattr(Buffer.from(dirname(second)), 'trusted.mark', Buffer.alloc(300, 'm'));
}

/** The image with gzip layers; made at the first call of a machine. */
export async function realImage(source: RealImage): Promise<Image> {
  const key = keyOf(JSON.stringify({ ...source, without: String(source.without), ownLayers: String(source.ownLayers) }), make.toString());
  const directory = await cached(`real-image-${source.name}-${key}`, (made) => make(source, made));
  const kept = JSON.parse(await readFile(join(directory, 'layers.json'), 'utf8')) as Omit<Layer, 'blob'>[];
  const layers = kept.map((layer, index) => ({ ...layer, blob: join(directory, `layer${index}.tar.gz`) }));
  await Promise.all(layers.map(({ blob }) => stat(blob)));
  return buildImage(layers);
}
