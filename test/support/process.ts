/**
 * Child processes of tests: short commands with a deadline, and daemons with a log file. Every process started here is ended by its pid,
 * also when the test process leaves without disposing. Ours.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { describeError, errnoOf } from '../../plugin/base/errors.ts';
import { waitFor } from './wait.ts';

const living = new Set<ChildProcess>();

process.on('exit', () => {
  for (const child of living) child.kill('SIGKILL');
});

function track(child: ChildProcess): void {
  living.add(child);
  child.once('exit', () => living.delete(child));
  child.once('error', () => living.delete(child));
}

export interface RunOptions {
  cwd?: string;
  /** Replaces the environment when given. */
  env?: NodeJS.ProcessEnv;
  input?: string | Buffer;
  /** Milliseconds until the command is killed and the call fails. */
  timeoutMs?: number;
  /** Exit codes that are not a failure. */
  okCodes?: readonly number[];
}

export interface RunResult {
  code: number;
  stdout: string;
  stderr: string;
  stdoutBytes: Buffer;
}

/** More output than this from one short command is a mistake of the test. */
const MAX_OUTPUT_BYTES = 256 * 1024 * 1024;

/** Runs a command to its end. Fails with its output when the exit code is not among `okCodes`, or when the deadline passes. */
export function run(command: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const { timeoutMs = 120_000, okCodes = [0] } = options;
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd: options.cwd, env: options.env ?? process.env, stdio: ['pipe', 'pipe', 'pipe'] });
    track(child);
    const out: Buffer[] = [];
    const err: Buffer[] = [];
    let outputBytes = 0;
    let why = '';
    const end = (reason: string): void => {
      why = reason;
      child.kill('SIGKILL');
    };
    const timer = setTimeout(() => end(`took longer than ${timeoutMs} ms`), timeoutMs);
    const keep = (list: Buffer[]) => (chunk: Buffer) => {
      outputBytes += chunk.length;
      if (outputBytes > MAX_OUTPUT_BYTES) end(`wrote more than ${MAX_OUTPUT_BYTES} bytes`);
      else list.push(chunk);
    };
    child.stdout.on('data', keep(out));
    child.stderr.on('data', keep(err));
    // A command that does not read its input closes the pipe; its exit code says whether that was right.
    child.stdin.on('error', (error) => {
      if (errnoOf(error) !== 'EPIPE') end(`standard input: ${error.message}`);
    });
    child.stdin.end(options.input ?? '');
    child.once('error', (error) => {
      clearTimeout(timer);
      reject(new Error(`run ${command}: ${error.message}`, { cause: error }));
    });
    child.once('close', (code, signal) => {
      clearTimeout(timer);
      const stdoutBytes = Buffer.concat(out);
      const result = { code: code ?? -1, stdout: stdoutBytes.toString(), stderr: Buffer.concat(err).toString(), stdoutBytes };
      if (why === '' && okCodes.includes(result.code)) resolve(result);
      else {
        const how = why !== '' ? why : `exit ${code ?? signal}`;
        reject(new Error(`run ${[command, ...args].join(' ')}: ${how}\n${result.stderr}${result.stdout.slice(-4000)}`));
      }
    });
  });
}

export interface DaemonOptions {
  /** Name for messages. */
  name: string;
  command: string;
  args: readonly string[];
  env?: NodeJS.ProcessEnv;
  cwd?: string;
  /** File that receives standard output and error, appended. */
  logPath: string;
}

/** A process that runs until it is stopped. */
export class Daemon implements AsyncDisposable {
  readonly name: string;
  readonly logPath: string;
  readonly pid: number;
  /** Resolves with a word about the end: `exit 0`, `signal SIGKILL`. */
  readonly ended: Promise<string>;
  private readonly child: ChildProcess;
  private how: string | undefined;

