/** Server-sent events. */
import { type SSEStreamingApi, streamSSE } from 'hono/streaming';
import type { Logger } from '../plugin/base/log.ts';
import type { AdminContext } from './context.ts';
import { HEARTBEAT_MS } from './limits.ts';

/**
 * Events until `write` is done or the caller hangs up, which aborts its signal. Silence is broken by comments, so that a caller who is gone is
 * noticed; one who takes nothing for {@link READER_PATIENCE_MS} is hung up on. What waits for a slow caller is one event and the comments of
 * that time. `onEnd` is called once.
 */
export function streamEvents(
  c: AdminContext,
  log: Logger,
  onEnd: () => void,
  write: (stream: SSEStreamingApi, signal: AbortSignal) => Promise<void>,
): Response {
  const hungUp = new AbortController();
  c.env?.hangUpOnStall?.();
  return streamSSE(c, async (stream) => {
    stream.onAbort(() => hungUp.abort());
    const heartbeat = setInterval(() => void stream.write(': alive\n\n'), HEARTBEAT_MS);
    try {
      await write(stream, hungUp.signal);
    } catch (error) {
      if (!hungUp.signal.aborted) log.warn({ err: error, path: c.req.path, requestId: c.get('requestId') }, 'a stream of events broke off');
    } finally {
      clearInterval(heartbeat);
      onEnd();
    }
  });
}
