/** What a start needs of one image, read by a process of its own in a cgroup of its own. Ours. */
import { randomUUID } from 'node:crypto';
import path from 'node:path';
import { z } from 'zod';
import { AppError } from '../../../base/errors.ts';
import { MAX_MANIFEST_BYTES } from '../../../base/limits.ts';
import { type ImageProcess, parseImageConfig } from '../../../image/oci/config.ts';
import type { CgroupLimits } from '../../../kernel/cgroup.ts';
import { WorkerProcess } from '../../../kernel/worker-process.ts';
import type { ImageClient } from '../../../snapshotter/containerd/image-client.ts';
import type { Mount } from '../../../snapshotter/gen/containerd/types/mount_pb.ts';
import { inCgroup, type ProcessParts } from '../image-process.ts';

const SCRIPT = path.join(import.meta.dirname, `start-reader${path.extname(import.meta.filename)}`);

/** Undoing is not cut short by what cut the work short. */
const UNDO_MS = 30_000;

export interface ToStartReader {
  op: 'start';
  work: StartWork;
}

interface StartWork {
  /** Directories of this machine that make up the image, top first. */
  roots: readonly string[];
  process: ImageProcess;
}

const count = z.int().min(0);
const fromSchema = z.discriminatedUnion('op', [
  z.strictObject({
    op: z.literal('done'),
    read: z.strictObject({ files: count, bytes: count, entries: count, isComplete: z.boolean() }),
  }),
  z.strictObject({ op: z.literal('failed'), what: z.string() }),
]);
export type FromStartReader = z.infer<typeof fromSchema>;

type Read = Extract<FromStartReader, { op: 'done' }>['read'];

/** The directories that a read-only mount of a snapshot stacks, top first. */
export function rootsOf(mounts: readonly Pick<Mount, 'type' | 'source' | 'options'>[]): string[] {
  return mounts.flatMap(({ type, source, options }) =>
    type === 'overlay'
      ? options.flatMap((option) => (option.startsWith('lowerdir=') ? option.slice('lowerdir='.length).split(':') : []))
      : [source],
  );
}

export interface StartAttempt {
  /** Names the cgroup. */
  name: string;
  client: ImageClient;
  namespace: string;
  snapshotter: string;
  /** Keeps the view until it is removed. */
  lease: string;
  image: { reference: string; configDigest: string; chainId: string };
  limits: CgroupLimits;
  deadlineMs: number;
  /** Ends the reading at once; its reason is the outcome. */
  signal: AbortSignal;
}

/**
 * Reads through a view of the image, which is closed when nobody follows. Errors: containerd's, Unavailable (a file cannot be read: the
 * registry does not give it), DeadlineExceeded, the signal's reason.
 */
export async function readStartOf(attempt: StartAttempt, parts: ProcessParts): Promise<Read> {
  const { client, namespace, snapshotter, lease, image, signal } = attempt;
  const bytes = await client.readContent(namespace, image.configDigest, MAX_MANIFEST_BYTES, signal);
  const { process } = parseImageConfig(bytes, `configuration ${image.configDigest}`);
  const key = `${lease}-${randomUUID()}`;
  try {
    const mounts = await client.viewSnapshot({ namespace, lease }, { snapshotter, key, parent: image.chainId }, signal);
    return await runReader(attempt, { roots: rootsOf(mounts), process }, parts);
  } finally {
    await client.removeSnapshot(namespace, snapshotter, key, AbortSignal.timeout(UNDO_MS));
  }
}

function runReader(attempt: StartAttempt, work: StartWork, parts: ProcessParts): Promise<Read> {
  const { name, image, limits, deadlineMs, signal } = attempt;
  const about = { op: 'read what a start needs of', subject: image.reference };
  return inCgroup(name, limits, parts, (cgroup) => {
    const reader = new WorkerProcess<Read>(
      { script: SCRIPT, args: [image.reference], limits, cgroup, start: work, deadlineMs, signal },
      {
        isLate: () => new AppError('DeadlineExceeded', { ...about, what: `not done within ${deadlineMs / 1000} s` }),
        died: ({ ranOutOfMemory, how }) => {
          const what = `it needs more than ${limits.memoryBytes} bytes of memory (caches.memory_bytes)`;
          if (ranOutOfMemory) return new AppError('ResourceExhausted', { ...about, what });
          return new AppError('Unavailable', { ...about, what: `its process ended (${how}) without a word` });
        },
      },
      (message) => {
        const parsed = fromSchema.safeParse(message);
        if (!parsed.success) reader.end(new AppError('Internal', { ...about, what: 'its process said something unknown' }));
        else if (parsed.data.op === 'done') reader.succeed(parsed.data.read);
        else reader.fail(new AppError('Unavailable', { ...about, what: parsed.data.what }));
      },
    );
    return reader.run();
  });
}