  private constructor(options: DaemonOptions, child: ChildProcess, pid: number) {
    this.name = options.name;
    this.logPath = options.logPath;
    this.child = child;
    this.pid = pid;
    this.ended = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        this.how = signal === null ? `exit ${code}` : `signal ${signal}`;
        resolve(this.how);
      });
    });
  }

  /** Starts the process; returns once the kernel has it (not once it is ready). */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const log = openSync(options.logPath, 'a');
    try {
      const child = spawn(options.command, options.args, {
        cwd: options.cwd,
        env: options.env ?? process.env,
        stdio: ['ignore', log, log],
      });
      track(child);
      await new Promise<void>((resolve, reject) => {
        child.once('spawn', resolve);
        child.once('error', (error) => reject(new Error(`start ${options.name} (${options.command}): ${error.message}`, { cause: error })));
      });
      return new Daemon(options, child, child.pid as number);
    } finally {
      closeSync(log);
    }
  }

  /** How the process ended, or undefined while it runs. */
  get endedHow(): string | undefined {
    return this.how;
  }

  /** The last lines of the log. */
  logTail(lines = 40): string {
    return `--- last lines of ${this.name} (${this.logPath})\n${readTail(this.logPath, lines)}`;
  }

  /** Waits until `look` says ready; fails at once, with the log's end, when the process ends first. */
  async waitReady(what: string, look: () => Promise<boolean>, timeoutMs = 60_000): Promise<void> {
    let ended = false;
    await waitFor(
      async () => {
        if (this.how !== undefined) {
          ended = true;
          return true;
        }
        return look();
      },
      { what: `${this.name}: ${what}`, timeoutMs, details: () => this.logTail() },
    );
    if (ended) throw new Error(`${this.name} ended (${this.how}) before ${what}\n${this.logTail()}`);
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** Ends the process: `signal`, then SIGKILL when it has not gone within `timeoutMs`. May be called again. */
  async stop(options: { signal?: NodeJS.Signals; timeoutMs?: number } = {}): Promise<string> {
    if (this.how !== undefined) return this.how;
    this.child.kill(options.signal ?? 'SIGTERM');
    // A stopped process takes no SIGTERM until it continues.
    this.child.kill('SIGCONT');
    const timer = setTimeout(() => this.child.kill('SIGKILL'), options.timeoutMs ?? 10_000);
    try {
      return await this.ended;
    } finally {
      clearTimeout(timer);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
  }
}

/** The last `lines` lines of a text file, or a sentence saying why there are none. */
export function readTail(path: string, lines: number): string {
  try {
    return readFileSync(path, 'utf8').split('\n').slice(-lines).join('\n');
  } catch (error) {
    return `(no log: ${describeError(error)})`;
  }
}

export interface ProcessInfo {
  pid: number;
  parentPid: number;
  /** One letter of proc(5): R, S, D, T, Z … */
  state: string;
  /** Arguments, empty for kernel threads and zombies. */
  args: string[];
  /** The program's path, undefined when it cannot be read. */
  exe: string | undefined;
}

/** What /proc says of a process; undefined when it is gone. */
export function processInfo(pid: number): ProcessInfo | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
    // The command in brackets may hold blanks and brackets itself: the fields begin after its last one.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const args = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').filter(Boolean);
    let exe: string | undefined;
    try {
      exe = readlinkSync(`/proc/${pid}/exe`);
    } catch {
      exe = undefined;
    }
    return { pid, parentPid: Number(fields[1]), state: fields[0] ?? '?', args, exe };
  } catch (error) {
    if (['ENOENT', 'ESRCH'].includes(errnoOf(error) ?? '')) return undefined;
    throw error;
  }
}

/** All processes now. */
export function allProcesses(): ProcessInfo[] {
  const found: ProcessInfo[] = [];
  for (const name of readdirSync('/proc')) {
    if (!/^[0-9]+$/.test(name)) continue;
    const info = processInfo(Number(name));
    if (info !== undefined) found.push(info);
  }
  return found;
}

/** The children of a process, and theirs, parents first. */
export function descendantsOf(pid: number, processes = allProcesses()): ProcessInfo[] {
  const direct = processes.filter((p) => p.parentPid === pid);
  return direct.flatMap((p) => [p, ...descendantsOf(p.pid, processes)]);
}

/** Sends SIGKILL to one process by pid and waits until it is gone (or a zombie of somebody else). */
export async function killPid(pid: number, timeoutMs = 30_000): Promise<void> {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if (errnoOf(error) === 'ESRCH') return;
    throw error;
  }
  await waitFor(
    () => {
      const info = processInfo(pid);
      return info === undefined || info.state === 'Z';
    },
    { what: `process ${pid} to end after SIGKILL`, timeoutMs },
  );
}
