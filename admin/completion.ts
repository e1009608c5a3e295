/**
 * Completion of `obdctl` for bash and zsh, written from the commands themselves: sub-commands, options and the words of options that have a
 * fixed choice. zsh runs bash's function through bashcompinit. To be sourced: `source <(obdctl completion bash)`.
 */
import type { Command, Option } from 'commander';

const SHELLS = ['bash', 'zsh'] as const;
export type Shell = (typeof SHELLS)[number];
export { SHELLS };

/** `obdctl cache ls` → its words; the key of a choice is `obdctl cache ls --status`. */
function wordsOf(command: Command, path: string, words: Map<string, string>): void {
  const options = command.options.filter((option) => !option.hidden);
  const names = options.flatMap((option: Option) => [option.long, option.short].filter((name) => name !== undefined && name !== null));
  words.set(path, [...command.commands.map((one) => one.name()), ...names, '--help'].join(' '));
  for (const option of options) {
    if (option.argChoices === undefined) continue;
    for (const name of [option.long, option.short]) if (name) words.set(`${path} ${name}`, option.argChoices.join(' '));
  }
  for (const one of command.commands) wordsOf(one, `${path} ${one.name()}`, words);
}

/** The script of a shell. */
export function completionScript(program: Command, shell: Shell): string {
  const words = new Map<string, string>();
  wordsOf(program, 'obdctl', words);
  const cases = [...words].map(([path, list]) => `    '${path}') words='${list}' ;;`).join('\n');
  const bash = `_obdctl_words() {
  local words=''
  case "$1" in
${cases}
  esac
  printf '%s' "$words"
}
_obdctl() {
  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}" path='obdctl' i found word
  for ((i = 1; i < COMP_CWORD; i++)); do
    if [ -n "$(_obdctl_words "$path \${COMP_WORDS[i]}")" ] && [[ "\${COMP_WORDS[i]}" != -* ]]; then path="$path \${COMP_WORDS[i]}"; fi
  done
  found="$(_obdctl_words "$path $previous")"
  if [ -z "$found" ] || [[ "$previous" != -* ]]; then found="$(_obdctl_words "$path")"; fi
  COMPREPLY=()
  for word in $found; do case "$word" in "$current"*) COMPREPLY+=("$word") ;; esac; done
  # A path or a name: let the shell complete files.
  if [ \${#COMPREPLY[@]} -eq 0 ]; then COMPREPLY=($(compgen -f -- "$current")); fi
}
complete -F _obdctl obdctl
`;
  return shell === 'bash' ? bash : `autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n${bash}`;
}
