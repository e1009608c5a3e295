/**
 * install.sh in a scratch root, from a release (compiled sources beside it). The containerd of the machine is not touched: --root
 * keeps every path inside.
 */
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest';

const repository = join(import.meta.dirname, '../../..');
/** Each installation copies 250 MB and flushes them: in memory where the machine has a file system for that. */
const scratch = fs.mkdtempSync(join(fs.existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'obd-install-'));
const release = join(scratch, 'release');
let root = '';
let roots = 0;

const CONTAINERD = 'version = 2\n# ours\n[plugins."io.containerd.grpc.v1.cri".containerd]\n  snapshotter = "overlayfs" # default\n';

interface Result {
  code: number | null;
  stdout: string;
  stderr: string;
}

function run(program: string, args: readonly string[]): Result {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', timeout: 120_000 });
  if (error !== undefined) throw error;
  return { code: status, stdout, stderr };
}

const install = (...args: string[]): Result => run(join(release, 'install.sh'), ['--root', root, ...args]);

/** Every path below a directory with its kind, mode and content, so that two states can be compared. */
function tree(directory: string): string[] {
  return fs
    .readdirSync(directory, { recursive: true, withFileTypes: true })
    .map((entry) => {
      const path = join(entry.parentPath, entry.name);
      const { mode } = fs.lstatSync(path);
      const content = entry.isFile()
        ? createHash('sha256').update(fs.readFileSync(path)).digest('hex')
        : entry.isSymbolicLink()
          ? fs.readlinkSync(path)
          : '';
      return `${path.slice(directory.length)} ${mode.toString(8)} ${content}`;
    })
    .sort();
}

const at = (path: string): string => join(root, path);
const read = (path: string): string => fs.readFileSync(at(path), 'utf8');
const versions = (): string[] => fs.readdirSync(at('opt/overlaybd-sidecar')).filter((name) => name !== 'current');

beforeAll(() => {
  const dist = join(release, 'dist');
  const compiled = run(join(repository, 'node_modules/.bin/node'), [
    join(repository, 'node_modules/typescript/bin/tsc'),
    '-p',
    join(repository, 'tsconfig.build.json'),
    '--outDir',
    dist,
  ]);
  expect(compiled).toMatchObject({ code: 0, stdout: '' });
  for (const name of ['install.sh', 'README.md', 'package.json', 'package-lock.json', 'systemd']) {
    fs.cpSync(join(repository, name), join(release, name), { recursive: true });
  }
  fs.symlinkSync(join(repository, 'node_modules'), join(release, 'node_modules'));
});

beforeEach(() => {
  roots += 1;
  root = join(scratch, `root-${roots}`);
  fs.mkdirSync(at('etc/containerd'), { recursive: true });
  fs.writeFileSync(at('etc/containerd/config.toml'), CONTAINERD);
});

// An installation has 250 MB.
afterEach(() => fs.rmSync(root, { recursive: true, force: true }));
afterAll(() => fs.rmSync(scratch, { recursive: true, force: true }));

