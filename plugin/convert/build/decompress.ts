/**
 * The decompressed bytes of a layer, whatever it is compressed with: told from its first bytes, never from a name or a media type.
 * Bounded against bombs by ratio and by an absolute limit. eStargz and zstd:chunked are several gzip members or zstd frames in a row.
 */
import { Readable, type Transform } from 'node:stream';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { AppError } from '../../base/errors.ts';
import { formatBytes, GIB, KIB } from '../../base/units.ts';
import type { LayerCompression } from '../../image/oci/media-types.ts';

/** Output of one step: large enough that a step's cost vanishes, small enough that the other stages begin at once. */
const STEP_BYTES = 256 * KIB;

/** A stream may grow this much whatever its ratio… */
const FREE_GROWTH_BYTES = 1 * GIB;
/** …and beyond it by this factor: deflate cannot exceed 1032, layers are below 10; a few repeated files of zeros may pass 100. */
const MAX_RATIO = 1000;

export interface DecompressLimits {
  /** Decompressed bytes of one layer. */
  maxBytes: number;
}

/** gzip magic; zstd frame or skippable frame; anything else is taken for a tar. */
export function detectCompression(head: Uint8Array): LayerCompression {
  if (head[0] === 0x1f && head[1] === 0x8b) return 'gzip';
  const tail = head.length >= 4 && head[2] === 0x2f && head[3] === 0xfd;
  if (tail && head[0] === 0x28 && head[1] === 0xb5) return 'zstd';
  const isSkippable = head.length >= 4 && (head[0]! & 0xf0) === 0x50 && head[1] === 0x2a && head[2] === 0x4d && head[3] === 0x18;
  return isSkippable ? 'zstd' : 'none';
}

/**
 * Decompresses `source`. `onCompressed` sees every compressed chunk once, for the digest. Rejects with DataLoss naming `subject` for a
 * damaged or cut stream, ResourceExhausted for one that grows beyond the limits, or with the source's own error.
 */
export async function* decompress(
  source: AsyncIterable<Uint8Array>,
  subject: string,
  limits: DecompressLimits,
  onCompressed: (chunk: Uint8Array) => void,
  signal: AbortSignal,
): AsyncGenerator<Buffer> {
  let compressedBytes = 0;
  const counted = async function* (): AsyncGenerator<Uint8Array> {
    for await (const chunk of source) {
      signal.throwIfAborted();
      if (chunk.length === 0) continue;
      compressedBytes += chunk.length;
      onCompressed(chunk);
      yield chunk;
    }
  };
  const { head, all } = await peek(counted(), 4);
  const kind = detectCompression(head);
  let produced = 0;
  for await (const chunk of kind === 'none' ? all : inflated(all, kind, subject, signal, () => produced)) {
    produced += chunk.length;
    checkGrowth({ produced, consumed: compressedBytes }, limits, subject);
    yield Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
  }
}

/** Throws ResourceExhausted for a stream that grows beyond the limits. */
export function checkGrowth(bytes: { produced: number; consumed: number }, limits: DecompressLimits, subject: string): void {
  if (bytes.produced > limits.maxBytes) {
    throw tooLarge(subject, `it decompresses to more than ${formatBytes(limits.maxBytes)}`);
  }
  if (bytes.produced > FREE_GROWTH_BYTES && bytes.produced > bytes.consumed * MAX_RATIO) {
    throw tooLarge(subject, `${bytes.consumed} bytes decompress to more than ${MAX_RATIO} times as many`);
  }
}

async function* inflated(
  source: AsyncIterable<Uint8Array>,
  kind: 'gzip' | 'zstd',
  subject: string,
  signal: AbortSignal,
  producedBytes: () => number,
): AsyncGenerator<Uint8Array> {
  const transform: Transform = kind === 'gzip' ? createGunzip({ chunkSize: STEP_BYTES }) : createZstdDecompress({ chunkSize: STEP_BYTES });
  let sourceError: { error: unknown } | undefined;
  const guarded = async function* (): AsyncGenerator<Uint8Array> {
    try {
      yield* source;
    } catch (error) {
      sourceError = { error };
      throw error;
    }
  };
  const input = Readable.from(guarded(), { objectMode: false, highWaterMark: STEP_BYTES });
  input.once('error', (error) => transform.destroy(error));
  try {
    yield* input.pipe(transform);
  } catch (cause) {
    signal.throwIfAborted();
    if (sourceError !== undefined) throw sourceError.error;
    const offset = producedBytes();
    const what = `the ${kind} stream is damaged after byte ${offset} of the tar: ${cause instanceof Error ? cause.message : String(cause)}`;
    throw new AppError('DataLoss', { op: 'decompress', subject, what, details: { offset }, cause });
  } finally {
    input.destroy();
    transform.destroy();
  }
}

/** The first `count` bytes (fewer if there are no more), and everything again. */
async function peek(source: AsyncGenerator<Uint8Array>, count: number): Promise<{ head: Uint8Array; all: AsyncGenerator<Uint8Array> }> {
  const first: Uint8Array[] = [];
  let length = 0;
  while (length < count) {
    const next = await source.next();
    if (next.done === true) break;
    first.push(next.value);
    length += next.value.length;
  }
  const all = async function* (): AsyncGenerator<Uint8Array> {
    yield* first;
    yield* source;
  };
  return { head: Buffer.concat(first.map((chunk) => chunk.subarray(0, count))).subarray(0, count), all: all() };
}

function tooLarge(subject: string, what: string): AppError {
  return new AppError('ResourceExhausted', { op: 'decompress', subject, what });
}
