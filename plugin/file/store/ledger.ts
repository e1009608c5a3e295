/** The store's byte account: what lies on disk (as `du` counts it), what is promised to running fetches, and the budget for both. */
import assert from 'node:assert/strict';

/** Bytes promised to one fetch. Released exactly once, when they have become used bytes or are not needed. */
export class Reservation {
  readonly bytes: number;
  private readonly ledger: Ledger;
  private isOpen = true;

  constructor(ledger: Ledger, bytes: number) {
    this.ledger = ledger;
    this.bytes = bytes;
  }

  /** Gives the promise back; later calls do nothing. */
  release(): void {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.ledger.unreserve(this.bytes);
  }
}

export class Ledger {
  readonly budgetBytes: number;
  private used = 0;
  private reserved = 0;

  constructor(budgetBytes: number) {
    assert(Number.isSafeInteger(budgetBytes) && budgetBytes >= 0);
    this.budgetBytes = budgetBytes;
  }

  get usedBytes(): number {
    return this.used;
  }

  get reservedBytes(): number {
    return this.reserved;
  }

  /** Bytes by which the account stands above the budget if `bytes` more were taken; 0 or less: they fit. */
  excessOf(bytes: number): number {
    return this.used + this.reserved + bytes - this.budgetBytes;
  }

  /** Promises bytes, or undefined when they do not fit. */
  reserve(bytes: number): Reservation | undefined {
    assert(bytes >= 0);
    if (this.excessOf(bytes) > 0) return undefined;
    this.reserved += bytes;
    return new Reservation(this, bytes);
  }

  unreserve(bytes: number): void {
    this.reserved -= bytes;
    assert(this.reserved >= 0);
  }

  /** Books bytes that appeared on disk (or vanished from it, negative). */
  add(bytes: number): void {
    this.used += bytes;
    assert(this.used >= 0);
  }
}