describe('install.sh', () => {
  it('with --dry-run says what it would do and changes nothing', () => {
    const before = tree(root);
    const result = install('--dry-run');
    expect(result.stderr).toBe('');
    expect(result.code).toBe(0);
    expect(result.stdout).toMatch(/would: install .*\/opt\/overlaybd-sidecar\/0\.1\.0-[0-9a-f]{12}/);
    expect(result.stdout).toContain('would: change ');
    expect(result.stdout).toMatch(/\d+ changes would be made; none was/);
    expect(tree(root)).toEqual(before);
  });

  it('compiles the sources when it is run in a checkout', () => {
    const before = tree(root);
    const result = run(join(repository, 'install.sh'), ['--root', root, '--dry-run']);
    expect(result).toMatchObject({ code: 0, stderr: '' });
    expect(result.stdout).toContain(`compile ${repository}\n`);
    expect(result.stdout).toContain('would: install ');
    expect(tree(root)).toEqual(before);
  });

  it('writes what containerd itself reads back as meant, into a file that stays a link and as closed as it was', () => {
    const secret = `${CONTAINERD}\n[plugins."io.containerd.grpc.v1.cri".registry.configs."r.example".auth]\n  password = "hunter2"\n`;
    fs.mkdirSync(at('srv'));
    fs.rmSync(at('etc/containerd/config.toml'));
    fs.writeFileSync(at('srv/containerd.toml'), secret, { mode: 0o600 });
    fs.symlinkSync('../../srv/containerd.toml', at('etc/containerd/config.toml'));
    const result = install();
    expect(result).toMatchObject({ code: 0, stderr: '' });
    expect(result.stdout).not.toContain('hunter2');
    expect(fs.readlinkSync(at('etc/containerd/config.toml'))).toBe('../../srv/containerd.toml');
    expect(fs.statSync(at('srv/containerd.toml')).mode & 0o777).toBe(0o600);
    const dump = run('containerd', ['-c', at('etc/containerd/config.toml'), 'config', 'dump']);
    expect(dump.code).toBe(0);
    const proxy = dump.stdout.slice(dump.stdout.indexOf('[proxy_plugins.overlaybd]'));
    expect(proxy).toContain('address = "/run/overlaybd-sidecar/snapshotter.sock"');
    expect(proxy).toContain('type = "snapshot"');
    expect(dump.stdout).toMatch(/disable_snapshot_annotations = false/);
    expect(dump.stdout).toMatch(/snapshotter = "overlaybd"/);
  });

  it('installs what runs by itself, a second run changes nothing, and --uninstall takes everything back', () => {
    const before = tree(root);
    const first = install();
    expect(first).toMatchObject({ code: 0, stderr: '' });
    const [version] = versions();
    expect(read('usr/local/bin/../../../etc/systemd/system/overlaybd-sidecar.service')).toContain(
      'ExecStart=/opt/overlaybd-sidecar/current/bin/node ',
    );
    expect(fs.readlinkSync(at('opt/overlaybd-sidecar/current'))).toBe(version);
    expect(read('etc/containerd/config.toml')).toContain('snapshotter = "overlaybd" #overlaybd-sidecar');
    expect(read('etc/containerd/config.toml.before-overlaybd-sidecar')).toBe(CONTAINERD);
    expect(fs.statSync(at('run/overlaybd-sidecar')).mode & 0o777).toBe(0o700);

    // The version directory needs nothing outside itself: every dependency loads, with its own node and its own native parts.
    const app = at(`opt/overlaybd-sidecar/${version}`);
    const dependencies = Object.keys(JSON.parse(fs.readFileSync(join(app, 'package.json'), 'utf8')).dependencies);
    const script = `for (const name of ${JSON.stringify(dependencies)}) if (name !== '@bufbuild/protobuf') await import(name);
      const { default: Database } = await import('better-sqlite3'); new Database(':memory:').close(); console.log(process.execPath)`;
    fs.writeFileSync(join(app, 'probe.mjs'), script);
    const probe = run(join(app, 'node_modules/.bin/node'), [join(app, 'probe.mjs')]);
    fs.rmSync(join(app, 'probe.mjs'));
    expect(probe).toMatchObject({ code: 0, stdout: `${join(app, 'bin/node')}\n` });
    expect(fs.existsSync(join(app, 'node_modules/vitest'))).toBe(false);
    expect(run(join(app, 'bin/obdctl'), ['-o', 'table', 'check-config', at('etc/overlaybd-sidecar/config.toml')]).stdout).toContain(
      ': valid',
    );

    const installed = tree(root);
    const second = install();
    expect(second.stdout).toContain('nothing to change');
    expect(tree(root)).toEqual(installed);

    // What the unit has the processes write.
    fs.mkdirSync(at('var/cache/overlaybd-sidecar/v8'), { recursive: true });
    const gone = install('--uninstall');
    expect(gone).toMatchObject({ code: 0, stderr: '' });
    expect(fs.readdirSync(at('var/cache'))).toEqual([]);
    fs.rmSync(at('var'), { recursive: true });
    const directories = /^\/(etc|opt|run|usr)(\/(systemd|system|tmpfiles\.d|local|bin))* 4/;
    expect(tree(root).filter((line) => !directories.test(line))).toEqual(before.filter((line) => !directories.test(line)));
    expect(install('--uninstall').stdout).toContain('nothing to change');
  });

  it('installs an upgrade beside the running version, which it never touches, and removes only what nothing runs from', () => {
    expect(install().code).toBe(0);
    const [first] = versions();
    const before = tree(at(`opt/overlaybd-sidecar/${first}`));
    const marker = join(release, 'dist/plugin/base/units.js');
    const original = fs.readFileSync(marker, 'utf8');
    try {
      const names = ['two', 'three'].map((name) => {
        fs.writeFileSync(marker, `${original}// ${name}\n`);
        expect(install().code).toBe(0);
        return fs.readlinkSync(at('opt/overlaybd-sidecar/current'));
      });
      expect(new Set([first, ...names]).size).toBe(3);
      // The first is neither current nor the one before.
      expect(versions().sort()).toEqual([...names].sort());
      expect(before.length).toBeGreaterThan(100);
      // Run again it keeps the one before, to go back to, and clears away what a run that was killed left.
      fs.mkdirSync(at('opt/overlaybd-sidecar/.new.abcdef'));
      expect(install().stdout).toContain('which was never finished');
      expect(versions().sort()).toEqual([...names].sort());
    } finally {
      fs.writeFileSync(marker, original);
    }
  });

  it('keeps a version that a process runs from', async () => {
    expect(install().code).toBe(0);
    const [first] = versions();
    const app = at(`opt/overlaybd-sidecar/${first}`);
    const before = tree(app);
    const { spawn } = await import('node:child_process');
    const keeper = spawn(join(app, 'bin/node'), ['-e', 'process.stdin.resume()'], { stdio: ['pipe', 'ignore', 'ignore'] });
    const marker = join(release, 'dist/plugin/base/units.js');
    const original = fs.readFileSync(marker, 'utf8');
    try {
      for (const name of ['two', 'three']) {
        fs.writeFileSync(marker, `${original}// ${name}\n`);
        expect(install().code).toBe(0);
      }
      expect(versions()).toContain(first);
      expect(versions()).toHaveLength(3);
      expect(tree(app)).toEqual(before);
      const refused = install('--uninstall');
      expect(refused.code).toBe(1);
      expect(refused.stderr).toContain('processes still run from');
      const prefix = at('opt/overlaybd-sidecar');
      // The process that holds the lock becomes the installation's child, which finds it taken.
      const second = run('flock', [prefix, join(release, 'install.sh'), '--root', root]);
      expect(second.code).toBe(1);
      expect(second.stderr).toContain(`another install.sh works on ${prefix}`);
    } finally {
      fs.writeFileSync(marker, original);
      const ended = new Promise((resolve) => keeper.once('exit', resolve));
      keeper.kill('SIGKILL');
      await ended;
    }
  });

  it('follows --prefix, --config and the directories of the configuration', () => {
    fs.mkdirSync(at('srv'), { recursive: true });
    fs.writeFileSync(at('srv/obd.toml'), '[paths]\nrun = "/run/elsewhere"\nroot = "/srv/data"\n');
    const result = install('--prefix', '/srv/app', '--config', '/srv/obd.toml', '--no-cri');
    expect(result).toMatchObject({ code: 0, stderr: '' });
    const unit = read('etc/systemd/system/overlaybd-sidecar.service');
    expect(unit).toContain('ExecStart=/srv/app/current/bin/node ');
    expect(unit).toContain('--config /srv/obd.toml');
    expect(unit).not.toContain('/opt/');
    expect(read('etc/tmpfiles.d/overlaybd-sidecar.conf')).toContain('d /run/elsewhere 0700');
    expect(read('etc/containerd/config.toml')).toContain('address = "/run/elsewhere/snapshotter.sock"');
    expect(read('etc/containerd/config.toml')).toContain('root = "/srv/data"');
    expect(read('etc/containerd/config.toml')).not.toContain('snapshotter = "overlaybd"');
    expect(read('srv/obd.toml')).toContain('/run/elsewhere');
  });

  it.each([
    ['a wrong configuration', 'etc/overlaybd-sidecar/config.toml', '[store]\nbudget_bytes = 1\n', /store\.budget_bytes: 1 is below/],
    [
      "another snapshotter's stanza",
      'etc/containerd/config.toml',
      '[proxy_plugins.overlaybd]\naddress = "/x.sock"\n',
      /another snapshotter/,
    ],
  ])('refuses %s and names it', (_, file, text, message) => {
    fs.mkdirSync(join(at(file), '..'), { recursive: true });
    fs.writeFileSync(at(file), text);
    const result = install();
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(message);
    expect(read(file)).toBe(text);
  });

  it('refuses a configuration that is a link out of the root, and leaves what it leads to', () => {
    const outside = join(scratch, 'outside.toml');
    fs.writeFileSync(outside, CONTAINERD);
    fs.rmSync(at('etc/containerd/config.toml'));
    fs.symlinkSync(outside, at('etc/containerd/config.toml'));
    const result = install();
    expect(result.code).toBe(1);
    expect(result.stderr).toContain(`leads out of ${root}, to ${outside}`);
    expect(fs.readFileSync(outside, 'utf8')).toBe(CONTAINERD);
    expect(fs.existsSync(at('opt'))).toBe(false);
  });

  it('makes good with systemd what an interrupted run did not, and does not uninstall under a kubelet that pulls through it', () => {
    const fake = join(root, 'systemctl');
    fs.writeFileSync(
      fake,
      `#!/bin/sh
echo "systemctl $*" >>/run/calls
case $1 in
  --version) echo 'systemd 252 (252.1)' ;;
  is-active) test -e /run/active ;;
  start) touch /run/active ;;
  show) cat /run/needs-reload ;;
  daemon-reload) echo no >/run/needs-reload ;;
esac
`,
      { mode: 0o755 },
    );
    // Everything that is written lies in memory of this mount namespace; the machine itself keeps its systemd, or none.
    const script = `
for place in /run /etc/systemd/system /etc/tmpfiles.d /usr/local/bin; do mount -t tmpfs none $place; done
mkdir -p /run/systemd/system
echo no >/run/needs-reload
install() { : >/run/calls; "${join(release, 'install.sh')}" --prefix /run/app --config /run/obd.toml --no-containerd; grep -e reload -e ' start' /run/calls || true; }
install; echo ==
echo yes >/run/needs-reload
install; echo ==
/run/app/current/bin/node -e 'setTimeout(() => {}, 600_000)' kubelet --image-service-endpoint=unix:///run/overlaybd-sidecar/cri.sock >/dev/null 2>&1 &
trap "kill $!" EXIT
until readlink /proc/$!/exe | grep -q /run/app; do sleep 0.05; done
install; echo ==
"${join(release, 'install.sh')}" --prefix /run/app --config /run/obd.toml --containerd-config /run/containerd.toml --uninstall 2>&1 || true`;
    const result = spawnSync('unshare', ['--mount', '--propagation', 'private', 'sh', '-euc', script], {
      encoding: 'utf8',
      timeout: 120_000,
      env: { ...process.env, PATH: `${root}:${process.env.PATH}` },
    });
    expect(result).toMatchObject({ status: 0, stderr: '' });
    const [first, interrupted, whole, inUse] = result.stdout.split('==\n');
    expect(first).toContain('systemctl start overlaybd-sidecar\n');
    expect(interrupted).toContain('systemctl daemon-reload\n');
    expect(interrupted).toContain('systemctl reload overlaybd-sidecar\n');
    expect(whole).toContain('nothing to change\n');
    expect(whole).not.toContain('systemctl reload');
    expect(inUse).toMatch(
      /process \d+ .* still has this service for its images: point kubelet's image service back .*; nothing was changed\n/,
    );
    expect(inUse).not.toContain('remove ');
  });

  it.each([
    [['--prefix', 'relative'], /--prefix: relative is not an absolute path/],
    [['--prefix', '/a b'], /characters other than/],
    [['--nonsense'], /unknown option --nonsense/],
    [['--purge'], /--purge goes with --uninstall/],
  ])('refuses the options %j', (args, message) => {
    const result = install(...args);
    expect(result.code).toBe(1);
    expect(result.stderr).toMatch(message);
  });

  it('installs a unit that systemd accepts, with its program in place', () => {
    expect(install().code).toBe(0);
    // systemd looks for its own targets in the same root.
    fs.cpSync('/lib/systemd/system', at('lib/systemd/system'), { recursive: true, verbatimSymlinks: true });
    fs.mkdirSync(at('bin'), { recursive: true });
    fs.copyFileSync('/bin/kill', at('bin/kill'));
    const verified = run('systemd-analyze', ['verify', '--recursive-errors=no', '--man=no', `--root=${root}`, 'overlaybd-sidecar.service']);
    expect(verified).toEqual({ code: 0, stdout: '', stderr: '' });
  });
});
