/**
 * The process that makes one image: gets its work from the control plane, puts the image into containerd, says how it ended. It dies with
 * its parent; what it leaves half done is under the lease of the work.
 *
 * Usage: worker PARENT_PID IMAGE (the second for people who look at processes)
 */
import type { Digest } from '../../base/digest.ts';
import { AppError, describeError } from '../../base/errors.ts';
import { createLogger } from '../../base/log.ts';
import { dieWithParent } from '../../kernel/process.ts';
import { ImageClient } from '../../snapshotter/containerd/image-client.ts';
import { buildImage } from './build-image.ts';
import type { FromWorker, ToWorker, Work } from './protocol.ts';
import { openRegistry } from './registry.ts';

/** Of an error, what crosses the channel. */
const MAX_WHAT_CHARS = 2000;

type Answer = Exclude<ToWorker, { op: 'start' }>;

/** Questions to the control plane that wait for their answer. */
class Questions {
  private readonly waiting = new Map<
    number,
    { resolve(answer: { path: string; fetchedBytes: number }): void; reject(error: unknown): void; onBytes(): void }
  >();
  private nextId = 1;

  /** A layer may take hours to come; the control plane ends the process when it is enough. */
  fetchLayer(layer: { digest: Digest; sizeBytes: number }, onBytes: () => void): Promise<{ path: string; fetchedBytes: number }> {
    const id = this.nextId++;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject, onBytes });
      tell({ op: 'ask', id, question: layer });
    });
  }

  receive(answer: Answer): void {
    const waiting = this.waiting.get(answer.id);
    if (answer.op === 'bytes') {
      waiting?.onBytes();
      return;
    }
    this.waiting.delete(answer.id);
    if (answer.op === 'answer') waiting?.resolve(answer);
    else waiting?.reject(AppError.fromJSON(answer.error, { op: 'fetch layer', subject: 'layer' }));
  }
}

function tell(message: FromWorker): void {
  process.send?.(message);
}

/** Tells, and returns when the message has left. */
function tellLast(message: FromWorker): Promise<void> {
  return new Promise((resolve) => {
    if (process.send === undefined) resolve();
    else process.send(message, undefined, undefined, () => resolve());
  });
}

async function make(work: Work, questions: Questions): Promise<FromWorker> {
  await using registry = openRegistry(work.registry, work.access, createLogger('cache', work.logLevel));
  using client = new ImageClient(work.containerdAddress);
  const made = await buildImage(work, {
    client,
    registry,
    fetchLayer: (layer, onBytes) => questions.fetchLayer(layer, onBytes),
    onLayer: (layer, how) => tell({ op: 'layer', ...layer, how }),
    // Cancelling is killing: nothing here is worth an orderly end.
    signal: new AbortController().signal,
  });
  return { op: 'done', made };
}

/** Any failure as an answer: what is no AppError is a bug, named as such. */
function failed(error: unknown): FromWorker {
  const what = describeError(error).slice(0, MAX_WHAT_CHARS);
  const known = error instanceof AppError ? error : new AppError('Internal', { op: 'cache image', subject: 'image', what, cause: error });
  return { op: 'failed', error: { ...known.toJSON(), code: known.code } };
}

function main(): void {
  if (!dieWithParent(Number(process.argv[2]))) process.exit(1);
  process.once('disconnect', () => process.exit(1));
  const questions = new Questions();
  process.on('message', (message: ToWorker) => {
    if (message.op !== 'start') {
      questions.receive(message);
      return;
    }
    make(message.work, questions)
      .catch(failed)
      .then(tellLast)
      .then(
        () => process.exit(0),
        () => process.exit(1),
      );
  });
}

main();
