import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { loadConfig, parseConfig } from '../../../../../plugin/base/config/config.ts';
import { isAppError } from '../../../../../plugin/base/errors.ts';

const directory = mkdtempSync(join(tmpdir(), 'obd-config-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

/** The message of the refusal, which must be InvalidArgument. */
function refusal(text: string): string {
  try {
    parseConfig(text, 'x.toml');
  } catch (error) {
    expect(isAppError(error, 'InvalidArgument')).toBe(true);
    return (error as Error).message;
  }
  throw new Error('the configuration was accepted');
}

describe('parseConfig', () => {
  it('gives every default for an empty file, socket paths made absolute', () => {
    const config = parseConfig('', 'x.toml');
    expect(config.store.budgetBytes).toBe(50 * 2 ** 30);
    expect(config.snapshotter).toEqual({
      socket: '/run/overlaybd-sidecar/snapshotter.sock',
      prepareDeadlineMs: 30_000,
      watchIntervalMs: 600_000,
      mountOptions: [],
      remapIds: false,
    });
    expect(config.twins).toEqual({
      enabled: true,
      prefer: 'full',
      lookupBudgetMs: 300,
      negativeTtlMs: 60_000,
      trusted: [],
      elsewhere: [],
    });
    expect(config.admin.tcpListen).toBeUndefined();
    expect(config.fetch.fill).toBe('off');
    expect(config.verify).toBe('transport');
    expect(Object.isFrozen(config.store)).toBe(true);
  });

  it('reads sizes and durations with their units, and sockets relative to the run directory', () => {
    const config = parseConfig(
      'verify = "full-layer-first"\n[paths]\nrun = "/run/x"\n[store]\nbudget_bytes = "1.5TiB"\ncheckpoint = "500ms"\n[fetch]\npatience = "1h30m"\n[admin]\nsocket = "/tmp/a.sock"\n',
      'x.toml',
    );
    expect(config.verify).toBe('full-layer-first');
    expect(config.store).toMatchObject({ budgetBytes: 1.5 * 2 ** 40, checkpointMs: 500 });
    expect(config.fetch.patienceMs).toBe(5_400_000);
    expect(config.snapshotter.socket).toBe('/run/x/snapshotter.sock');
    expect(config.admin.socket).toBe('/tmp/a.sock');
  });

  it.each([
    ['[store]\nbudget_bytes = 12', 'store.budget_bytes: 12 is below 1073741824 (1GiB); allowed: 1073741824 (1GiB) to'],
    ['[store]\nbudget_bytes = "20GB"', 'store.budget_bytes: "20GB" is not a number of bytes or text such as "20GiB"'],
    ['[store]\nbudget_bytes = true', 'store.budget_bytes: true is not a number of bytes'],
    ['[store]\nbudget_bytes = -1', 'store.budget_bytes: -1 is below'],
    ['[blockd]\nworkers = 17', 'blockd.workers: 17 is above 16; allowed: 1 to 16'],
    ['[blockd]\nworkers = 2.5', 'blockd.workers: 2.5 is not a whole number'],
    ['[blockd]\nworkers = nan', 'blockd.workers: null is not a whole number'],
    ['[fetch]\npatience = 30', 'fetch.patience: 30 is not a duration with its unit'],
    ['[fetch]\nfill = "maybe"', 'fetch.fill: "maybe" is not one of "off", "on"'],
    ['[fetch]\nconcurency = 3', 'fetch.concurency: unknown key; did you mean fetch.concurrency?'],
    ['budget_bytes = 3', 'budget_bytes: unknown key; did you mean store.budget_bytes?'],
    ['[stor]\nx = 1', 'stor: unknown key; did you mean store?'],
    ['[fetch]\nqqqqqqqq = 3', 'fetch.qqqqqqqq: unknown key'],
    ['store = 3', 'store: is not a section'],
    ['[paths]\nroot = "var"', 'paths.root: "var" is not an absolute path'],
    ['[admin]\nsocket = "../x"', 'admin.socket: "../x" leaves paths.run'],
    ['[admin]\nsocket = "snapshotter.sock"', 'admin.socket: is the same path as snapshotter.socket'],
    [`[paths]\nrun = "/${'r'.repeat(100)}"`, 'is longer than 107 bytes'],
    ['[admin]\ntcp_listen = "0.0.0.0:80"\ntcp_token_file = "/t"', 'admin.tcp_listen: "0.0.0.0:80" is not a loopback address'],
    ['[admin]\ntcp_listen = "[::]:80"\ntcp_token_file = "/t"', 'is not a loopback address'],
    ['[admin]\ntcp_listen = "127.example.com:80"\ntcp_token_file = "/t"', 'is not a loopback address'],
    ['[admin]\ntcp_listen = "127.0.0.1:99999"\ntcp_token_file = "/t"', 'port is outside 1 to 65535'],
    ['[twins]\ntrusted = ["registry.example/Team"]', 'twins.trusted: "registry.example/Team" is not host[:port]/path'],
    ['[twins]\nelsewhere = ["a b/c"]', 'twins.elsewhere: "a b" is not host or host:port'],
    ['[registry]\nplain_http = ["a b"]', 'registry.plain_http: "a b" is not host or host:port'],
    ['[snapshotter]\nmount_options = ["volatile", "upperdir=/x"]', 'snapshotter.mount_options: "upperdir=/x" is not name or name=value'],
    ['[snapshotter]\nmount_options = ["lowerdir"]', 'snapshotter.mount_options: "lowerdir" is set by the snapshotter itself'],
    ['a = ', 'x.toml: line 1, column'],
  ])('refuses %j and names key, value and range', (text, message) => {
    expect(refusal(text)).toContain(message);
  });

  it('lists every mistake at once, up to twenty', () => {
    const message = refusal(Array.from({ length: 25 }, (_, index) => `unknown_${index} = 1`).join('\n'));
    expect(message.match(/unknown key/g)).toHaveLength(20);
    expect(message).toContain('and 5 more');
  });
});

describe('loadConfig', () => {
  it('names a missing file that was asked for', () => {
    expect(() => loadConfig(join(directory, 'none.toml'))).toThrow(/none\.toml: no such file/);
  });

  it('refuses a file over 1 MiB before reading it', () => {
    const file = join(directory, 'big.toml');
    writeFileSync(file, '#'.repeat(2 ** 20 + 1));
    expect(() => loadConfig(file)).toThrow(/1048577 bytes are more than 1048576/);
  });

  it('reads the file it is given', () => {
    const file = join(directory, 'good.toml');
    writeFileSync(file, '[log]\nlevel = "warn"\n');
    expect(loadConfig(file).log.level).toBe('warn');
  });
});
