/** The conversion service alone, over a database in a scratch directory, with short waits. Ours. */
import { existsSync, readdirSync } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { type Database, openDatabase } from '../../db/database.ts';
import { EventStore } from '../../db/event-store.ts';
import { silentLogger } from '../../plugin/base/log.ts';
import { type ConvertJob, type ConvertOptions, type ConvertService, startConvert } from '../../plugin/convert/service.ts';
import { cgroupNameOf, findHierarchies } from '../../plugin/kernel/cgroup.ts';
import { allProcesses, type ProcessInfo } from './process.ts';
import { Scratch } from './scratch.ts';
import { waitFor } from './wait.ts';

export const WEBHOOK_SECRET = 'a-secret-of-the-registry';

export class ConvertBench implements AsyncDisposable {
  readonly scratch: Scratch;
  readonly root: string;
  database!: Database;
  service!: ConvertService;
  private readonly overrides: Partial<ConvertOptions>;

  private constructor(scratch: Scratch, root: string, overrides: Partial<ConvertOptions>) {
    this.scratch = scratch;
    this.root = root;
    this.overrides = overrides;
  }

  static async start(overrides: Partial<ConvertOptions> = {}): Promise<ConvertBench> {
    const scratch = await Scratch.create('convert');
    const bench = new ConvertBench(scratch, await scratch.dir('root'), overrides);
    await bench.startAgain();
    return bench;
  }

  async startAgain(): Promise<void> {
    this.database = openDatabase(this.scratch.join('a.db'));
    this.service = await startConvert({
      database: this.database,
      rootDir: this.root,
      registry: { hostsDir: await this.scratch.dir('certs.d'), plainHttp: [], responseTimeoutMs: 10_000, stallTimeoutMs: 10_000 },
      logger: silentLogger,
      logLevel: 'warn',
      concurrency: 1,
      cpus: 2,
      memoryBytes: 2 ** 30,
      stagingBytes: 2 ** 30,
      jobDeadlineMs: 120_000,
      pollIntervalMs: 200,
      usersOf: () => [],
      budgets: { full: { sizePercent: 130, msPerGb: 25_000 }, 'index-only': { sizePercent: 3, msPerGb: 3_000 } },
      ...this.overrides,
    });
  }

  async stop(): Promise<void> {
    await this.service.stop();
    this.database[Symbol.dispose]();
  }

  /** A file with the webhook's secret, as the configuration wants it. */
  static async secretFile(scratch: Scratch): Promise<string> {
    const file = await scratch.file('secret', `${WEBHOOK_SECRET}\n`);
    await chmod(file, 0o600);
    return file;
  }

  /** Waits until a job has ended. */
  ended(id: number, timeoutMs = 120_000): Promise<ConvertJob> {
    const look = (): ConvertJob | undefined => {
      const job = this.service.job(id);
      return job.state === 'SUCCESS' || job.state === 'FAILED' ? job : undefined;
    };
    return waitFor(look, { what: `job ${id} to end`, timeoutMs, details: () => this.logOf(id) });
  }

  /** Waits for a job that has succeeded; one that failed fails the test with its log. */
  async succeeded(id: number): Promise<ConvertJob> {
    const job = await this.ended(id);
    if (job.state !== 'SUCCESS') throw new Error(`job ${id} failed: ${job.failure?.message}\n${this.logOf(id)}`);
    return job;
  }

  logOf(id: number): string {
    return this.service
      .log(id, 0, 1000)
      .map((line) => `${line.lineNumber} ${line.message}`)
      .join('\n');
  }

  events(type: string): { subject: string; message: string }[] {
    return new EventStore(this.database).list(1000).filter((event) => event.type === type);
  }

  /** The processes of jobs that live now. */
  workers(): ProcessInfo[] {
    return allProcesses().filter(
      (p) => p.state !== 'Z' && p.args.some((a) => a.includes('convert/jobs/worker')) && p.args.some((a) => a.startsWith(this.root)),
    );
  }

  /** Waits for a job's process. */
  worker(notPid?: number): Promise<ProcessInfo> {
    return waitFor(() => this.workers().find((p) => p.pid !== notPid), { what: 'a conversion process' });
  }

  /** What jobs left: processes, staging, cgroups. */
  async leftovers(): Promise<string[]> {
    const staging = readdirSync(this.root, { recursive: true })
      .map(String)
      .filter((name) => name !== 'convert');
    const cgroups = await convertCgroups(this.root);
    return [...this.workers().map((p) => `process ${p.pid}`), ...staging, ...cgroups.filter((path) => /job-/.test(path))];
  }

  /** Fails when anything is left. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop();
    const left = [...(await this.leftovers()), ...(await convertCgroups(this.root))];
    await this.scratch[Symbol.asyncDispose]();
    if (left.length > 0) throw new Error(`conversion left:\n${left.join('\n')}`);
  }
}

/** Cgroups of the conversions of one instance, and their parents. */
export async function convertCgroups(rootDir: string): Promise<string[]> {
  const found = new Set<string>();
  for (const { mountPoint } of (await findHierarchies()).values()) {
    const parent = `${mountPoint}/${cgroupNameOf('convert', rootDir)}`;
    if (!existsSync(parent)) continue;
    found.add(parent);
    for (const job of readdirSync(parent, { withFileTypes: true })) if (job.isDirectory()) found.add(`${parent}/${job.name}`);
  }
  return [...found].sort();
}
