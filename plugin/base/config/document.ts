/** What people read about the options, written from the table: the README's table and the example file that is installed. */
import type { Option } from './option.ts';
import { SECTION_OPTIONS, TOP_OPTIONS } from './options.ts';

function rows(): { key: string; option: Option<unknown> }[] {
  const of = (prefix: string, options: Readonly<Record<string, Option<unknown>>>): { key: string; option: Option<unknown> }[] =>
    Object.entries(options).map(([key, option]) => ({ key: prefix + key, option }));
  return [...of('', TOP_OPTIONS), ...Object.entries(SECTION_OPTIONS).flatMap(([section, options]) => of(`${section}.`, options))];
}

/** The README's table of options, as Markdown. */
export function configMarkdown(): string {
  const lines = ['| Key | Unit | Default | Range | Reason |', '|---|---|---|---|---|'];
  for (const { key, option } of rows()) {
    const shownDefault = option.fallbackText === '' ? 'unset' : `\`${option.fallbackText}\``;
    lines.push(`| \`${key}\` | ${option.unit} | ${shownDefault} | ${option.range} | ${option.reason} |`);
  }
  return `${lines.join('\n')}\n`;
}

/** The example file: every option as a comment with its default, so that it changes nothing as it stands. */
export function configExample(): string {
  const lines = [
    '# Configuration of overlaybd-sidecar. Every option is shown with its default; remove the # to change it.',
    '# Sizes are bytes or text such as "20GiB", durations text such as "30s". Check the file: obdctl check-config FILE',
    '',
  ];
  const add = (key: string, option: Option<unknown>): void => {
    lines.push(`# ${option.reason}.`, `# ${option.unit}; ${option.range}`);
    lines.push(option.fallbackText === '' ? `#${key} =` : `#${key} = ${option.fallbackText}`, '');
  };
  for (const [key, option] of Object.entries(TOP_OPTIONS)) add(key, option);
  for (const [section, options] of Object.entries(SECTION_OPTIONS)) {
    lines.push(`[${section}]`);
    for (const [key, option] of Object.entries(options)) add(key, option);
  }
  return `${lines.join('\n').trimEnd()}\n`;
}
