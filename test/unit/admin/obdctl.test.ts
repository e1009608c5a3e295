import { execFile } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { type AdminServer, startAdminServer } from '../../../admin/server.ts';
import { fakeApp } from './fake-app.ts';
import { fakeServices } from './fake-services.ts';

// Each test starts some ten processes, one after the other.
vi.setConfig({ testTimeout: 300_000 });

const directory = mkdtempSync(join(tmpdir(), 'obd-ctl-'));
const socket = join(directory, 'admin.sock');
const program = join(import.meta.dirname, '../../../admin/obdctl.ts');
let isReady = true;
let server: AdminServer;

beforeAll(async () => {
  const services = fakeServices();
  const status: typeof services.status = async (signal) => {
    return { ...(await services.status(signal)), isReady, degraded: isReady ? [] : ['blockd is down'] };
  };
  server = await startAdminServer({
    app: fakeApp({ services: { ...services, status } }).app,
    socketPath: socket,
  });
});
afterAll(async () => {
  await server.close();
  rmSync(directory, { recursive: true, force: true });
});

/** As it is where people look: with tables, which a test is not given otherwise. */
const obdctl = (...args: string[]) => piped('-o', 'table', ...args);

function piped(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [program, ...args], { timeout: 120_000 }, (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : typeof error.code === 'number' ? error.code : -1, stdout, stderr });
    });
  });
}

describe('obdctl', () => {
  it('prints tables for people, with control characters made visible', async () => {
    const devices = await obdctl('--socket', socket, 'devices');
    expect(devices).toMatchObject({ code: 0, stderr: '' });
    expect(devices.stdout).toMatch(/^DEVICE +STATE/);
    expect(devices.stdout).toContain('registry.example/app:1\\x1b[31m');
    const snapshots = await obdctl('--socket', socket, 'snapshots');
    expect(snapshots.stdout).toContain('broken: directory 3 is missing');
    expect(snapshots.stdout).toContain('layer 3 is gzip without an index');
    expect((await obdctl('--socket', socket, 'store')).stdout).toContain('500 B of 1000 B (50.0 %)');
    expect((await obdctl('--socket', socket, 'events')).stdout).toContain('store-degraded');
    expect((await obdctl('--socket', socket, 'traffic')).stdout).toContain('64.0 KiB for reads, 1.0 KiB ahead of them');
    const done = await obdctl('--socket', socket, 'materialize', 'registry.example/app:1');
    expect(done.stdout).toContain('2 layers, 2.0 KiB complete (1.0 KiB fetched, 1.0 KiB were local)');
  });

  it('prints JSON for programs: into a pipe, or when asked', async () => {
    const { stdout } = await piped('--socket', socket, 'snapshots', '--broken');
    expect(JSON.parse(stdout)).toMatchObject({ snapshots: [{ key: 'default/c' }] });
    expect(JSON.parse((await obdctl('--socket', socket, '--json', 'store')).stdout)).toMatchObject({ blobCount: 3 });
  });

  it('prints tables on a terminal, and JSON there when asked', async () => {
    // script(1) gives the command a terminal and passes on what it writes.
    const onTerminal = (...args: string[]): Promise<string> => {
      const command = [process.execPath, program, '--socket', socket, ...args].map((word) => `'${word}'`).join(' ');
      return new Promise((resolve, reject) => {
        const child = execFile('script', ['-qec', command, '/dev/null'], { timeout: 120_000 }, (error, stdout) =>
          error === null ? resolve(stdout) : reject(error),
        );
        child.stdin?.end();
      });
    };
    expect(await onTerminal('materialize', 'registry.example/app:1')).toMatch(/2 layers, 2\.0 KiB complete/);
    expect(await onTerminal('store')).toMatch(/^STORE\s+used +500 B of 1000 B/);
    expect(JSON.parse(await onTerminal('store', '-o', 'json'))).toMatchObject({ blobCount: 3 });
  });

  it('takes sizes and times as people say them', async () => {
    expect((await obdctl('--socket', socket, 'store', 'evict', '1GiB')).stdout).toBe('1 blobs with 300 B removed; 200 B in use\n');
    expect(await obdctl('--socket', socket, 'store', 'evict', 'much')).toMatchObject({
      code: 2,
      stderr: expect.stringContaining('such as 20GiB'),
    });
    expect((await obdctl('--socket', socket, 'events', '--since', '12h')).code).toBe(0);
    expect((await obdctl('--socket', socket, 'events', '--since', '2999-01-31')).stdout).toMatch(/^TIME[^\n]*\n\(none\)\n$/);
    expect((await obdctl('--socket', socket, 'events', '--since', 'yesterday')).code).toBe(2);
  });

  it('shows who changed what', async () => {
    const wrong = await obdctl('--socket', socket, 'materialize', 'nothing');
    expect(wrong.code).toBe(1);
    expect((await obdctl('--socket', socket, 'audit')).stdout).toMatch(/change +socket +POST +\/v1\/materialize +404 +[0-9a-f-]{36}/);
    expect((await obdctl('--socket', socket, 'audit', '--kind', 'refusal')).stdout).toContain('(none)');
  });

  it('says by its exit code what happened', async () => {
    expect((await obdctl('--socket', socket, 'status')).code).toBe(0);
    isReady = false;
    const degraded = await obdctl('--socket', socket, 'status');
    isReady = true;
    expect(degraded.code).toBe(4);
    expect(degraded.stdout).toContain('! blockd is down');
    const refused = await obdctl('--socket', socket, 'materialize', 'nothing');
    expect(refused).toMatchObject({ code: 1, stderr: 'obdctl: materialize nothing: no such image\n' });
    const absent = await obdctl('--socket', join(directory, 'none.sock'), 'status');
    expect(absent.code).toBe(3);
    expect(absent.stderr).toContain('none.sock: the service is not running (systemctl status overlaybd-sidecar)');
    expect((await obdctl('nonsense')).code).toBe(2);
    const help = await obdctl('--help');
    expect(help.code).toBe(0);
    expect(help.stdout).toContain('materialize');
    const [behind, before, misspelt] = await Promise.all([
      obdctl('cache', 'create', '-h'),
      obdctl('help', 'cache'),
      obdctl('cache', 'creat'),
    ]);
    expect(behind).toMatchObject({ code: 0, stdout: expect.stringContaining('references, 1 to 20') });
    expect(before).toMatchObject({ code: 0, stdout: expect.stringContaining('match [options] <image...>') });
    expect(misspelt).toMatchObject({ code: 2, stderr: expect.stringContaining('(Did you mean create?)') });
  });

  it('checks a configuration file', async () => {
    const file = join(directory, 'c.toml');
    writeFileSync(file, '[store]\nbudget_bytes = 12\n');
    const wrong = await obdctl('check-config', file);
    expect(wrong.code).toBe(1);
    expect(wrong.stderr).toContain('store.budget_bytes: 12 is below');
    writeFileSync(file, '');
    expect((await obdctl('check-config', file)).stdout).toBe(`${file}: valid\n`);
  });
});
