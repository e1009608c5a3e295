/** A conversion job as the rest of the product sees it, read from its row. Ours; names of states and fields follow R26. */
import type { ConvertJobRow } from '../../../db/convert-job-store.ts';
import type { Repository } from '../../registry/reference.ts';
import { type Progress, progressSchema } from '../publish/progress.ts';
import { type ConvertRequest, convertRequestSchema } from '../publish/request.ts';
import type { JobState } from './job-states.ts';
import type { Measures } from './measures.ts';

export type Trigger = 'manual' | 'webhook' | 'poll';

export interface ConvertJob {
  id: number;
  repository: Repository;
  tag: string;
  targetTag: string;
  sourceDigest: string | null;
  targetDigest: string | null;
  request: ConvertRequest;
  trigger: Trigger;
  state: JobState;
  failure: { code: string; message: string } | null;
  /** Processes started for it. */
  attempts: number;
  progress: Progress;
  createdUs: number;
  startedUs: number | null;
  endedUs: number | null;
  /** Of a successful job. */
  measures: Measures | null;
}

export function jobOf(row: ConvertJobRow): ConvertJob {
  const { id, tag, targetTag, sourceDigest, targetDigest, state, attempts, createdUs, startedUs, endedUs } = row;
  const { sourceBytes, resultBytes, elapsedMs } = row;
  const isMeasured = sourceBytes !== null && resultBytes !== null && elapsedMs !== null;
  return {
    ...{ id, tag, targetTag, sourceDigest, targetDigest, state, attempts, createdUs, startedUs, endedUs },
    repository: { host: row.host, repository: row.repository },
    request: convertRequestSchema.parse(JSON.parse(row.request)),
    trigger: row.triggerKind,
    failure: row.failureCode === null ? null : { code: row.failureCode, message: row.failure ?? '' },
    progress: progressSchema.parse(JSON.parse(row.progress)),
    measures: isMeasured ? { sourceBytes, resultBytes, elapsedMs } : null,
  };
}
