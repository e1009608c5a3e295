/**
 * The process of one conversion job: gets its work from the control plane, converts and publishes, says how it ended. It dies with its
 * parent, keeps nothing that another attempt could not do without, and its staging directory is removed by the parent.
 *
 * Usage: worker PARENT_PID STAGING_DIRECTORY (the second for people who look at processes)
 */

import type { Digest } from '../../base/digest.ts';
import { AppError, describeError } from '../../base/errors.ts';
import { createLogger } from '../../base/log.ts';
import { dieWithParent } from '../../kernel/process.ts';
import type { KnownLayer, LayerEntry, LayerLedger } from '../publish/ledger.ts';
import { type Progress, ProgressCounter } from '../publish/progress.ts';
import { publishAccelerated } from '../publish/publish.ts';
import { type FromWorker, MAX_LINE_CHARS, type Question, type ToWorker, type Work, workSchema } from './protocol.ts';
import { openRegistry } from './registry-access.ts';

/** Progress is told this often at most. */
const PROGRESS_MS = 200;
/** An answer of the control plane's database takes milliseconds; longer than this it hangs, and the keeper will replace it. */
const ANSWER_MS = 60_000;

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

/** The ledger at the other end of the channel. */
class RemoteLedger implements LayerLedger {
  private readonly waiting = new Map<number, { resolve: (answer: ToWorker) => void; reject: (error: unknown) => void }>();
  private nextId = 1;

  async find(chainIds: readonly Digest[], signal: AbortSignal): Promise<readonly (LayerEntry | undefined)[]> {
    const answer = await this.ask({ kind: 'find', chainIds: [...chainIds] }, signal);
    return (answer.op === 'answer' ? (answer.entries ?? []) : []).map((entry) => entry ?? undefined);
  }

  async record(chainId: Digest, layer: KnownLayer, signal: AbortSignal): Promise<void> {
    await this.ask({ kind: 'record', chainId, layer }, signal);
  }

  async forget(chainId: Digest, signal: AbortSignal): Promise<void> {
    await this.ask({ kind: 'forget', chainId }, signal);
  }

  receive(message: ToWorker): void {
    if (message.op === 'start') return;
    const waiting = this.waiting.get(message.id);
    if (message.op === 'refused') waiting?.reject(AppError.fromJSON(message.error, { op: 'ask', subject: 'ledger' }));
    else waiting?.resolve(message);
  }

  private async ask(question: Question, signal: AbortSignal): Promise<ToWorker> {
    const id = this.nextId++;
    const limit = AbortSignal.any([signal, AbortSignal.timeout(ANSWER_MS)]);
    limit.throwIfAborted();
    const { promise, resolve, reject } = Promise.withResolvers<ToWorker>();
    const onAbort = (): void => reject(limit.reason);
    limit.addEventListener('abort', onAbort, { once: true });
    this.waiting.set(id, { resolve, reject });
    try {
      tell({ op: 'ask', id, question });
      return await promise;
    } finally {
      limit.removeEventListener('abort', onAbort);
      this.waiting.delete(id);
    }
  }
}

/** Tells of progress now and then, and always of the last state. */
function progressTeller(): { counter: ProgressCounter; flush: () => void } {
  let timer: NodeJS.Timeout | undefined;
  let last: Progress | undefined;
  const flush = (): void => {
    clearTimeout(timer);
    timer = undefined;
    if (last !== undefined) tell({ op: 'progress', progress: last });
    last = undefined;
  };
  const counter = new ProgressCounter((progress) => {
    last = progress;
    timer ??= setTimeout(flush, PROGRESS_MS);
  });
  return { counter, flush };
}

async function convert(work: Work, ledger: LayerLedger): Promise<FromWorker> {
  const { host, repository, request, stagingDirectory, threads, maxLayerBytes, tag, expectedDigest } = work;
  const { counter, flush } = progressTeller();
  const beginMs = performance.now();
  await using client = openRegistry(work.registry, createLogger('convert', work.logLevel));
  try {
    const result = await publishAccelerated(
      {
        client,
        repository: { host, repository },
        request,
        ledger,
        stagingDirectory,
        threads,
        maxLayerBytes,
        // Cancelling is killing: nothing here is worth an orderly end.
        signal: new AbortController().signal,
        log: (line) => tell({ op: 'log', line: line.slice(0, MAX_LINE_CHARS) }),
        progress: counter,
      },
      { tag, ...(expectedDigest === undefined ? {} : { expectedDigest }) },
      (digest) => tell({ op: 'source', digest }),
    );
    return { op: 'done', ...result, elapsedMs: Math.round(performance.now() - beginMs) };
  } finally {
    flush();
  }
}

/** Any failure as an answer: what is no AppError is a bug, named as such. */
function failed(error: unknown): FromWorker {
  const known =
    error instanceof AppError
      ? error
      : new AppError('Internal', { op: 'convert', subject: 'image', what: describeError(error), cause: error });
  const causes = known.cause === undefined || known.message.includes(describeError(known.cause)) ? '' : ` (${describeError(known.cause)})`;
  const json = known.toJSON();
  return { op: 'failed', error: { ...json, code: known.code, what: `${String(json.what)}${causes}`.slice(0, MAX_LINE_CHARS) } };
}

function main(): void {
  const parentPid = Number(process.argv[2]);
  if (!dieWithParent(parentPid)) process.exit(1);
  process.once('disconnect', () => process.exit(1));
  const ledger = new RemoteLedger();
  process.on('message', (message: ToWorker) => {
    ledger.receive(message);
    if (message.op !== 'start') return;
    convert(workSchema.parse(message.work), ledger)
      .catch(failed)
      .then(tellLast)
      .then(
        () => process.exit(0),
        () => process.exit(1),
      );
  });
}

main();
