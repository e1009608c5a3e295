/** The rules as people make, change and remove them. Ours. */
import type { ConvertRuleStore } from '../../../db/convert-rule-store.ts';
import type { Database } from '../../../db/database.ts';
import type { Clock } from '../../base/clock.ts';
import { AppError } from '../../base/errors.ts';
import { formatRepository } from '../../registry/reference.ts';
import { type ConvertRule, MAX_RULES, type NewRule, type RuleChange, ruleOf } from './rule.ts';
import { compileTagFilter } from './tag-filter.ts';

export interface RuleBookOptions {
  store: ConvertRuleStore;
  database: Database;
  clock: Clock;
  /** Whether pushes can be told of here at all. */
  hasWebhook: boolean;
}

export class RuleBook {
  private readonly options: RuleBookOptions;

  constructor(options: RuleBookOptions) {
    this.options = options;
  }

  /** Throws AlreadyExists for a second rule of a repository, InvalidArgument for a bad expression, FailedPrecondition without a webhook. */
  add(rule: NewRule): ConvertRule {
    const { store, database, clock, hasWebhook } = this.options;
    const { host, repository } = rule.repository;
    const subject = formatRepository(rule.repository);
    this.check(rule, subject);
    return database.transaction(() => {
      if (store.byRepository(host, repository) !== undefined) {
        throw new AppError('AlreadyExists', { op: 'add rule', subject, what: 'the repository has a rule; change that one' });
      }
      if (store.list().length >= MAX_RULES)
        throw new AppError('ResourceExhausted', { op: 'add rule', subject, what: `there are ${MAX_RULES} rules` });
      const nowUs = clock.nowMs() * 1000;
      const id = store.insert({
        ...{ host, repository, isEnabled: rule.isEnabled },
        request: JSON.stringify(rule.request),
        filter: JSON.stringify(rule.filter),
        detection: rule.detection ?? (hasWebhook ? 'webhook' : 'poll'),
        createdUs: nowUs,
        enabledUs: nowUs,
      });
      return this.get(id);
    });
  }

  /** Throws NotFound. */
  get(id: number): ConvertRule {
    const row = this.options.store.get(id);
    if (row === undefined) throw new AppError('NotFound', { op: 'find', subject: `rule ${id}`, what: 'there is no such rule' });
    return ruleOf(row);
  }

  list(): ConvertRule[] {
    return this.options.store.list().map(ruleOf);
  }

  /** Rules for a repository path, whatever the registry is called. */
  byPath(repository: string): ConvertRule[] {
    return this.options.store.byPath(repository).map(ruleOf);
  }

  /** Switching on, another filter or another way of noticing begins anew: what is there at that moment is not converted. */
  change(id: number, change: RuleChange): ConvertRule {
    const { store, database, clock } = this.options;
    this.check(change, `rule ${id}`);
    return database.transaction(() => {
      const rule = this.get(id);
      const { isEnabled = rule.isEnabled, request = rule.request, filter = rule.filter, detection = rule.detection } = change;
      const isSame = rule.isEnabled === isEnabled && rule.detection === detection && JSON.stringify(rule.filter) === JSON.stringify(filter);
      store.update(id, { isEnabled, request: JSON.stringify(request), filter: JSON.stringify(filter), detection });
      if (!isSame) {
        store.update(id, { enabledUs: clock.nowMs() * 1000, hasBaseline: false });
        store.clearSeenTags(id);
      }
      return this.get(id);
    });
  }

  /** Jobs that are queued go on. Throws NotFound. */
  remove(id: number): void {
    this.get(id);
    this.options.store.remove(id);
  }

  private check(
    { filter, detection }: { filter?: NewRule['filter'] | undefined; detection?: NewRule['detection'] },
    subject: string,
  ): void {
    if (filter !== undefined) compileTagFilter(filter);
    if (detection === 'webhook' && !this.options.hasWebhook) {
      throw new AppError('FailedPrecondition', {
        op: 'make rule',
        subject,
        what: 'no webhook is listened for (convert.webhook_listen); use polling',
      });
    }
  }
}
