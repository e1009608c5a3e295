/** Secrets come from the terminal without echo, or from standard input: never from arguments, which every user of the machine can read. */
import readline from 'node:readline/promises';
import { Writable } from 'node:stream';
import { AppError } from '../plugin/base/errors.ts';
import { INTERRUPTED } from './follow.ts';

const MAX_SECRET_CHARS = 65_536;

let lines: AsyncIterator<string> | undefined;

/** Asks on a terminal; elsewhere takes the next line of standard input. Throws InvalidArgument when there is none. */
export async function readSecret(prompt: string): Promise<string> {
  const secret = process.stdin.isTTY ? await ask(prompt) : await nextLine();
  if (secret !== '' && secret.length <= MAX_SECRET_CHARS) return secret;
  throw new AppError('InvalidArgument', { op: 'read', subject: 'secret', what: `1 to ${MAX_SECRET_CHARS} characters are expected` });
}

async function ask(prompt: string): Promise<string> {
  process.stderr.write(prompt);
  const silent = new Writable({ write: (_chunk, _encoding, done) => done() });
  const terminal = readline.createInterface({ input: process.stdin, output: silent, terminal: true });
  // The terminal is in raw mode, so Ctrl-C is a key like others here; Ctrl-D closes the input.
  terminal.once('SIGINT', () => {
    process.stderr.write('\n');
    process.exit(INTERRUPTED);
  });
  const closed = new Promise<string>((resolve) => terminal.once('close', () => resolve('')));
  try {
    return await Promise.race([closed, terminal.question('')]);
  } finally {
    terminal.close();
    process.stderr.write('\n');
  }
}

async function nextLine(): Promise<string> {
  lines ??= readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
  const { value, done } = await lines.next();
  return done === true ? '' : value;
}
