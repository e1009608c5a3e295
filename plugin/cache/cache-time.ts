/**
 * The clock by which caches age. It follows the machine's clock, but when that one jumps (a dead battery, a wrong NTP server, a month switched
 * off) it goes on as if nothing had happened, and believes the new time only after a day in which it went steadily. So no jump
 * removes caches at once, whatever it is: there is a day of warning. The state is durable, so a restart does not hide a jump. Ours.
 *
 *   cache time = machine time − offset        a jump moves the offset; a steady day, or the jump back, sets it to 0
 */
import type { Clock } from '../base/clock.ts';

/** More than this at once is a jump; less is a correction or a restart, and no reason to wait. */
export const JUMP_US = 3_600_000_000;
/** How long a jump is doubted: somebody reads the events within a day. */
export const WARNING_US = 24 * 3_600_000_000;
/** How often it becomes durable that time went on. */
const PERSIST_US = 60_000_000;

export interface CacheTimeState {
  /** Cache time when it was last looked at. */
  readonly seenUs: number;
  readonly offsetUs: number;
  /** Cache time of the last jump; null: none is open. */
  readonly steadySinceUs: number | null;
}

/** Where the state is kept. */
export interface CacheTimeStore {
  loadClock(): CacheTimeState | undefined;
  saveClock(state: CacheTimeState): void;
}

export interface OpenJump {
  /** Positive: the machine's clock went ahead. */
  readonly byUs: number;
  /** Cache time from which it is believed. */
  readonly believedAtUs: number;
}

export class CacheTime {
  private readonly clock: Clock;
  private readonly store: CacheTimeStore;
  private state: CacheTimeState;
  private persistedUs: number;
  /** Of the last look in this process; after a start nothing tells a jump from a long pause. */
  private monotonicUs: number | undefined;

  constructor(clock: Clock, store: CacheTimeStore) {
    this.clock = clock;
    this.store = store;
    const loaded = store.loadClock();
    this.state = loaded ?? { seenUs: clock.nowMs() * 1000, offsetUs: 0, steadySinceUs: null };
    this.persistedUs = this.state.seenUs;
    if (loaded === undefined) store.saveClock(this.state);
  }

  /** Cache time, microseconds since the epoch. Never goes back but when a jump back is believed. */
  nowUs(): number {
    const machineUs = Math.round(this.clock.nowMs() * 1000);
    const monotonicUs = Math.round(this.clock.monotonicMs() * 1000);
    const elapsedUs = this.monotonicUs === undefined ? 0 : Math.max(0, monotonicUs - this.monotonicUs);
    this.monotonicUs = monotonicUs;
    const expectedUs = this.state.seenUs + elapsedUs;
    let { offsetUs, steadySinceUs } = this.state;
    const driftUs = machineUs - offsetUs - expectedUs;
    let isTold = false;
    if (Math.abs(driftUs) > JUMP_US) {
      isTold = true;
      offsetUs += driftUs;
      steadySinceUs = expectedUs;
      if (Math.abs(offsetUs) <= JUMP_US) ({ offsetUs, steadySinceUs } = STEADY);
    } else if (steadySinceUs !== null && machineUs - offsetUs - steadySinceUs >= WARNING_US) {
      isTold = true;
      ({ offsetUs, steadySinceUs } = STEADY);
      this.state = { seenUs: machineUs, offsetUs, steadySinceUs };
    }
    const nowUs = Math.max(this.state.seenUs, machineUs - offsetUs);
    this.state = { seenUs: nowUs, offsetUs, steadySinceUs };
    if (isTold || nowUs - this.persistedUs >= PERSIST_US) this.persist();
    return nowUs;
  }

  /** The jump that is doubted now; look at the time first. */
  get openJump(): OpenJump | undefined {
    const { offsetUs, steadySinceUs } = this.state;
    return steadySinceUs === null ? undefined : { byUs: offsetUs, believedAtUs: steadySinceUs + WARNING_US };
  }

  private persist(): void {
    this.store.saveClock(this.state);
    this.persistedUs = this.state.seenUs;
  }
}

const STEADY = { offsetUs: 0, steadySinceUs: null } as const;
