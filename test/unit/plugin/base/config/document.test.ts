import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { parseConfig } from '../../../../../plugin/base/config/config.ts';
import { configExample, configMarkdown } from '../../../../../plugin/base/config/document.ts';

const repository = join(import.meta.dirname, '../../../../..');
const read = (name: string): string => readFileSync(join(repository, name), 'utf8');

describe('what people read about the options', () => {
  it('README shows exactly the table that the code has (paste configMarkdown() between the markers)', () => {
    const match = /<!-- configuration table: begin -->\n\n([\s\S]*?)\n<!-- configuration table: end -->/.exec(read('README.md'));
    expect(match?.[1]).toBe(configMarkdown());
  });

  it('the installed example file is exactly what the code writes (systemd/config.toml)', () => {
    expect(read('systemd/config.toml')).toBe(configExample());
  });

  it('the example changes nothing as it stands, and is valid with every default written out', () => {
    const defaults = parseConfig('', 'x');
    expect(parseConfig(configExample(), 'x')).toEqual(defaults);
    const written = configExample().replaceAll(/^#(\w+ = .*)$/gm, '$1');
    expect(written).toMatch(/^budget_bytes = "50GiB"$/m);
    expect(parseConfig(written, 'x')).toEqual(defaults);
  });
});

describe('every option', () => {
  it('is read by some process: what the README promises has an effect', () => {
    const config = parseConfig('', 'x');
    const names = Object.values(config).flatMap((section) => (typeof section === 'object' ? Object.keys(section) : []));
    const sources = ['plugin', 'admin'].flatMap((top) =>
      readdirSync(join(repository, top), { recursive: true, withFileTypes: true })
        .filter((entry) => entry.isFile() && entry.name.endsWith('.ts') && !/node_modules|base\/config/.test(entry.parentPath))
        .map((entry) => readFileSync(join(entry.parentPath, entry.name), 'utf8'))
        .filter((text) => text.includes('loadConfig') || text.includes('Config }') || text.includes('Config,')),
    );
    // Permissions that the loader itself checks.
    const permissions = ['tcpBeyondLoopback', 'webhookBeyondLoopback'];
    const unread = [...names, 'verify'].filter(
      (name) => !permissions.includes(name) && !sources.some((text) => new RegExp(`\\b${name}\\b`).test(text)),
    );
    expect(unread).toEqual([]);
  });
});
