/**
 * Writes one file, or bytes, into containerd's content store. Source of the exchange: containerd's public API, content.proto: STAT says where the
 * write stands, each WRITE appends there, COMMIT ends it; containerd checks size and digest before the content counts.
 */
import { open } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import { create, type MessageInitShape } from '@bufbuild/protobuf';
import type { Digest } from '../../base/digest.ts';
import { AppError, isAppError } from '../../base/errors.ts';
import {
  Content,
  WriteAction,
  WriteContentRequestSchema,
  type WriteContentResponse,
} from '../gen/containerd/services/content/v1/content_pb.ts';
import { type CallAbout, type ContainerdChannel, callFailure, type Scope } from './channel.ts';

/** One message; containerd takes up to 16 MiB, and two layers at once hold two of them. */
const CHUNK_BYTES = 1024 * 1024;

/** One message is answered when its bytes are in the page cache. */
const CHUNK_DEADLINE_MS = 60_000;

/** Somebody else who brings the same content is asked about so often: from soon to seldom. */
const FIRST_WAIT_MS = 50;
const MAX_WAIT_MS = 1_000;
/** containerd's pulls look every two seconds whether they may write. */
const YIELD_MS = 3_000;

/** A commit waits until a whole layer is on the disk: 30 GiB at 100 MB/s. */
const COMMIT_DEADLINE_MS = 5 * 60_000;

export interface NewContent {
  /** A file that holds it, or the bytes. */
  source: { path: string } | { bytes: Uint8Array };
  digest: Digest;
  sizeBytes: number;
  labels: Readonly<Record<string, string>>;
  /** Names the write in containerd: equal ones may not run at the same time, and go on where the other ended. Default: one a digest. */
  ref?: string;
}

/** Reads at an offset, fewer bytes only at the end. */
type ReadAt = (buffer: Buffer, lengthBytes: number, offsetBytes: number) => Promise<number>;

/**
 * Writes a file or bytes as the content `digest`, going on where an earlier attempt ended. Content that exists is no error. May be called
 * again after any failure; one write of a digest and namespace at a time. Errors: DataLoss and FailedPrecondition (the bytes are not what
 * the digest names), Unavailable, those of containerd.
 */
export async function writeContent(channel: ContainerdChannel, scope: Scope, content: NewContent, signal: AbortSignal): Promise<void> {
  const { source } = content;
  if ('bytes' in source) {
    await write(
      channel,
      scope,
      content,
      async (buffer, length, offset) => {
        const piece = source.bytes.subarray(offset, offset + length);
        buffer.set(piece);
        return piece.length;
      },
      signal,
    );
    return;
  }
  await using file = await open(source.path, 'r');
  await write(channel, scope, content, async (buffer, length, offset) => (await file.read(buffer, 0, length, offset)).bytesRead, signal);
}

async function write(channel: ContainerdChannel, scope: Scope, content: NewContent, readAt: ReadAt, signal: AbortSignal): Promise<void> {
  const exchange = new Exchange(channel, scope, { op: 'write content', subject: content.digest, signal });
  const ref = content.ref ?? `overlaybd-materialize-${content.digest}`;
  try {
    await send(exchange, readAt, content, await begin(exchange, { ...content, ref }));
  } catch (error) {
    if (!isAppError(error, 'AlreadyExists')) throw error;
  } finally {
    exchange.end();
  }
}

/** What is brought while nobody else brings it. */
export interface SharedContent extends Omit<NewContent, 'source' | 'ref'> {
  /** The name of the write: see {@link pullRefOf}. */
  ref: string;
  /**
   * Makes the bytes local and answers their file; called when nobody else brings them. Undefined: they do not come at present, and who else
   * wants them may try; it is called again when he does not.
   */
  bring(): Promise<string | undefined>;
}

/** Under this name containerd's own pulls write a layer. Source: containerd's public package `remotes` (MakeRefKey). */
export function pullRefOf({ digest, mediaType }: { digest: string; mediaType: string }): string {
  const isLayer =
    mediaType.startsWith('application/vnd.oci.image.layer.') ||
    /^application\/vnd\.docker\.image\.rootfs\.(foreign\.)?diff\./.test(mediaType);
  return `${isLayer ? 'layer' : 'unknown'}-${digest}`;
}

/** How shared content came: brought here; by somebody else, while this waited; or it was there. */
export type Sharing = 'brought' | 'awaited' | 'there';

/**
 * Brings content under the name that others would bring it under: while it comes they wait, and while they bring it this waits, so it comes
 * once. Errors: those of `bring` and of {@link writeContent}.
 */
