/**
 * The public door of conversion: jobs, rules, notifications. Wires queue, processes, triggers and notifications over the control plane's
 * database; what it needs from outside is in {@link ConvertOptions}. Ours.
 *
 *   by hand ─┐
 *   webhook ─┼─► rules ─► queue ─► process a job ─► registry
 *   poll ────┘                                └──► notifications
 */
import path from 'node:path';
import { ConvertJobStore } from '../../db/convert-job-store.ts';
import { ConvertLayerStore } from '../../db/convert-layer-store.ts';
import { ConvertRuleStore } from '../../db/convert-rule-store.ts';
import { EventStore } from '../../db/event-store.ts';
import { NotificationStore } from '../../db/notification-store.ts';
import { type Clock, systemClock } from '../base/clock.ts';
import type { Digest } from '../base/digest.ts';
import { AppError, describeError } from '../base/errors.ts';
import { MAX_BLOB_BYTES } from '../base/limits.ts';
import { CgroupParent, cgroupNameOf, findHierarchies } from '../kernel/cgroup.ts';
import type { RegistryClient } from '../registry/client.ts';
import { parseReference, type Repository } from '../registry/reference.ts';
import { DatabaseLedger } from './jobs/database-ledger.ts';
import { type ConvertJob, jobOf } from './jobs/job.ts';
import { runAttempt } from './jobs/job-process.ts';
import { expectedDigestOf, JobQueue } from './jobs/job-queue.ts';
import { JOB_STATES, type JobState } from './jobs/job-states.ts';
import { MeasureTotals, overBudget } from './jobs/measures.ts';
import { openRegistry } from './jobs/registry-access.ts';
import { Staging } from './jobs/staging.ts';
import type { Delivery, NewNotification, Notification } from './notify/notification-rule.ts';
import { Notifier } from './notify/notifier.ts';
import { type ConvertRequest, layerOptionsOf } from './publish/request.ts';
import type { Runtime } from './publish/tag-names.ts';
import { type RemovedImage, removeImage } from './remove/image-remover.ts';
import type { ConvertRule, NewRule, RuleChange } from './rules/rule.ts';
import { RuleBook } from './rules/rule-book.ts';
import type { PushEvent } from './trigger/notification.ts';
import { Poller } from './trigger/poller.ts';
import { onPush, type TriggerParts } from './trigger/push.ts';
import { readSecretFile, WebhookServer } from './trigger/webhook-server.ts';
import { type ConvertLogLine, type ConvertOptions, type ConvertService, type ConvertStatistics, MAX_LOG_PAGE } from './types.ts';

export type { ConvertJob, Trigger } from './jobs/job.ts';
export { JOB_STATES, type JobState } from './jobs/job-states.ts';
export { type Delivery, type NewNotification, type Notification, newNotificationSchema } from './notify/notification-rule.ts';
export { type Progress, progressSchema } from './publish/progress.ts';
export { BLOCK_KIB, COMPRESSIONS, type ConvertRequest, convertRequestSchema } from './publish/request.ts';
export { convertToLayout, type LayoutResult, type LocalSource } from './publish/to-layout.ts';
export type { ImageUser, RemovedImage } from './remove/image-remover.ts';
export { type ConvertRule, type NewRule, newRuleSchema, type RuleChange, ruleChangeSchema } from './rules/rule.ts';
export { type TagFilter, tagFilterSchema } from './rules/tag-filter.ts';
export type { ConvertLogLine, ConvertOptions, ConvertService, ConvertStatistics } from './types.ts';

/** A port that another process still holds is free within seconds. */
const LISTEN_AGAIN_MS = 5_000;

/**
 * Takes up what an earlier control plane left (its staging and cgroups are removed, its jobs go on) and starts. What the machine does not
 * let it do (listen for the webhook, make cgroups) is logged and tried again; it is no reason not to start.
 */
export async function startConvert(options: ConvertOptions): Promise<ConvertService> {
  const service = new Service(options);
  await service.start();
  return service;
}

class Service implements ConvertService {
  private readonly options: ConvertOptions;
  private readonly clock: Clock;
  private readonly jobStore: ConvertJobStore;
  private readonly layerStore: ConvertLayerStore;
  private readonly events: EventStore;
  private readonly queue: JobQueue;
  private readonly ruleBook: RuleBook;
  private readonly notifier: Notifier;
  private readonly staging: Staging;
  private readonly totals = new MeasureTotals();
  private readonly stack = new AsyncDisposableStack();
  private cgroups = new CgroupParent('', new Map());
  private client!: RegistryClient;
  private poller: Poller | undefined;
  private webhook: WebhookServer | undefined;
  private listenTimer: NodeJS.Timeout | undefined;
  private isStopping = false;
  complaint: string | undefined;

