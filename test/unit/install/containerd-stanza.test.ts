import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parse } from 'smol-toml';
import { afterAll, describe, expect, it } from 'vitest';
import { addStanza, removeStanza, type StanzaOptions } from '../../../admin/install/containerd-stanza.ts';
import { valueAt } from '../../../admin/install/toml-edit.ts';
import { loadConfig } from '../../../plugin/base/config/config.ts';

const directory = mkdtempSync(join(tmpdir(), 'obd-stanza-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const config = loadConfig();
const OPTIONS: StanzaOptions = {
  socket: config.snapshotter.socket,
  root: config.paths.root,
  isCri: true,
  mayRemapIds: false,
  newFileVersion: 2,
};
const CRI2 = 'plugins."io.containerd.grpc.v1.cri"';

const FILES: Record<string, string> = {
  'an empty file': '',
  'a version 2 file without plugins': 'version = 2\n',
  "docker's file, version 1 with CRI off": 'disabled_plugins = ["cri"]\n\n#root = "/var/lib/containerd"\n',
  'the keys are there with other values and a comment': `version = 2\n[${CRI2}.containerd]\n  snapshotter = "overlayfs" # the default\n  disable_snapshot_annotations = true\n  [${CRI2}.containerd.runtimes.runc]\n    runtime_type = "io.containerd.runc.v2"\n`,
  'the table is there without the keys': `version = 2\n  [${CRI2}.containerd]\n    no_pivot = false\n\n[grpc]\n  address = "/run/x"\n`,
  'only a deeper table is there': `version = 2\n[${CRI2}.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n`,
  'no line break at the end': 'version = 2\n[debug]\n  level = "info"',
  'no line break and an own table': `version = 2\n[${CRI2}.containerd]\n  snapshotter = "overlayfs"`,
  'version 3': `version = 3\n[plugins.'io.containerd.cri.v1.images']\n  snapshotter = 'overlayfs'\n[plugins.'io.containerd.cri.v1.runtime']\n  x = 1\n`,
  'strings and arrays that look like headers and keys': `version = 2\nx = """\n[${CRI2}.containerd]\nsnapshotter = "no"\n"""\ny = [\n  "a",\n  ["[proxy_plugins.overlaybd]"],\n]\n[${CRI2}.containerd]\nz = 1\n`,
  'another proxy plugin': '[proxy_plugins]\n  [proxy_plugins.stargz]\n    type = "snapshot"\n    address = "/run/s.sock"\n',
  'carriage returns': 'version = 2\r\n[debug]\r\n  level = "info"\r\n',
};

describe('containerd stanza', () => {
  it.each(Object.entries(FILES))('is added once and taken back to the byte: %s', (_, text) => {
    const file = join(directory, 'config.toml');
    const { text: edited } = addStanza(text, file, OPTIONS);
    const document = parse(edited);
    expect(valueAt(document, ['proxy_plugins', 'overlaybd'])).toEqual({
      type: 'snapshot',
      address: OPTIONS.socket,
      exports: { root: OPTIONS.root },
    });
    const cri =
      document.version === 3
        ? ['plugins', 'io.containerd.cri.v1.images']
        : document.version === 2
          ? ['plugins', 'io.containerd.grpc.v1.cri', 'containerd']
          : ['plugins', 'cri', 'containerd'];
    expect(valueAt(document, cri)).toMatchObject({ snapshotter: 'overlaybd', disable_snapshot_annotations: false });
    // Every line of the original is still there, changed ones as comments.
    for (const line of text.split('\n')) expect(edited).toContain(line);
    expect(addStanza(edited, file, OPTIONS).text).toBe(edited);
    expect(removeStanza(edited)).toBe(text === '' ? undefined : text);
  });

  it('takes back its own lines also after a person edited others', () => {
    const { text } = addStanza(FILES['the keys are there with other values and a comment']!, 'c', OPTIONS);
    const after = removeStanza(text.replace('runc.v2', 'kata.v2').replace('version = 2\n', 'version = 2\noom_score = -5\n'));
    expect(after).toBe(
      FILES['the keys are there with other values and a comment']!.replace('runc.v2', 'kata.v2').replace(
        'version = 2\n',
        'version = 2\noom_score = -5\n',
      ),
    );
  });

  it('makes a file that was not there, in the version of this containerd, and the file goes again', () => {
    const made = addStanza(undefined, 'c', { ...OPTIONS, newFileVersion: 3 });
    expect(parse(made.text)).toMatchObject({ version: 3, plugins: { 'io.containerd.cri.v1.images': { snapshotter: 'overlaybd' } } });
    expect(removeStanza(made.text)).toBeUndefined();
  });

  it('leaves CRI alone when told so', () => {
    expect(addStanza('version = 2\n', 'c', { ...OPTIONS, isCri: false }).text).not.toContain('snapshotter =');
  });

  it('tells containerd of id mapping when the configuration has it, and takes that back too', () => {
    const { text } = addStanza('version = 3\n', 'c', { ...OPTIONS, mayRemapIds: true });
    expect(valueAt(parse(text), ['proxy_plugins', 'overlaybd', 'capabilities'])).toEqual(['remap-ids']);
    expect(addStanza(text, 'c', { ...OPTIONS, mayRemapIds: true }).text).toBe(text);
    expect(removeStanza(text)).toBe('version = 3\n');
  });

  it.each([
    ['version = 2\nx = \n', /line 2, column .* is not TOML; nothing was changed/],
    ['version = 9\n', /version 9 is not one of/],
    [
      '[proxy_plugins.overlaybd]\ntype = "snapshot"\naddress = "/run/overlaybd-snapshotter/overlaybd.sock"\n',
      /points to "\/run\/overlaybd-snapshotter\/overlaybd.sock", another snapshotter/,
    ],
    ['version = 2\nproxy_plugins = { x = { type = "snapshot" } }\n', /add it by hand:\nversion = 2\n/],
    [`version = 2\n[${CRI2}]\ncontainerd.snapshotter = "overlayfs"\n`, /add it by hand/],
  ])('refuses a file that it cannot edit safely: %j', (text, message) => {
    expect(() => addStanza(text, 'c.toml', OPTIONS)).toThrow(message);
  });

  it('reads imported files: another overlaybd there is refused, an overriding CRI key is told', () => {
    const file = join(directory, 'main.toml');
    const drop = join(directory, 'drop.toml');
    const main = 'version = 2\nimports = ["drop*.toml"]\n';
    writeFileSync(drop, `version = 2\n[${CRI2}.containerd]\nsnapshotter = "overlayfs"\n`);
    expect(addStanza(main, file, OPTIONS).notices).toEqual([
      `${drop} sets plugins.io.containerd.grpc.v1.cri.containerd.snapshotter to "overlayfs" and overrides ${file}; change it there`,
    ]);
    writeFileSync(drop, '[proxy_plugins.overlaybd]\naddress = "/run/other.sock"\n');
    expect(() => addStanza(main, file, OPTIONS)).toThrow(/drop\.toml: proxy_plugins\.overlaybd\.address is "\/run\/other\.sock" already/);
  });

  it('says when CRI is switched off', () => {
    expect(addStanza(FILES["docker's file, version 1 with CRI off"]!, 'c', OPTIONS).notices[0]).toContain('disables the CRI plugin');
  });

  it.each([2, 3] as const)('is what the fragment for version %i in systemd/containerd says', (version) => {
    const fragment = readFileSync(join(import.meta.dirname, `../../../systemd/containerd/config-v${version}.toml`), 'utf8');
    expect(parse(fragment)).toEqual(parse(addStanza(undefined, 'c', { ...OPTIONS, newFileVersion: version }).text));
  });
});
