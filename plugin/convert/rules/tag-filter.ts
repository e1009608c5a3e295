/** Which tags a rule or a notification is about. Kinds and limits: R23. */
import { z } from 'zod';
import { MAX_PATTERN_CHARS, TagPattern } from './tag-pattern.ts';

export const MAX_LISTED_TAGS = 10;

const tag = z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/, 'is not a tag');

export const tagFilterSchema = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('ALL') }),
  z.strictObject({ type: z.literal('TAG_LIST'), tags: z.array(tag).min(1).max(MAX_LISTED_TAGS) }),
  z.strictObject({ type: z.literal('TAG_REG_EXP'), expression: z.string().min(1).max(MAX_PATTERN_CHARS) }),
]);
export type TagFilter = z.infer<typeof tagFilterSchema>;

/** The filter as a test. Throws InvalidArgument for an expression that is not understood. */
export function compileTagFilter(filter: TagFilter): (tag: string) => boolean {
  if (filter.type === 'ALL') return () => true;
  if (filter.type === 'TAG_LIST') {
    const listed = new Set(filter.tags);
    return (name) => listed.has(name);
  }
  const pattern = new TagPattern(filter.expression);
  return (name) => pattern.test(name);
}
