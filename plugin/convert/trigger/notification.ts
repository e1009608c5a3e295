/**
 * The notifications that docker-registry (distribution) sends to webhook endpoints. Source: distribution 2.8, notifications.md: an envelope
 * of events; a push of a manifest has its repository and digest, and its tag when it was pushed by one.
 */
import { z } from 'zod';
import { type Digest, isDigest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { isRegistryHost, isRepositoryPath, isTag } from '../../registry/reference.ts';

/** One envelope; the registry puts a single event in each by default. */
export const MAX_EVENTS = 1000;
/** An event takes about 1 KiB. */
export const MAX_ENVELOPE_BYTES = 2 * 1024 * 1024;

/** A manifest that was pushed by tag. */
export interface PushEvent {
  /** As the pusher called the registry: may be another name than the rule's, and is empty when it is none at all. */
  host: string;
  repository: string;
  tag: string;
  digest: Digest;
  atMs: number;
}

const envelopeSchema = z.object({
  events: z
    .array(
      z.object({
        action: z.string(),
        timestamp: z.string().optional(),
        target: z
          .object({ repository: z.string(), digest: z.unknown(), tag: z.string().optional() })
          .partial({ repository: true, digest: true }),
        request: z.object({ host: z.string().optional() }).optional(),
      }),
    )
    .max(MAX_EVENTS),
});

/** The pushes by tag in an envelope; other events are passed over. Throws InvalidArgument for what is no envelope. */
export function parsePushEvents(text: string): PushEvent[] {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new AppError('InvalidArgument', { op: 'read', subject: 'notification', what: 'it is not JSON', cause });
  }
  const parsed = envelopeSchema.safeParse(json);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw new AppError('InvalidArgument', { op: 'read', subject: 'notification', what: `${issue?.path.join('.')}: ${issue?.message}` });
  }
  const pushes: PushEvent[] = [];
  for (const { action, target, timestamp, request } of parsed.data.events) {
    const { repository, digest, tag } = target;
    if (action !== 'push' || tag === undefined || !isTag(tag) || !isDigest(digest)) continue;
    if (repository === undefined || !isRepositoryPath(repository)) continue;
    const atMs = Date.parse(timestamp ?? '');
    const host = request?.host ?? '';
    pushes.push({
      host: isRegistryHost(host) ? host : '',
      repository,
      tag,
      digest,
      atMs: Number.isNaN(atMs) ? Number.POSITIVE_INFINITY : atMs,
    });
  }
  return pushes;
}
