/** What went wrong or changed in the data plane, for people: a bounded ring that the control plane reads. */
import type { Clock } from '../base/clock.ts';

/** Enough to see what led to a failure; older ones are in the journal. */
const MAX_EVENTS = 500;
/** Of one kind about one subject: a container that repeats a read that fails must not push out what others need to know. */
const MAX_ALIKE = 20;

export interface DataPlaneEvent {
  sequence: number;
  atMs: number;
  severity: 'info' | 'warning' | 'error';
  /** Stable name: `device.read-failed`, `store.degraded`. */
  kind: string;
  subject: string;
  message: string;
}

export class EventRing {
  private readonly clock: Clock;
  private readonly events: DataPlaneEvent[] = [];
  private sequence = 0;

  constructor(clock: Clock) {
    this.clock = clock;
  }

  add(event: Pick<DataPlaneEvent, 'severity' | 'kind' | 'subject' | 'message'>): void {
    const alike = this.events.filter(({ kind, subject }) => kind === event.kind && subject === event.subject);
    if (alike.length >= MAX_ALIKE) this.events.splice(this.events.indexOf(alike[0]!), 1);
    this.sequence += 1;
    this.events.push({ sequence: this.sequence, atMs: this.clock.nowMs(), ...event });
    if (this.events.length > MAX_EVENTS) this.events.shift();
  }

  /** Events with a higher sequence number, oldest first. */
  since(sequence: number): DataPlaneEvent[] {
    return this.events.filter((event) => event.sequence > sequence);
  }
}
