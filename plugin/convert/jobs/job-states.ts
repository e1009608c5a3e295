/**
 * States of a conversion job (R26). A job that ends in FAILED says why; a canceled one does too.
 *
 *   PENDING ──► BUILDING ──► SUCCESS
 *      ▲ │          │ │
 *      │ └──────────┼─┴──► FAILED
 *      └────────────┘  its process died, or the registry was away: from the layers that are uploaded
 */
import assert from 'node:assert';

export const JOB_STATES = ['PENDING', 'BUILDING', 'SUCCESS', 'FAILED'] as const;
export type JobState = (typeof JOB_STATES)[number];

/** The one table of allowed moves. */
export const JOB_MOVES: Readonly<Record<JobState, readonly JobState[]>> = {
  PENDING: ['BUILDING', 'FAILED'],
  BUILDING: ['SUCCESS', 'FAILED', 'PENDING'],
  SUCCESS: [],
  FAILED: [],
};

export function isEnded(state: JobState): boolean {
  return JOB_MOVES[state].length === 0;
}

/** A move that is not in the table is a broken invariant. */
export function assertMove(from: JobState, to: JobState): void {
  assert(JOB_MOVES[from].includes(to), `a job moves from ${from} to ${JOB_MOVES[from].join(' or ') || 'nothing'}, not to ${to}`);
}
