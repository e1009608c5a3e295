/**
 * A push that was noticed, by whatever means, and what the rules make of it. Everything that is not converted is said in the event list,
 * with the reason (R23's "untriggered"). Sources: R4, R28, R29, R40.
 */
import type { ConvertJobStore } from '../../../db/convert-job-store.ts';
import type { EventStore } from '../../../db/event-store.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import { describeError, isAppError } from '../../base/errors.ts';
import { formatRepository } from '../../registry/reference.ts';
import type { JobQueue } from '../jobs/job-queue.ts';
import { acceleratedTag, isOutputTag } from '../publish/tag-names.ts';
import type { ConvertRule } from '../rules/rule.ts';
import { compileTagFilter } from '../rules/tag-filter.ts';

export interface Push {
  tag: string;
  digest: Digest;
}

export interface TriggerParts {
  queue: JobQueue;
  jobs: ConvertJobStore;
  events: EventStore;
  clock: Clock;
}

/**
 * Queues the conversion of a push if its rule wants it; what is against that is an event. Throws ResourceExhausted when too many wait: who
 * noticed the push must bring it again.
 */
export function onPush(rule: ConvertRule, push: Push, trigger: 'webhook' | 'poll', parts: TriggerParts): void {
  const { repository } = rule;
  const subject = `${formatRepository(repository)}:${push.tag}`;
  const say = (type: string, message: string): void => parts.events.append({ atUs: parts.clock.nowMs() * 1000, type, subject, message });
  const reason = reasonAgainst(rule, push, parts.jobs);
  if (reason !== undefined) {
    say('convert-untriggered', reason);
    return;
  }
  try {
    const job = parts.queue.add({ repository, tag: push.tag, digest: push.digest, request: rule.request, trigger });
    say('convert-triggered', `job ${job.id} by ${trigger} (rule ${rule.id})`);
  } catch (error) {
    say('convert-untriggered', describeError(error));
    if (isAppError(error, 'ResourceExhausted')) throw error;
  }
}

function reasonAgainst(rule: ConvertRule, { tag, digest }: Push, jobs: ConvertJobStore): string | undefined {
  if (isOutputTag(tag)) return 'the tag is that of a result of conversion';
  if (!rule.isEnabled) return `rule ${rule.id} is off`;
  if (!compileTagFilter(rule.filter)(tag)) return `the filter of rule ${rule.id} does not match the tag`;
  const { host, repository } = rule.repository;
  const { mode, runtime } = rule.request;
  const last = jobs.lastSuccess(host, repository, tag, acceleratedTag(tag, mode, runtime));
  if (last?.sourceDigest === digest && last.request === JSON.stringify(rule.request))
    return `job ${last.id} has converted ${digest} already`;
  return undefined;
}
