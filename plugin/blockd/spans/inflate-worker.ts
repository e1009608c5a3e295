/** The thread that inflates spans of gzip layers and checks them, so that no reader waits for another one's span; see inflate-threads.ts. */
import { parentPort } from 'node:worker_threads';
import { describeError } from '../../base/errors.ts';
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import { roundUp } from '../../base/units.ts';
import { wrongChunkOf } from '../../file/target-chunks.ts';
import { inflateSpan } from '../../image/gzip/gzip-span.ts';
import { LibraryInflater } from '../../kernel/inflate.ts';
import { type InflateAnswer, type InflateRequest, STOP } from './inflate-messages.ts';

const inflater = new LibraryInflater();

function answerOf({ id, stored, window, bits, isCompressed, plainBytes, digests }: InflateRequest): InflateAnswer {
  const bytes = new Uint8Array(Buffer.allocUnsafeSlow(roundUp(plainBytes, FETCH_UNIT_BYTES)).buffer);
  const span = bytes.subarray(0, plainBytes);
  bytes.fill(0, plainBytes);
  const fault = inflateSpan(inflater, { bits, isCompressed }, { stored, window }, span);
  if (fault !== undefined) return { id, fault };
  const wrong = digests === undefined ? undefined : wrongChunkOf(digests, span);
  return wrong === undefined ? { id, bytes } : { id, fault: { part: 'gzip', what: `chunk ${wrong} is not what its index says` } };
}

/** A fault of ours that some image brings to light fails its reads, and leaves those of others alone. */
function answerOrBug(request: InflateRequest): InflateAnswer {
  try {
    return answerOf(request);
  } catch (error) {
    return { id: request.id, bug: describeError(error) };
  }
}

const port = parentPort!;
port.on('message', (request: InflateRequest | typeof STOP) => {
  if (request === STOP) {
    port.close();
    return;
  }
  const answer = answerOrBug(request);
  port.postMessage(answer, 'bytes' in answer ? [answer.bytes.buffer] : []);
});
