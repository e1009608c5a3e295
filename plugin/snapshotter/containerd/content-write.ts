/**
 * Writes one file, or bytes, into containerd's content store. Source of the exchange: containerd's public API, content.proto: STAT says where the
 * write stands, each WRITE appends there, COMMIT ends it; containerd checks size and digest before the content counts.
 */
import { open } from 'node:fs/promises';
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
  try {
    await sendAll(exchange, readAt, content);
  } catch (error) {
    if (!isAppError(error, 'AlreadyExists')) throw error;
  } finally {
    exchange.end();
  }
}

async function sendAll(exchange: Exchange, readAt: ReadAt, content: NewContent): Promise<void> {
  const { digest, sizeBytes, labels } = content;
  const total = BigInt(sizeBytes);
  const start = { action: WriteAction.STAT, ref: content.ref ?? `overlaybd-materialize-${digest}`, total, expected: digest };
  let offsetBytes = Number((await exchange.ask(start, CHUNK_DEADLINE_MS)).offset);
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
  // An offset of 0 would cut off what was written.
  const end = { action: WriteAction.COMMIT, total, expected: digest, offset: BigInt(offsetBytes), labels: { ...labels } };
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
