/** Who is told of finished conversions, and of which. Sources: R21, R23, R24. */
import { isAbsolute } from 'node:path';
import { z } from 'zod';
import type { DeliveryRow, NotificationRow } from '../../../db/notification-store.ts';
import { type TagFilter, tagFilterSchema } from '../rules/tag-filter.ts';

/** Receivers of one node. */
export const MAX_NOTIFICATIONS = 50;

function isReceiver(text: string): boolean {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  return url !== undefined && /^https?:$/.test(url.protocol) && url.username === '' && url.password === '';
}

export const newNotificationSchema = z.strictObject({
  name: z.string().regex(/^[A-Za-z0-9_.-]{1,64}$/, 'is not 1 to 64 letters, digits, _ . -'),
  /** http or https; a name and password in it are refused. */
  url: z.string().max(2048).refine(isReceiver, 'is not an http or https address without a password'),
  /** Of target tags. */
  filter: tagFilterSchema.default({ type: 'TAG_REG_EXP', expression: '_accelerated$' }),
  /** `host`, `host/namespace` or `host/repository`: only what lies in it. */
  repository: z
    .string()
    .regex(/^[A-Za-z0-9.:[\]_/-]{1,512}$/, 'is not a registry, namespace or repository')
    .optional(),
  /** A file with the key of the signature (16 to 512 characters, mode 600). */
  secretFile: z.string().max(4095).refine(isAbsolute, 'is not an absolute path').optional(),
});
export type NewNotification = z.infer<typeof newNotificationSchema>;

export interface Notification {
  id: number;
  name: string;
  url: string;
  filter: TagFilter;
  repository: string | null;
  secretFile: string | null;
  createdUs: number;
}

export function notificationOf(row: NotificationRow): Notification {
  return { ...row, filter: tagFilterSchema.parse(JSON.parse(row.filter)) };
}

/** What is sent: one finished conversion. */
export const conversionEventSchema = z.strictObject({
  type: z.literal('BuildCompleted'),
  jobId: z.int(),
  repository: z.string(),
  sourceTag: z.string(),
  sourceDigest: z.string(),
  tag: z.string(),
  digest: z.string(),
  reference: z.string(),
  completedAt: z.string(),
});
export type ConversionEvent = z.infer<typeof conversionEventSchema>;

export interface Delivery {
  id: number;
  notificationId: number;
  event: ConversionEvent;
  state: 'WAITING' | 'DELIVERED' | 'FAILED';
  attempts: number;
  nextUs: number;
  lastResult: string | null;
  createdUs: number;
  endedUs: number | null;
}

export function deliveryOf(row: DeliveryRow): Delivery {
  return { ...row, event: conversionEventSchema.parse(JSON.parse(row.event)) };
}