  constructor(options: ConvertOptions) {
    const { database, logger } = options;
    const clock = options.clock ?? systemClock;
    this.options = options;
    this.clock = clock;
    this.jobStore = new ConvertJobStore(database);
    this.layerStore = new ConvertLayerStore(database);
    this.events = new EventStore(database);
    this.staging = new Staging(path.join(options.rootDir, 'convert'), options.stagingBytes);
    this.notifier = new Notifier({
      ...{ store: new NotificationStore(database), database, clock, logger },
      ...(options.notificationRetryMs === undefined ? {} : { retryMs: options.notificationRetryMs }),
    });
    this.ruleBook = new RuleBook({ store: new ConvertRuleStore(database), database, clock, hasWebhook: options.webhook !== undefined });
    this.queue = new JobQueue({
      ...{ store: this.jobStore, database, clock, logger, concurrency: options.concurrency },
      run: (job, name, hooks) => this.runJob(job, name, hooks),
      onSuccess: (job) => this.succeeded(job),
    });
  }

  async start(): Promise<void> {
    const { logger, registry } = this.options;
    await this.staging.reap();
    await this.findCgroups();
    const client = this.stack.use(openRegistry(registry, logger));
    this.client = client;
    const { pollIntervalMs: intervalMs, database } = this.options;
    this.poller = this.stack.use(
      new Poller({
        ...{ rules: this.ruleBook, store: new ConvertRuleStore(database), client, clock: this.clock, logger, intervalMs },
        onPush: (rule, push) => onPush(rule, push, 'poll', this.triggerParts),
      }),
    );
    this.stack.use(this.notifier);
    await this.listen();
    this.queue.start();
    this.notifier.pump();
    this.poller.poke();
  }

  async stop(): Promise<void> {
    this.isStopping = true;
    clearTimeout(this.listenTimer);
    await this.queue.stop();
    await this.stack.disposeAsync();
    try {
      await this.cgroups.remove();
    } catch (error) {
      this.options.logger.warn({ reason: describeError(error) }, 'the cgroups of conversions could not be removed');
    }
  }

  statistics(): ConvertStatistics {
    const countOf = (state: JobState): [JobState, number] => [state, this.jobStore.countInState(state)];
    return { jobs: Object.fromEntries(JOB_STATES.map(countOf)) as Record<JobState, number>, byMode: this.totals.byMode };
  }

  get webhookPort(): number | undefined {
    return this.webhook?.port;
  }

  convert(text: string, request: ConvertRequest): ConvertJob {
    const { host, repository, tag, digest } = parseReference(text);
    if (tag === undefined) {
      throw new AppError('InvalidArgument', { op: 'convert', subject: text, what: 'it has no tag to name the result after' });
    }
    return this.queue.add({
      repository: { host, repository },
      tag,
      request,
      trigger: 'manual',
      ...(digest === undefined ? {} : { digest }),
    });
  }

  job(id: number): ConvertJob {
    return this.queue.get(id);
  }

  jobs(options: { limit: number; before?: number; state?: JobState }): ConvertJob[] {
    return this.queue.list(options);
  }

  cancel(id: number): Promise<ConvertJob> {
    return this.queue.cancel(id);
  }

  watch(id: number, signal: AbortSignal): AsyncIterable<ConvertJob> {
    // Not found is told now, not at the first step.
    this.queue.get(id);
    return this.queue.watch(id, signal);
  }

  log(id: number, after: number, limit: number): ConvertLogLine[] {
    this.queue.get(id);
    return this.jobStore.logLines(id, after, Math.min(limit, MAX_LOG_PAGE));
  }

  addRule(rule: NewRule): ConvertRule {
    const added = this.ruleBook.add(rule);
    this.poller?.poke();
    return added;
  }

  rule(id: number): ConvertRule {
    return this.ruleBook.get(id);
  }

  rules(): ConvertRule[] {
    return this.ruleBook.list();
  }

  changeRule(id: number, change: RuleChange): ConvertRule {
    const changed = this.ruleBook.change(id, change);
    this.poller?.poke();
    return changed;
  }

  removeRule(id: number): void {
    this.ruleBook.remove(id);
  }

  addNotification(notification: NewNotification): Notification {
    return this.notifier.add(notification);
  }

  notifications(): Notification[] {
    return this.notifier.list();
  }

  removeNotification(id: number): void {
    this.notifier.remove(id);
  }

  deliveries(options: { limit: number; before?: number }): Delivery[] {
    return this.notifier.deliveries(options);
  }

  async removeImage(reference: string, signal: AbortSignal): Promise<RemovedImage> {
    const { client, jobStore } = this;
    const { usersOf, logger } = this.options;
    const runtimeOf = ({ host, repository }: Repository, digest: Digest): Runtime | undefined => {
      const maker = jobStore.maker(host, repository, digest);
      return maker === undefined ? undefined : jobOf(maker).request.runtime;
    };
    const removed = await removeImage(reference, { client, usersOf, runtimeOf }, signal);
    const { repository, digest, tags, manifests } = removed;
    const what = manifests.length === 0 ? `the tag ${tags[0]}` : `${manifests.length} manifests`;
    const message = `${what} of ${digest} went by request`;
    this.events.append({ atUs: this.clock.nowMs() * 1000, type: 'image-deleted', subject: reference, message });
    logger.info({ repository, digest, tags, manifests }, 'image deleted');
    return removed;
  }

