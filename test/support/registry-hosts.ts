/** Makes containerd hosts directories for tests. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

/**
 * A directory as containerd's `config_path`. Each registry has either a list of origins (the last is its server, the others are mirrors)
 * or the text of its hosts.toml.
 */
export function makeHostsDir(registries: Readonly<Record<string, readonly string[] | string>>): { certsDir: string; cleanUp: () => void } {
  const certsDir = mkdtempSync(join(tmpdir(), 'obd-hosts-'));
  for (const [host, content] of Object.entries(registries)) {
    mkdirSync(join(certsDir, host));
    writeFileSync(join(certsDir, host, 'hosts.toml'), typeof content === 'string' ? content : hostsToml(content));
  }
  return { certsDir, cleanUp: () => rmSync(certsDir, { recursive: true, force: true }) };
}

function hostsToml(origins: readonly string[]): string {
  const mirrors = origins.slice(0, -1).map((origin) => `[host.${JSON.stringify(origin)}]\n  capabilities = ["pull", "resolve"]\n`);
  return [`server = ${JSON.stringify(origins.at(-1))}`, ...mirrors].join('\n');
}
