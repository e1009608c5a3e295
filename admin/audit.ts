/**
 * The audit log: who changed what over the API, and who was refused. One line in the journal with `audit: true`, and a row among the events.
 * Never a body: credentials are in bodies.
 */
import { RateLimiterMemory, RateLimiterRes } from 'rate-limiter-flexible';
import type { Logger } from '../plugin/base/log.ts';

/** Refusals written a minute: enough to see an attack; more would wash everything else out of the events. */
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

/** Where events go; the control plane's list. */
export interface AuditEvents {
  append(type: 'api-change' | 'api-refused', subject: string, message: string): void;
}

const MAX_PATH_CHARS = 300;

export class Audit {
  private readonly log: Logger;
  private readonly events: AuditEvents;
  private readonly refusals = new RateLimiterMemory({ points: REFUSALS_PER_MINUTE, duration: 60 });
  private untoldRefusals = 0;

  constructor(log: Logger, events: AuditEvents) {
    this.log = log;
    this.events = events;
  }

  /** A change that was asked for by somebody who may, whatever came of it. */
  change(entry: AuditEntry): void {
    this.write('api-change', entry, '');
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
    this.write('api-refused', entry, untold === 0 ? '' : `; ${untold} further refusals were not written down`);
  }

  private write(type: 'api-change' | 'api-refused', entry: AuditEntry, more: string): void {
    const path = entry.path.slice(0, MAX_PATH_CHARS);
    const { caller, action, status, requestId } = entry;
    const message = `${action} by ${caller}: ${status} (request ${requestId})${more}`;
    this.log[type === 'api-change' ? 'info' : 'warn']({ audit: true, caller, action, path, status, requestId }, message);
    this.events.append(type, path, message);
  }
}