  /** Registries repeat what was not taken, so that a listener that comes late loses nothing that they still remember. */
  private async listen(): Promise<void> {
    const { webhook, logger } = this.options;
    if (webhook === undefined || this.isStopping) return;
    try {
      const secret = await readSecretFile(webhook.secretFile);
      const onEvent = (event: PushEvent, host: string | undefined): void => this.notified(event, host);
      const server = await WebhookServer.start({ address: webhook.address, secret, logger, onPush: onEvent });
      if (this.stack.disposed) await server[Symbol.asyncDispose]();
      else this.webhook = this.stack.use(server);
      this.complaint = undefined;
    } catch (error) {
      this.complaint = `Pushes are not noticed by webhook: ${describeError(error)}.`;
      logger.error({ reason: describeError(error) }, 'the webhook cannot be listened for; tried again');
      this.listenTimer = setTimeout(() => void this.listen(), LISTEN_AGAIN_MS);
      this.listenTimer.unref();
    }
  }

  private get triggerParts(): TriggerParts {
    return { queue: this.queue, jobs: this.jobStore, events: this.events, clock: this.clock };
  }

  /** Where cgroups cannot be had, jobs say so one by one; the service starts. */
  private async findCgroups(): Promise<void> {
    try {
      this.cgroups = new CgroupParent(cgroupNameOf('convert', this.options.rootDir), await findHierarchies());
      await this.cgroups.reap();
    } catch (error) {
      this.options.logger.warn({ reason: describeError(error) }, 'cgroups of earlier conversions could not be looked through');
    }
  }

  private runJob(job: ConvertJob, name: string, hooks: Parameters<ConstructorParameters<typeof JobQueue>[0]['run']>[2]) {
    const { registry, cpus, memoryBytes, jobDeadlineMs, logLevel, logger } = this.options;
    const expectedDigest = expectedDigestOf(job);
    const work = {
      ...{ registry, host: job.repository.host, repository: job.repository.repository, tag: job.tag, request: job.request, logLevel },
      threads: Math.max(1, Math.ceil(cpus)),
      maxLayerBytes: MAX_BLOB_BYTES,
      ...(expectedDigest === undefined ? {} : { expectedDigest }),
    };
    const ledger = new DatabaseLedger(this.layerStore, job.repository, layerOptionsOf(job.request), this.clock);
    const attempt = { name, work, limits: { cpus, memoryBytes }, deadlineMs: jobDeadlineMs, ledger, ...hooks };
    return runAttempt(attempt, { staging: this.staging, cgroups: this.cgroups, logger });
  }

  private succeeded(job: ConvertJob): void {
    const { host, repository } = job.repository;
    const subject = `${host}/${repository}:${job.tag}`;
    this.events.append({
      atUs: this.clock.nowMs() * 1000,
      type: 'convert-completed',
      subject,
      message: `${job.targetTag} names ${job.targetDigest}`,
    });
    this.notifier.onSuccess(job);
    this.measured(job, subject);
  }

  private measured({ id, request: { mode }, measures }: ConvertJob, subject: string): void {
    if (measures === null) return;
    const over = overBudget(measures, this.options.budgets[mode]);
    this.totals.add(mode, measures, over);
    const atUs = this.clock.nowMs() * 1000;
    for (const { what } of over) {
      this.events.append({ atUs, type: 'convert-over-budget', subject, message: what });
      this.jobStore.log(id, atUs, `over budget: ${what}`);
    }
  }

  /** A registry told of a push: of the rules for that path, those of that registry hear of it. */
  private notified(event: PushEvent, registry: string | undefined): void {
    const host = registry ?? event.host;
    const atUs = this.clock.nowMs() * 1000;
    const say = (message: string): void =>
      this.events.append({ atUs, type: 'convert-untriggered', subject: `${host}/${event.repository}:${event.tag}`, message });
    const rules = this.ruleBook.byPath(event.repository);
    const rule = rules.find((candidate) => candidate.repository.host === host);
    if (rule === undefined) {
      if (rules.length > 0)
        say(
          `the rules of this path are for other registries; add ?registry=${rules[0]!.repository.host} to the webhook's address if it is one of them`,
        );
      return;
    }
    if (rule.detection !== 'webhook') say(`rule ${rule.id} polls`);
    else if (event.atMs * 1000 < rule.enabledUs) say(`it was pushed before rule ${rule.id} was switched on`);
    else onPush(rule, event, 'webhook', this.triggerParts);
  }
}
