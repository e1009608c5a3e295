/** `npm run docs:config`: writes the README's table of options and the example file anew from the table in code. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { configExample, configMarkdown } from '../../plugin/base/config/document.ts';

const repository = resolve(import.meta.dirname, '../..');
const readme = join(repository, 'README.md');
const begin = '<!-- configuration table: begin -->\n\n';
const end = '\n<!-- configuration table: end -->';
const text = readFileSync(readme, 'utf8');
const from = text.indexOf(begin) + begin.length;
writeFileSync(readme, text.slice(0, from) + configMarkdown() + text.slice(text.indexOf(end)));
writeFileSync(join(repository, 'systemd/config.toml'), configExample());
