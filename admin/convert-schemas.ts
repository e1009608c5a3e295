/** Shapes of the conversion part of the admin API. One source for types, checks and the OpenAPI document. */
import { z } from '@hono/zod-openapi';
import {
  type ConvertJob,
  type ConvertRule,
  convertRequestSchema,
  type Delivery,
  JOB_STATES,
  type Notification,
  newRuleSchema,
  progressSchema,
  tagFilterSchema,
} from '../plugin/convert/service.ts';
import { MAX_REFERENCE_CHARS } from './limits.ts';

const at = z.string().openapi({ description: 'ISO 8601, UTC', example: '2026-01-31T12:00:00.000Z' });

export const convertBodySchema = z
  .strictObject({
    reference: z.string().min(1).max(MAX_REFERENCE_CHARS),
    buildType: z
      .enum(['IMAGE_TO_ACCELERATED_IMAGE', 'IMAGE_TO_ECI_ACCELERATED_IMAGE'])
      .optional()
      .openapi({ description: 'the vendor’s names for what is asked; both mean this' }),
    ...convertRequestSchema.shape,
  })
  .openapi('ConvertRequest');

export const jobSchema = z
  .object({
    id: z.int(),
    repository: z.string().openapi({ example: 'registry.example:5000/team/app' }),
    tag: z.string(),
    targetTag: z.string(),
    sourceDigest: z.string().nullable(),
    targetDigest: z.string().nullable(),
    request: convertRequestSchema,
    trigger: z.enum(['manual', 'webhook', 'poll']),
    state: z.enum(JOB_STATES),
    failure: z.object({ code: z.string(), message: z.string() }).nullable(),
    attempts: z.int(),
    progress: progressSchema,
    createdAt: at,
    startTime: at.nullable(),
    endTime: at.nullable(),
    measures: z
      .object({
        sourceBytes: z.int().openapi({ description: 'compressed layers of the images that were converted' }),
        resultBytes: z.int().openapi({ description: 'layers of the results' }),
        elapsedMs: z.int().openapi({ description: 'from the first request to the push of the tag' }),
      })
      .nullable()
      .openapi({ description: 'of a successful job' }),
  })
  .openapi('ConvertJob');
export type JobView = z.infer<typeof jobSchema>;

export const logLineSchema = z.object({ lineNumber: z.int(), at, message: z.string() }).openapi('ConvertLogLine');
export type LogLineView = z.infer<typeof logLineSchema>;

export const ruleSchema = z
  .object({
    id: z.int(),
    repository: z.string(),
    isEnabled: z.boolean(),
    request: convertRequestSchema,
    filter: tagFilterSchema,
    detection: z.enum(['webhook', 'poll']),
    hasBaseline: z.boolean().openapi({ description: 'polling has written down what was there before the rule' }),
    createdAt: at,
    enabledAt: at,
  })
  .openapi('ConvertRule');
export type RuleView = z.infer<typeof ruleSchema>;

/** The vendor's names for a rule (CreateArtifactBuildRule): translated here, not carried inward. */
const vendorRuleSchema = z
  .strictObject({
    ScopeType: z.literal('REPOSITORY'),
    ScopeId: z.string().openapi({ description: 'registry/repository' }),
    ArtifactType: z.literal('ACCELERATED_IMAGE'),
    Parameters: z.strictObject({ ImageIndexOnly: z.boolean().default(false) }).prefault({}),
  })
  .transform(({ ScopeId, Parameters }, context) => {
    const rule = newRuleSchema.safeParse({ repository: ScopeId, request: { mode: Parameters.ImageIndexOnly ? 'index-only' : 'full' } });
    if (rule.success) return rule.data;
    for (const { message } of rule.error.issues) context.addIssue({ code: 'custom', path: ['ScopeId'], message });
    return z.NEVER;
  });

export const ruleBodySchema = z.union([newRuleSchema, vendorRuleSchema]);

export const notificationSchema = z
  .object({
    id: z.int(),
    name: z.string(),
    url: z.string(),
    filter: tagFilterSchema,
    repository: z.string().nullable(),
    isSigned: z.boolean(),
    createdAt: at,
  })
  .openapi('ConvertNotification');
export type NotificationView = z.infer<typeof notificationSchema>;

export const deliverySchema = z
  .object({
    id: z.int(),
    notificationId: z.int(),
    event: z.record(z.string(), z.union([z.string(), z.number()])),
    state: z.enum(['WAITING', 'DELIVERED', 'FAILED']),
    attempts: z.int(),
    nextAttemptAt: at.nullable(),
    lastResult: z.string().nullable(),
    createdAt: at,
    endedAt: at.nullable(),
  })
  .openapi('ConvertDelivery');
export type DeliveryView = z.infer<typeof deliverySchema>;

export const removedImageSchema = z
  .object({
    repository: z.string(),
    digest: z.string(),
    kind: z.enum(['original', 'full', 'index-only']),
    tags: z.array(z.string()).openapi({ description: 'tags that are gone' }),
    manifests: z.array(z.string()).openapi({ description: 'manifests that are gone; none when other tags name the image' }),
  })
  .openapi('RemovedImage');
export type RemovedImageView = z.infer<typeof removedImageSchema>;

const isoOf = (us: number): string => new Date(us / 1000).toISOString();
const isoOrNull = (us: number | null): string | null => (us === null ? null : isoOf(us));
const nameOf = ({ host, repository }: ConvertJob['repository']): string => `${host}/${repository}`;

export function viewJob({ repository, createdUs, startedUs, endedUs, ...job }: ConvertJob): JobView {
  return {
    ...job,
    repository: nameOf(repository),
    createdAt: isoOf(createdUs),
    startTime: isoOrNull(startedUs),
    endTime: isoOrNull(endedUs),
  };
}

export function viewRule({ repository, createdUs, enabledUs, ...rule }: ConvertRule): RuleView {
  return { ...rule, repository: nameOf(repository), createdAt: isoOf(createdUs), enabledAt: isoOf(enabledUs) };
}

export function viewNotification({ secretFile, createdUs, ...notification }: Notification): NotificationView {
  return { ...notification, isSigned: secretFile !== null, createdAt: isoOf(createdUs) };
}

export function viewDelivery({ nextUs, createdUs, endedUs, ...delivery }: Delivery): DeliveryView {
  const nextAttemptAt = delivery.state === 'WAITING' ? isoOf(nextUs) : null;
  return { ...delivery, nextAttemptAt, createdAt: isoOf(createdUs), endedAt: isoOrNull(endedUs) };
}
