/**
 * Rules: which pushes of a repository are converted, and how. One rule a repository, so that both modes never write one tag (C1).
 * Sources: R1, R4, R25, R40; the vendor's field names are translated at the admin API's door.
 */
import { z } from 'zod';
import type { ConvertRuleRow } from '../../../db/convert-rule-store.ts';
import { isRegistryHost, isRepositoryPath, type Repository } from '../../registry/reference.ts';
import { type ConvertRequest, convertRequestSchema } from '../publish/request.ts';
import { type TagFilter, tagFilterSchema } from './tag-filter.ts';

/** Rules of one node; each polled one costs a request a minute. */
export const MAX_RULES = 1000;

/** `registry.example:5000/team/app` */
export const repositoryTextSchema = z
  .string()
  .max(512)
  .transform((text, context): Repository => {
    const slash = text.indexOf('/');
    const [host, repository] = [text.slice(0, slash), text.slice(slash + 1)];
    if (slash > 0 && isRegistryHost(host) && isRepositoryPath(repository)) return { host, repository };
    context.addIssue({ code: 'custom', message: 'is not registry/repository, such as registry.example:5000/team/app' });
    return z.NEVER;
  });

export const newRuleSchema = z.strictObject({
  repository: repositoryTextSchema,
  isEnabled: z.boolean().default(true),
  request: convertRequestSchema.prefault({}),
  filter: tagFilterSchema.default({ type: 'ALL' }),
  /** How pushes are noticed; absent: by webhook where one is listened for, else by polling. */
  detection: z.enum(['webhook', 'poll']).optional(),
});
export type NewRule = z.infer<typeof newRuleSchema>;

export const ruleChangeSchema = newRuleSchema.omit({ repository: true }).partial();
/** What is absent stays. */
export type RuleChange = z.infer<typeof ruleChangeSchema>;

export interface ConvertRule {
  id: number;
  repository: Repository;
  isEnabled: boolean;
  request: ConvertRequest;
  filter: TagFilter;
  detection: 'webhook' | 'poll';
  /** Polling has written down what was there before; from then on it converts. */
  hasBaseline: boolean;
  createdUs: number;
  /** Pushes before this time are left alone (R40). */
  enabledUs: number;
}

export function ruleOf(row: ConvertRuleRow): ConvertRule {
  const { id, isEnabled, detection, hasBaseline, createdUs, enabledUs } = row;
  return {
    ...{ id, isEnabled, detection, hasBaseline, createdUs, enabledUs },
    repository: { host: row.host, repository: row.repository },
    request: convertRequestSchema.parse(JSON.parse(row.request)),
    filter: tagFilterSchema.parse(JSON.parse(row.filter)),
  };
}
