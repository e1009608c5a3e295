/** Pieces that route definitions share. */
import { z } from '@hono/zod-openapi';
import { AppError } from '../plugin/base/errors.ts';
import { errorSchema } from './errors.ts';
import { PAGE_ROWS_DEFAULT, PAGE_ROWS_MAX } from './limits.ts';

export const json = <T extends z.ZodType>(schema: T, description: string) => ({ description, content: { 'application/json': { schema } } });
export const body = <T extends z.ZodType>(schema: T) => ({ required: true, content: { 'application/json': { schema } } });
export const failure = json(errorSchema, 'What failed, on what, and the limit or expectation');
export const eventStream = (description: string) => ({ description, content: { 'text/event-stream': { schema: z.string() } } });

/** For routes that take no parameter: a misspelt one, or one of another route, is refused and not passed over. */
export const noQuery = z.strictObject({});

/** A whole number of a path or query: decimal digits and nothing else, where z.coerce would take `0x7`, `1e3` and nothing at all. */
export const decimal = (min: number, max?: number) =>
  z
    .string()
    .regex(/^\d{1,15}$/, 'is not a whole number')
    .transform(Number)
    .pipe(max === undefined ? z.number().min(min) : z.number().min(min).max(max))
    .openapi({ type: 'integer', minimum: min, ...(max === undefined ? {} : { maximum: max }) });

export const limitQuery = decimal(1, PAGE_ROWS_MAX)
  .default(PAGE_ROWS_DEFAULT)
  .openapi({ description: `rows per page, 1 to ${PAGE_ROWS_MAX}` });

/** What a list answers besides its rows: the key to continue behind, when there is more. */
export const nextKey = z.string().nullable().openapi({ description: '`after` of the next page; null on the last one' });

/** `images.0: is not an image reference; …` */
export function issuesText(error: { issues: readonly { path: readonly PropertyKey[]; message: string }[] }): string {
  return error.issues
    .map((issue) => `${issue.path.map(String).join('.') || 'body'}: ${issue.message}`)
    .join('; ')
    .slice(0, 1000);
}

/** Streams that are open at once, bounded. */
export class Watchers {
  private readonly max: number;
  private open = 0;

  constructor(max: number) {
    this.max = max;
  }

  /** Takes a place; call what is returned when the stream has ended. Throws ResourceExhausted. */
  enter(subject: string): () => void {
    if (this.open >= this.max) {
      const what = `${this.max} callers watch already`;
      throw new AppError('ResourceExhausted', { op: 'watch', subject, what, retryAfterMs: 10_000 });
    }
    this.open += 1;
    let isIn = true;
    return () => {
      if (isIn) this.open -= 1;
      isIn = false;
    };
  }
}
