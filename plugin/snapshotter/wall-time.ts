/**
 * Wall-clock microseconds. containerd compares a snapshot's times with its own clock, so `Date.now()`'s milliseconds, rounded down,
 * would lie before the call that made the snapshot. The process's high-resolution clock follows the wall clock's rate; only steps
 * (an administrator, the first time synchronization) have to be followed here.
 */

/** `Date.now()` lies 0 to 1 ms behind the true time; further apart means that the wall clock was set. */
const STEP_MS = 1.5;

let correctionMs = 0;

/** Microseconds since the Unix epoch, as a safe integer. */
export function wallTimeUs(): number {
  const estimateMs = performance.timeOrigin + performance.now() + correctionMs;
  const behindMs = estimateMs - Date.now();
  if (behindMs >= -0.5 && behindMs <= STEP_MS) return Math.floor(estimateMs * 1000);
  correctionMs += 0.5 - behindMs;
  return Math.floor((estimateMs + 0.5 - behindMs) * 1000);
}
