/**
 * Tells receivers of finished conversions: a POST with a signed body, tried again with growing pauses, all of it durable. The signature
 * is HMAC-SHA256 over the time, a dot and the body, so that an old message cannot be sent again as a new one. Ours.
 */
import { createHmac } from 'node:crypto';
import { request } from 'undici';
import type { Database } from '../../../db/database.ts';
import type { DeliveryRow, NotificationStore } from '../../../db/notification-store.ts';
import type { Clock } from '../../base/clock.ts';
import { AppError, describeError } from '../../base/errors.ts';
import type { Logger } from '../../base/log.ts';
import { formatRepository } from '../../registry/reference.ts';
import type { ConvertJob } from '../jobs/job.ts';
import { compileTagFilter } from '../rules/tag-filter.ts';
import { readSecretFile } from '../trigger/webhook-server.ts';
import {
  type ConversionEvent,
  type Delivery,
  deliveryOf,
  MAX_NOTIFICATIONS,
  type NewNotification,
  type Notification,
  notificationOf,
} from './notification-rule.ts';

/** After each failed attempt; the receiver may be away for the night. After the last one the delivery is FAILED. */
export const RETRY_MS = [1_000, 5_000, 30_000, 120_000, 600_000, 3_600_000, 14_400_000] as const;
const SEND_LIMIT_MS = 10_000;
/** Deliveries under way. */
const MAX_SENDING = 4;
/** Of an answer, for the history. */
const MAX_RESULT_CHARS = 200;
/** How often a longer wait is looked at again: timers count 24 days at most, and the clock may be set. */
const MAX_SLEEP_MS = 60_000;

export interface NotifierOptions {
  store: NotificationStore;
  database: Database;
  clock: Clock;
  logger: Logger;
  /** Pauses between attempts; default {@link RETRY_MS}. */
  retryMs?: readonly number[];
}

/** `sha256=<hex>` of `<seconds>.<body>`. */
export function signatureOf(secret: string, timestampS: number, body: string): string {
  return `sha256=${createHmac('sha256', secret).update(`${timestampS}.${body}`).digest('hex')}`;
}

export class Notifier implements AsyncDisposable {
  private readonly options: NotifierOptions;
  private readonly closing = new AbortController();
  private readonly sending = new Map<number, Promise<void>>();
  private timer: NodeJS.Timeout | undefined;
  /** The database could not be told of a delivery: until then (monotonic) nothing is sent, which would be sent again and again. */
  private heldUntilMs = 0;

  constructor(options: NotifierOptions) {
    this.options = options;
  }

  /** Throws AlreadyExists for a second one of a name, InvalidArgument for a bad expression, ResourceExhausted for too many. */
  add(notification: NewNotification): Notification {
    const { store, database, clock } = this.options;
    const { name, url, filter, repository, secretFile } = notification;
    compileTagFilter(filter);
    return database.transaction(() => {
      if (store.byName(name) !== undefined)
        throw new AppError('AlreadyExists', { op: 'add notification', subject: name, what: 'the name is taken' });
      if (store.count() >= MAX_NOTIFICATIONS) {
        throw new AppError('ResourceExhausted', {
          op: 'add notification',
          subject: name,
          what: `there are ${MAX_NOTIFICATIONS} notifications`,
        });
      }
      const id = store.insert({
        ...{ name, url, filter: JSON.stringify(filter), createdUs: clock.nowMs() * 1000 },
        repository: repository ?? null,
        secretFile: secretFile ?? null,
      });
      return notificationOf(store.get(id)!);
    });
  }

  list(): Notification[] {
    return this.options.store.list().map(notificationOf);
  }

  /** With its history. Throws NotFound. */
  remove(id: number): void {
    const { store } = this.options;
    if (store.get(id) === undefined) {
      throw new AppError('NotFound', { op: 'remove', subject: `notification ${id}`, what: 'there is no such notification' });
    }
    store.remove(id);
  }

  /** Newest first, those below `before`. */
  deliveries(options: { limit: number; before?: number }): Delivery[] {
    return this.options.store.deliveries(options).map(deliveryOf);
  }

  /** Writes down who is to be told of a finished job; to be called in the transaction that ends it. */
  onSuccess(job: ConvertJob): void {
    const { store, clock } = this.options;
    const repository = formatRepository(job.repository);
    const event: ConversionEvent = {
      type: 'BuildCompleted',
      jobId: job.id,
      repository,
      sourceTag: job.tag,
      sourceDigest: job.sourceDigest ?? '',
      tag: job.targetTag,
      digest: job.targetDigest ?? '',
      reference: `${repository}:${job.targetTag}`,
      completedAt: new Date(clock.nowMs()).toISOString(),
    };
    for (const notification of this.list()) {
      const scope = notification.repository;
      if (scope !== null && repository !== scope && !repository.startsWith(`${scope}/`)) continue;
      if (compileTagFilter(notification.filter)(job.targetTag))
        store.addDelivery(notification.id, JSON.stringify(event), clock.nowMs() * 1000);
    }
    setImmediate(() => this.pump());
  }

