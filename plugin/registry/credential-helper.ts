/**
 * Runs docker credential helpers (`docker-credential-<name> get`). Source: docker/docker-credential-helpers README. The program gets the
 * registry on standard input and answers JSON; its error output is dropped, since it may quote secrets.
 */
import { spawn } from 'node:child_process';
import { AppError } from '../base/errors.ts';
import type { Credential } from './credentials.ts';
import { HELPER_FAILURE_HOLD_MS, HELPER_TIMEOUT_MS, MAX_TOKEN_RESPONSE_BYTES } from './limits.ts';

const HELPER_NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$/;
/** What helpers print when they have nothing; any exit with this text means anonymous. */
const NOT_FOUND = 'credentials not found';

export interface HelperOptions {
  readonly timeoutMs?: number;
  /** Where the program is looked up and what it sees; the process's own by default. */
  readonly env?: NodeJS.ProcessEnv;
}

/**
 * Asks one helper. Undefined when it has no credentials for `server`. Throws Unavailable when it cannot be started or fails (its cloud
 * may be away), FailedPrecondition when it answers nonsense, DeadlineExceeded when it takes too long (it is killed then).
 */
export async function runCredentialHelper(name: string, server: string, options: HelperOptions = {}): Promise<Credential | undefined> {
  const subject = `docker-credential-${name.slice(0, 64)}`;
  if (!HELPER_NAME.test(name)) throw new AppError('FailedPrecondition', { op: 'run', subject, what: 'not a name of a credential helper' });
  const { output, exitCode } = await run(subject, server, options);
  if (exitCode !== 0) {
    if (output.toLowerCase().includes(NOT_FOUND)) return undefined;
    throw unavailable(subject, `ended with ${exitCode ?? 'a signal'}`);
  }
  return parseAnswer(output, subject);
}

function unavailable(subject: string, what: string, cause?: unknown): AppError {
  return new AppError('Unavailable', { op: 'run', subject, what, retryAfterMs: HELPER_FAILURE_HOLD_MS, cause });
}

function parseAnswer(output: string, subject: string): Credential | undefined {
  let answer: { Username?: unknown; Secret?: unknown } | null;
  try {
    answer = JSON.parse(output) as typeof answer;
  } catch {
    // The parser's message would quote the secret.
    throw new AppError('FailedPrecondition', { op: 'run', subject, what: 'its answer is not JSON' });
  }
  const username = answer?.Username;
  const secret = answer?.Secret;
  if (typeof username !== 'string' || typeof secret !== 'string') {
    throw new AppError('FailedPrecondition', { op: 'run', subject, what: 'its answer holds no Username and Secret' });
  }
  if (username === '' && secret === '') return undefined;
  return username === '<token>' ? { identityToken: secret } : { username, password: secret };
}

function run(subject: string, server: string, options: HelperOptions): Promise<{ output: string; exitCode: number | null }> {
  const timeoutMs = options.timeoutMs ?? HELPER_TIMEOUT_MS;
  return new Promise((resolve, reject) => {
    const process_ = spawn(subject, ['get'], { stdio: ['pipe', 'pipe', 'ignore'], env: options.env ?? process.env, detached: true });
    const chunks: Buffer[] = [];
    let sizeBytes = 0;
    const stop = (error: AppError): void => {
      clearTimeout(timer);
      reject(error);
      killGroup(process_.pid);
      process_.stdout.destroy();
    };
    const timer = setTimeout(
      () => stop(new AppError('DeadlineExceeded', { op: 'run', subject, what: `no answer in ${timeoutMs} ms` })),
      timeoutMs,
    );
    process_.on('error', (cause) => stop(unavailable(subject, 'cannot be started', cause)));
    process_.stdout.on('data', (chunk: Buffer) => {
      sizeBytes += chunk.length;
      if (sizeBytes > MAX_TOKEN_RESPONSE_BYTES) {
        stop(new AppError('FailedPrecondition', { op: 'run', subject, what: `answered more than ${MAX_TOKEN_RESPONSE_BYTES} bytes` }));
      } else chunks.push(chunk);
    });
    // A helper that does not read its input breaks the pipe; its exit says the rest.
    process_.stdin.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') stop(unavailable(subject, 'its input failed', error));
    });
    process_.on('close', (exitCode) => {
      clearTimeout(timer);
      resolve({ output: Buffer.concat(chunks).toString('utf8'), exitCode });
    });
    process_.stdin.end(server);
  });
}

/** The helper leads its own process group, so that what it started ends with it. */
function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
