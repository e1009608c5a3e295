import { spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';

const repository = join(import.meta.dirname, '../../..');
const systemd = join(repository, 'systemd');
const root = mkdtempSync(join(tmpdir(), 'obd-unit-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** Directives that make a mount namespace: containerd would see empty layer directories. */
const MOUNT_NAMESPACE = [
  ...['PrivateTmp', 'PrivateDevices', 'PrivateMounts', 'PrivateNetwork', 'PrivateIPC', 'PrivateUsers', 'PrivatePIDs', 'PrivateBPF'],
  ...['ProtectSystem', 'ProtectHome', 'ProtectKernelTunables', 'ProtectKernelModules', 'ProtectKernelLogs', 'ProtectControlGroups'],
  ...['ProtectProc', 'ProcSubset', 'ProtectHostname', 'ReadWritePaths', 'ReadOnlyPaths', 'InaccessiblePaths', 'ExecPaths', 'NoExecPaths'],
  ...['TemporaryFileSystem', 'BindPaths', 'BindReadOnlyPaths', 'MountImages', 'ExtensionImages', 'ExtensionDirectories', 'MountFlags'],
  ...['MountAPIVFS', 'RootDirectory', 'RootImage', 'RootEphemeral', 'RootDirectoryFD', 'DynamicUser', 'LogNamespace', 'JoinsNamespaceOf'],
  ...['NetworkNamespacePath', 'IPCNamespacePath', 'LoadCredential', 'LoadCredentialEncrypted', 'SetCredential', 'SetCredentialEncrypted'],
  ...['ImportCredential', 'BindLogSockets'],
];
/** Directives that hide /dev/fuse or loop devices (ProtectClock allows one clock device, so denies all others). */
const HIDES_DEVICES = ['DevicePolicy', 'DeviceAllow', 'ProtectClock'];
/** The JIT compiler needs memory that is writable and executable. */
const STOPS_JIT = ['MemoryDenyWriteExecute'];
/** Removed at each stop, with the mounts in it. */
const REMOVES_MOUNTS = ['RuntimeDirectory', 'RemoveIPC'];
const FORBIDDEN = new Set([...MOUNT_NAMESPACE, ...HIDES_DEVICES, ...STOPS_JIT, ...REMOVES_MOUNTS]);

/** Section → directive → values, continuation lines joined. */
function parseUnit(text: string): Map<string, Map<string, string[]>> {
  const sections = new Map<string, Map<string, string[]>>();
  let current = new Map<string, string[]>();
  const joined = text.replace(/^[#;].*\n/gm, '').replace(/\\\n/g, ' ');
  for (const line of joined.split('\n')) {
    const section = /^\[(\w+)\]$/.exec(line)?.[1];
    const [, key, value] = /^(\w+)=(.*)$/.exec(line) ?? [];
    if (section !== undefined) sections.set(section, (current = new Map()));
    else if (key !== undefined && value !== undefined) current.set(key, [...(current.get(key) ?? []), value]);
    else if (line.trim() !== '') throw new Error(`not understood: ${line}`);
  }
  return sections;
}

const unitFiles = readdirSync(systemd).filter((name) => name.endsWith('.service') || name === 'descriptors.conf');
const unit = parseUnit(readFileSync(join(systemd, 'overlaybd-sidecar.service'), 'utf8'));
const service = (key: string): string | undefined => unit.get('Service')?.get(key)?.at(-1);

function run(program: string, args: readonly string[]): { code: number | null; output: string } {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', timeout: 30_000 });
  if (error !== undefined) throw error;
  return { code: status, output: stdout + stderr };
}

describe('systemd unit', () => {
  it.each(unitFiles)('%s has no directive that hides mounts or devices, or stops the JIT compiler', (name) => {
    const found = [...parseUnit(readFileSync(join(systemd, name), 'utf8')).values()].flatMap((section) => [...section.keys()]);
    expect(found.filter((key) => FORBIDDEN.has(key))).toEqual([]);
    expect(found.length).toBeGreaterThan(0);
  });

  it('is accepted by systemd-analyze verify without a word, with its program in place', () => {
    const node = join(root, 'opt/overlaybd-sidecar/current/bin/node');
    mkdirSync(dirname(node), { recursive: true });
    writeFileSync(node, '#!/bin/true\n');
    chmodSync(node, 0o755);
    const text = readFileSync(join(systemd, 'overlaybd-sidecar.service'), 'utf8').replaceAll(
      '/opt/overlaybd-sidecar',
      join(root, 'opt/overlaybd-sidecar'),
    );
    const file = join(root, 'overlaybd-sidecar.service');
    writeFileSync(file, text);
    expect(run('systemd-analyze', ['verify', '--man=no', file])).toEqual({ code: 0, output: '' });
  });

  it('hardens what it can: the score that systemd-analyze gives offline does not get worse than 8.0', () => {
    const file = join(root, 'score.service');
    copyFileSync(join(systemd, 'overlaybd-sidecar.service'), file);
    const { output } = run('systemd-analyze', ['security', '--no-pager', '--offline=true', file]);
    const score = Number(/Overall exposure level for score\.service: ([0-9.]+)/.exec(output)?.[1]);
    expect(score).toBeLessThanOrEqual(8.0);
  });

  it('starts before containerd and is not stopped by a shutdown, so that it outlives shims and containers', () => {
    expect(unit.get('Unit')?.get('Before')?.[0]).toContain('containerd.service');
    expect(unit.get('Unit')?.get('DefaultDependencies')).toEqual(['no']);
    expect(unit.get('Unit')?.has('Conflicts')).toBe(false);
    expect(unit.get('Install')?.get('WantedBy')?.[0]).toContain('containerd.service');
  });

  it('notifies, keeps descriptors, reloads by SIGHUP and leaves the order of ending to the keeper', () => {
    expect(service('Type')).toBe('notify');
    expect(service('NotifyAccess')).toBe('main');
    expect(service('KillMode')).toBe('process');
    expect(service('ExecReload')).toBe('/bin/kill -HUP $MAINPID');
    expect(service('Restart')).toBe('always');
    expect(service('OOMScoreAdjust')).toBe('-999');
    const limit = /const MAX_CONNECTIONS = (\d+);/.exec(readFileSync(join(repository, 'plugin/keeper/connections.ts'), 'utf8'))?.[1];
    expect(service('FileDescriptorStoreMax')).toBe(limit);
  });
});