  /** Sends what is due; deliveries of an earlier control plane too. */
  pump(): void {
    clearTimeout(this.timer);
    if (this.closing.signal.aborted) return;
    const { clock } = this.options;
    if (clock.monotonicMs() < this.heldUntilMs) {
      this.pumpIn(this.heldUntilMs - clock.monotonicMs());
      return;
    }
    try {
      this.sendDue();
    } catch (error) {
      this.hold(error);
    }
  }

  private sendDue(): void {
    const { store, clock } = this.options;
    const nowUs = clock.nowMs() * 1000;
    for (const row of store.due(nowUs, MAX_SENDING * 2)) {
      if (this.sending.size >= MAX_SENDING) return;
      if (this.sending.has(row.id)) continue;
      const done = this.deliver(row)
        .catch((error: unknown) => this.hold(error))
        .finally(() => {
          this.sending.delete(row.id);
          this.pump();
        });
      this.sending.set(row.id, done);
    }
    const next = store.nextDueUs();
    if (next === undefined || this.sending.size > 0) return;
    this.pumpIn(Math.max(0, (next - nowUs) / 1000));
  }

  private pumpIn(delayMs: number): void {
    this.timer = setTimeout(() => this.pump(), Math.min(MAX_SLEEP_MS, delayMs));
    this.timer.unref();
  }

  private hold(error: unknown): void {
    this.options.logger.error({ err: error }, 'deliveries of notifications cannot be written down; tried again');
    this.heldUntilMs = this.options.clock.monotonicMs() + MAX_SLEEP_MS;
    clearTimeout(this.timer);
    if (!this.closing.signal.aborted) this.pumpIn(MAX_SLEEP_MS);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.closing.abort(new Error('the notifier ends'));
    clearTimeout(this.timer);
    await Promise.all(this.sending.values());
  }

  private async deliver(row: DeliveryRow): Promise<void> {
    const { store, clock, logger, retryMs = RETRY_MS } = this.options;
    const attempts = row.attempts + 1;
    let sent: { isTaken: boolean; text: string };
    try {
      sent = await this.send(row);
    } catch (error) {
      // Not counted: the next control plane sends it.
      if (this.closing.signal.aborted) return;
      sent = { isTaken: false, text: describeError(error).slice(0, MAX_RESULT_CHARS) };
    }
    const result = sent.text;
    if (sent.isTaken) {
      store.updateDelivery(row.id, { state: 'DELIVERED', attempts, lastResult: result, endedUs: clock.nowMs() * 1000 });
      return;
    }
    const waitMs = retryMs[attempts - 1];
    const nowUs = clock.nowMs() * 1000;
    logger.warn({ delivery: row.id, attempts, result, waitMs }, 'a notification was not taken');
    if (waitMs === undefined) store.updateDelivery(row.id, { state: 'FAILED', attempts, lastResult: result, endedUs: nowUs });
    else store.updateDelivery(row.id, { attempts, lastResult: result, nextUs: nowUs + waitMs * 1000 });
  }

  private async send(row: DeliveryRow): Promise<{ isTaken: boolean; text: string }> {
    const notification = this.options.store.get(row.notificationId);
    if (notification === undefined)
      throw new AppError('NotFound', { op: 'send', subject: `notification ${row.notificationId}`, what: 'it was removed' });
    const timestampS = Math.floor(this.options.clock.nowMs() / 1000);
    const headers: Record<string, string> = {
      'content-type': 'application/json',
      'user-agent': 'overlaybd-sidecar',
      'x-overlaybd-delivery': String(row.id),
      'x-overlaybd-timestamp': String(timestampS),
    };
    if (notification.secretFile !== null) {
      headers['x-overlaybd-signature'] = signatureOf(await readSecretFile(notification.secretFile), timestampS, row.event);
    }
    const signal = AbortSignal.any([this.closing.signal, AbortSignal.timeout(SEND_LIMIT_MS)]);
    // Redirects are not followed: the body goes where the operator said, or nowhere.
    const { statusCode, body } = await request(notification.url, { method: 'POST', headers, body: row.event, signal });
    await body.dump();
    return { isTaken: statusCode >= 200 && statusCode < 300, text: `status ${statusCode}` };
  }
}
