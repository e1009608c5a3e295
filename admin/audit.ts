/**
 * The audit log: who changed what over the API, and who was refused. One line in the journal with `audit: true`, and a row of its own in the
 * database, which events do not wash out. Never a body: credentials are in bodies.
 */
import { RateLimiterMemory, RateLimiterRes } from 'rate-limiter-flexible';
import { describeError } from '../plugin/base/errors.ts';
import type { Logger } from '../plugin/base/log.ts';

/** Refusals written a minute: enough to see an attack; more would wash out the refusals before it. */
const REFUSALS_PER_MINUTE = 10;

export interface AuditEntry {
  /** `socket`, `token <id> (<name>)`, `nobody`. */
  caller: string;
  /** `POST`, or the vendor's action. */
  action: string;
  path: string;
  /** The HTTP status of the answer. */
  status: number;
  requestId: string;
}

export interface AuditRecord extends AuditEntry {
  /** change: asked for by somebody who may, whatever came of it. refusal: by somebody who may not. */
  kind: 'change' | 'refusal';
  /** Microseconds since the Unix epoch. */
  atUs: number;
  /** Refusals since the one before that were not written down. */
  leftOut: number;
}

/** Where the rows lie: the control plane's database, which keeps the newest of each kind. */
export interface AuditRows {
  append(record: AuditRecord): void;
  /** Newest first, those below `before`. */
  list(options: { limit: number; before?: number; kind?: AuditRecord['kind'] }): (AuditRecord & { id: number })[];
}

const MAX_PATH_CHARS = 300;

/** A record as one of the node's events. */
export function auditEvent(record: AuditRecord): { type: 'api-change' | 'api-refused'; subject: string; message: string } {
  const { kind, action, caller, status, requestId, leftOut, path } = record;
  const more = leftOut === 0 ? '' : `; ${leftOut} further refusals were not written down`;
  const message = `${action} by ${caller}: ${status} (request ${requestId})${more}`;
  return { type: kind === 'change' ? 'api-change' : 'api-refused', subject: path, message };
}

export class Audit {
  private readonly log: Logger;
  private readonly rows: AuditRows;
  private readonly refusals = new RateLimiterMemory({ points: REFUSALS_PER_MINUTE, duration: 60 });
  private untoldRefusals = 0;

  constructor(log: Logger, rows: AuditRows) {
    this.log = log;
    this.rows = rows;
  }

  /** A change that was asked for by somebody who may, whatever came of it. */
  change(entry: AuditEntry): void {
    this.write('change', entry, 0);
  }

  /** A request of somebody who may not. At most {@link REFUSALS_PER_MINUTE} are written; the next one written says how many were not. */
  async refused(entry: AuditEntry): Promise<void> {
    try {
      await this.refusals.consume('all');
    } catch (limited) {
      if (!(limited instanceof RateLimiterRes)) throw limited;
      this.untoldRefusals += 1;
      return;
    }
    const untold = this.untoldRefusals;
    this.untoldRefusals = 0;
    this.write('refusal', entry, untold);
  }

  list(options: Parameters<AuditRows['list']>[0]): ReturnType<AuditRows['list']> {
    return this.rows.list(options);
  }

  private write(kind: AuditRecord['kind'], entry: AuditEntry, leftOut: number): void {
    const { caller, action, status, requestId } = entry;
    const path = entry.path.slice(0, MAX_PATH_CHARS);
    const record: AuditRecord = { kind, caller, action, path, status, requestId, leftOut, atUs: Date.now() * 1000 };
    this.log[kind === 'change' ? 'info' : 'warn']({ audit: true, caller, action, path, status, requestId }, auditEvent(record).message);
    try {
      this.rows.append(record);
    } catch (error) {
      // What was asked for is done or refused by now, whether the disk is full or not; the line above stays.
      this.log.error({ requestId, reason: describeError(error) }, 'an entry of the audit log could not be stored');
    }
  }
}
