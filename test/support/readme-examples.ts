/** The README's curl examples, run one by one by a real shell with real curl, as an operator would. Ours. */
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** One of the product's answers. */
export interface ExampleAnswer {
  method: string;
  /** With the query. */
  path: string;
  status: number;
  /** Without parameters; empty when there is no body. */
  type: string;
  /** Of a stream of events: what came until its first event was there. */
  body: string;
}

/** The examples' commands, in the README's order. */
export function readmeExamples(): string[] {
  const readme = readFileSync(join(import.meta.dirname, '../../README.md'), 'utf8');
  const section = /<!-- curl examples: begin -->([\s\S]*?)<!-- curl examples: end -->/.exec(readme)?.[1] ?? '';
  return section.split('\n').filter((line) => line.startsWith('curl '));
}

/** A busy machine; curl itself gives up after half of it. */
const DEADLINE_MS = 120_000;

/** Tells apart what curl says of the answer from what it complains about. */
const SAID = 'answered: ';

/** Runs one example with what it expects in its environment: S (the socket), J, ID, TOKEN_ID. Fails with curl's words and the answer. */
export function runExample(example: string, env: Readonly<Record<string, string>>): Promise<ExampleAnswer> {
  const isStream = example.includes(' -N ');
  const options = ['--silent', '--show-error', '--fail-with-body', `--max-time ${DEADLINE_MS / 2000}`, `-w '%{stderr}${SAID}%{json}\\n'`];
  const script = `curl() { exec curl ${options.join(' ')} "$@"; }\n${example}`;
  return new Promise((resolve, reject) => {
    const child = spawn('bash', ['-c', script], {
      env: { ...process.env, J: 'content-type: application/json', ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: DEADLINE_MS,
      killSignal: 'SIGKILL',
    });
    let [stdout, stderr] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      stdout += chunk;
      // A stream has no end of its own: an operator hangs up, too.
      if (isStream && stdout.includes('\n\n')) child.kill('SIGINT');
    });
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => (stderr += chunk));
    child.once('error', reject);
    child.once('close', (code) => {
      const said = stderr.split('\n').find((line) => line.startsWith(SAID));
      const hasHungUp = isStream && stdout.includes('\n\n');
      if (!hasHungUp && (code !== 0 || said === undefined)) reject(new Error(`${example}\nexit ${code}: ${stderr}\n${stdout}`));
      else resolve({ ...(hasHungUp ? streamed(example) : told(said!.slice(SAID.length))), body: stdout });
    });
  });
}

function told(json: string): Omit<ExampleAnswer, 'body'> {
  const said = JSON.parse(json) as { method: string; url_effective: string; http_code: number; content_type: string | null };
  const { pathname, search } = new URL(said.url_effective);
  return { method: said.method, path: pathname + search, status: said.http_code, type: (said.content_type ?? '').split(';')[0]! };
}

/** Of a stream that was left curl says nothing; its URL stands in the example, and only an accepted one has events. */
function streamed(example: string): Omit<ExampleAnswer, 'body'> {
  const path = /http:\/\/localhost(\/[^\s'"?]*)/.exec(example)?.[1] ?? '';
  return { method: 'GET', path, status: 200, type: 'text/event-stream' };
}
