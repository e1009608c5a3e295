/**
 * A directory that goes away with everything mounted in it. With OVERLAYBD_TEST_LOGS set to a directory, the log files in it are copied
 * there first, for looking at what a failed test left. Ours.
 */
import { cp, mkdir, mkdtemp, readdir, realpath, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { unmountUnder } from './mounts.ts';

/** A private directory under the system's temporary directory. Disposing unmounts what is mounted below, then removes it. */
export class Scratch implements AsyncDisposable {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** `name` appears in the path, so that leftovers tell whose they are. */
  static async create(name: string): Promise<Scratch> {
    return new Scratch(await realpath(await mkdtemp(join(tmpdir(), `obd-${name}-`))));
  }

  join(...parts: string[]): string {
    return join(this.path, ...parts);
  }

  /** Makes a directory below and returns its path. */
  async dir(...parts: string[]): Promise<string> {
    const path = this.join(...parts);
    await mkdir(path, { recursive: true });
    return path;
  }

  /** Writes a file below (its directory is made) and returns its path. */
  async file(name: string, content: string | Uint8Array): Promise<string> {
    const path = this.join(name);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, content);
    return path;
  }

  private async keepLogs(): Promise<void> {
    const keep = process.env.OVERLAYBD_TEST_LOGS;
    if (keep === undefined) return;
    for (const name of await readdir(this.path)) {
      if (name.endsWith('.log')) await cp(this.join(name), join(keep, basename(this.path), name));
    }
  }

  /** Fails, after cleaning up all the same, when a mount or loop device had to be taken away by force. */
  async [Symbol.asyncDispose](): Promise<void> {
    const complaints = await unmountUnder(this.path);
    await this.keepLogs();
    await rm(this.path, { recursive: true, force: true });
    if (complaints.length > 0) throw new Error(`scratch directory ${this.path} was not left clean:\n${complaints.join('\n')}`);
  }
}
