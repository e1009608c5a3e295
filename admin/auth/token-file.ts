/** The token of `admin.tcp_token_file`, which may do everything. Read again when the file changes, so that it is rotated without a restart. */
import { createHash, timingSafeEqual } from 'node:crypto';
import fs from 'node:fs';
import { AppError, describeError, errnoOf } from '../../plugin/base/errors.ts';
import type { Logger } from '../../plugin/base/log.ts';
import type { Caller } from './scopes.ts';

const TOKEN = /^[\x21-\x7e]{16,512}$/;
const TOKEN_FILE_MAX_BYTES = 1024;

/** Reads the token; refuses a file that others may read. Throws FailedPrecondition or NotFound, never with the token in it. */
export function readTokenFile(file: string): string {
  const refuse = (code: 'FailedPrecondition' | 'NotFound', what: string, cause?: unknown): AppError =>
    new AppError(code, { op: 'read token', subject: file, what, cause });
  let fd: number;
  try {
    fd = fs.openSync(file, 'r');
  } catch (error) {
    throw refuse('NotFound', `cannot be opened (${errnoOf(error) ?? 'unknown'})`, error);
  }
  try {
    const { mode, size } = fs.fstatSync(fd);
    if ((mode & 0o077) !== 0) throw refuse('FailedPrecondition', `mode ${(mode & 0o777).toString(8)} lets others read it; chmod 600`);
    if (size > TOKEN_FILE_MAX_BYTES) throw refuse('FailedPrecondition', `longer than ${TOKEN_FILE_MAX_BYTES} bytes`);
    const token = fs.readFileSync(fd, 'utf8').trim();
    if (!TOKEN.test(token)) throw refuse('FailedPrecondition', 'must hold 16 to 512 printable characters without spaces');
    return token;
  } finally {
    fs.closeSync(fd);
  }
}

const CALLER: Caller = { name: 'token file', scopes: ['admin'] };
const hashOf = (text: string): Buffer => createHash('sha256').update(text).digest();

export class TokenFile {
  private readonly file: string;
  private readonly log: Logger;
  private version: string;
  private hash: Buffer | undefined;

  /** Throws as {@link readTokenFile}: a file that is wrong at the start is told at the start. */
  constructor(file: string, log: Logger) {
    this.file = file;
    this.log = log;
    this.version = this.versionNow();
    this.hash = hashOf(readTokenFile(file));
  }

  /** Whose token this is; undefined when it is not the file's, or the file has become unusable. */
  callerOf(token: string): Caller | undefined {
    this.refresh();
    const isEqual = timingSafeEqual(hashOf(token), this.hash ?? Buffer.alloc(32));
    return this.hash !== undefined && isEqual ? CALLER : undefined;
  }

  private versionNow(): string {
    const stat = fs.statSync(this.file, { throwIfNoEntry: false });
    return stat === undefined ? 'missing' : `${stat.ino} ${stat.mtimeMs} ${stat.ctimeMs} ${stat.size}`;
  }

  private refresh(): void {
    const version = this.versionNow();
    if (version === this.version) return;
    this.version = version;
    this.hash = undefined;
    try {
      this.hash = hashOf(readTokenFile(this.file));
      this.log.info({ file: this.file }, 'admin token replaced');
    } catch (error) {
      if (!(error instanceof AppError)) throw error;
      this.log.error({ file: this.file, reason: describeError(error) }, 'admin token cannot be used; nobody gets in with it');
    }
  }
}
