/** What conversion needs from outside and what may be asked of it. Re-exported by service.ts, the part's door. Ours. */
import type { Database } from '../../db/database.ts';
import type { Clock } from '../base/clock.ts';
import type { Logger } from '../base/log.ts';
import type { ConvertJob } from './jobs/job.ts';
import type { JobState } from './jobs/job-states.ts';
import type { Budget, ModeTotals } from './jobs/measures.ts';
import type { RegistryAccess } from './jobs/protocol.ts';
import type { Delivery, NewNotification, Notification } from './notify/notification-rule.ts';
import type { ConvertRequest } from './publish/request.ts';
import type { Mode } from './publish/tag-names.ts';
import type { ImageUser, RemovedImage } from './remove/image-remover.ts';
import type { ConvertRule, NewRule, RuleChange } from './rules/rule.ts';

/** The largest log page. */
export const MAX_LOG_PAGE = 1000;

export interface ConvertLogLine {
  lineNumber: number;
  atUs: number;
  message: string;
}

export interface ConvertOptions {
  database: Database;
  /** The product's root: staging lies below, and its name tells this instance's cgroups from others'. */
  rootDir: string;
  registry: RegistryAccess;
  logger: Logger;
  logLevel: string;
  /** Conversions at once. */
  concurrency: number;
  /** Of one conversion. */
  cpus: number;
  memoryBytes: number;
  stagingBytes: number;
  jobDeadlineMs: number;
  pollIntervalMs: number;
  /** What conversions of each mode may cost before it is said. */
  budgets: Readonly<Record<Mode, Budget>>;
  /** Who on this node cannot be read without a manifest; asked before one is deleted. At most `limit`. */
  usersOf(digest: string, limit: number): readonly ImageUser[];
  /** Absent: no webhook is listened for. */
  webhook?: { address: string; secretFile: string };
  clock?: Clock;
  /** Pauses between attempts at a notification; default about five hours of trying. */
  notificationRetryMs?: readonly number[];
}

export interface ConvertStatistics {
  /** Jobs that are kept, by state. */
  jobs: Record<JobState, number>;
  /** Successful ones since the start. */
  byMode: Readonly<Record<Mode, ModeTotals>>;
}

/** What the admin API and the rest of the control plane may ask for. Failures are AppError. */
export interface ConvertService {
  /** Queues one conversion by hand (R41); returns the job, or the one that does the same already. The reference must have a tag. */
  convert(reference: string, request: ConvertRequest): ConvertJob;
  job(id: number): ConvertJob;
  /** Newest first, those below `before`. */
  jobs(options: { limit: number; before?: number; state?: JobState }): ConvertJob[];
  /** Resolves when nothing of the job runs any more. */
  cancel(id: number): Promise<ConvertJob>;
  /** The job now and at each change until it has ended. */
  watch(id: number, signal: AbortSignal): AsyncIterable<ConvertJob>;
  /** Lines behind `after`. */
  log(id: number, after: number, limit: number): ConvertLogLine[];
  addRule(rule: NewRule): ConvertRule;
  rule(id: number): ConvertRule;
  rules(): ConvertRule[];
  changeRule(id: number, change: RuleChange): ConvertRule;
  removeRule(id: number): void;
  addNotification(notification: NewNotification): Notification;
  notifications(): Notification[];
  removeNotification(id: number): void;
  deliveries(options: { limit: number; before?: number }): Delivery[];
  /** For the metrics. */
  statistics(): ConvertStatistics;
  /** Deletes an image from its registry unless somebody here needs it; see {@link removeImage}. */
  removeImage(reference: string, signal: AbortSignal): Promise<RemovedImage>;
  /** The port that registries tell of pushes at; undefined without a webhook. */
  readonly webhookPort: number | undefined;
  /** What does not work now, as a sentence. */
  readonly complaint: string | undefined;
  /** Ends processes and listeners; jobs go on at the next start. */
  stop(): Promise<void>;
}