export async function shareContent(
  channel: ContainerdChannel,
  scope: Scope,
  content: SharedContent,
  signal: AbortSignal,
): Promise<Sharing> {
  const { digest, sizeBytes, bring } = content;
  let found: Sharing = 'there';
  let isLeftWhole = true;
  for (let waitMs = FIRST_WAIT_MS; ; waitMs = Math.min(2 * waitMs, MAX_WAIT_MS)) {
    const exchange = new Exchange(channel, scope, { op: 'write content', subject: digest, signal });
    try {
      const offsetBytes = await unlessLocked(begin(exchange, content));
      if (offsetBytes === sizeBytes && isLeftWhole) {
        // Another namespace of containerd has it, or who brought it ended before he said so: nothing is to be brought, if it is right.
        if (await isRight(commit(exchange, content))) return found;
        isLeftWhole = false;
      } else if (offsetBytes !== undefined) {
        const path = await bring();
        if (path !== undefined) {
          await using file = await open(path, 'r');
          // What an earlier writer left may be anything: written anew.
          await send(exchange, async (buffer, length, offset) => (await file.read(buffer, 0, length, offset)).bytesRead, content, 0);
          return 'brought';
        }
        waitMs = YIELD_MS;
      }
      found = 'awaited';
    } catch (error) {
      if (isAppError(error, 'AlreadyExists')) return found;
      throw error;
    } finally {
      exchange.end();
    }
    await delay(waitMs, undefined, { signal });
  }
}

/** False: the bytes that are there do not have the digest. */
async function isRight(committed: Promise<void>): Promise<boolean> {
  try {
    await committed;
    return true;
  } catch (error) {
    if (isAppError(error, 'FailedPrecondition')) return false;
    throw error;
  }
}

/** Undefined: somebody writes it now, which containerd says in words alone. Other reasons for which it does not take it are errors. */
async function unlessLocked(begun: Promise<number>): Promise<number | undefined> {
  try {
    return await begun;
  } catch (error) {
    if (isAppError(error, 'Unavailable') && /\bref \S+ locked\b/.test(error.message)) return undefined;
    throw error;
  }
}

/** Answers how many bytes of an earlier write are there. */
async function begin(exchange: Exchange, { digest, sizeBytes, ref }: { digest: Digest; sizeBytes: number; ref: string }): Promise<number> {
  const start = { action: WriteAction.STAT, ref, total: BigInt(sizeBytes), expected: digest };
  return Number((await exchange.ask(start, CHUNK_DEADLINE_MS)).offset);
}

type Described = Pick<NewContent, 'digest' | 'sizeBytes' | 'labels'>;

async function send(exchange: Exchange, readAt: ReadAt, content: Described, fromBytes: number): Promise<void> {
  const { digest, sizeBytes } = content;
  let offsetBytes = fromBytes;
  const buffer = Buffer.allocUnsafe(Math.min(CHUNK_BYTES, Math.max(1, sizeBytes)));
  while (offsetBytes < sizeBytes) {
    const bytesRead = await readAt(buffer, Math.min(buffer.length, sizeBytes - offsetBytes), offsetBytes);
    if (bytesRead === 0) {
      throw new AppError('DataLoss', { op: 'write content', subject: digest, what: `${offsetBytes} bytes on disk, expected ${sizeBytes}` });
    }
    const data = buffer.subarray(0, bytesRead);
    const answer = await exchange.ask({ action: WriteAction.WRITE, offset: BigInt(offsetBytes), data }, CHUNK_DEADLINE_MS);
    offsetBytes += bytesRead;
    if (Number(answer.offset) !== offsetBytes) {
      const what = `containerd is at byte ${answer.offset}, expected ${offsetBytes}`;
      throw new AppError('DataLoss', { op: 'write content', subject: digest, what });
    }
  }
  await commit(exchange, content);
}

async function commit(exchange: Exchange, { digest, sizeBytes, labels }: Described): Promise<void> {
  const total = BigInt(sizeBytes);
  // An offset of 0 would cut off what was written.
  const end = { action: WriteAction.COMMIT, total, expected: digest, offset: total, labels: { ...labels } };
  await exchange.ask(end, COMMIT_DEADLINE_MS);
}

/** A stream on which each message waits for its answer, so that nothing is buffered. */
class Exchange {
  private readonly about: CallAbout;
  private readonly stream: ReturnType<ContainerdChannel['stream']>;
  private readonly answers: AsyncIterator<unknown>;
  private readonly cancel = (): void => this.stream.cancel();

  constructor(channel: ContainerdChannel, scope: Scope, about: CallAbout) {
    about.signal.throwIfAborted();
    this.about = about;
    this.stream = channel.stream(Content, 'write', scope);
    this.answers = this.stream[Symbol.asyncIterator]();
    about.signal.addEventListener('abort', this.cancel, { once: true });
  }

  async ask(request: MessageInitShape<typeof WriteContentRequestSchema>, deadlineMs: number): Promise<WriteContentResponse> {
    const { op, subject } = this.about;
    let isLate = false;
    const timer = setTimeout(() => {
      isLate = true;
      this.stream.cancel();
    }, deadlineMs);
    try {
      this.stream.write(create(WriteContentRequestSchema, request));
      const { value, done } = await this.answers.next();
      if (done === true) throw new AppError('Unavailable', { op, subject, what: 'containerd ended the write' });
      return value as WriteContentResponse;
    } catch (error) {
      if (isLate) throw new AppError('DeadlineExceeded', { op, subject, what: `no answer within ${deadlineMs} ms`, cause: error });
      throw callFailure(error, this.about);
    } finally {
      clearTimeout(timer);
    }
  }

  end(): void {
    this.about.signal.removeEventListener('abort', this.cancel);
    this.stream.end();
    this.stream.cancel();
  }
}
