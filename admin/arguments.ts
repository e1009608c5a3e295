/** Words of the command line as values. What cannot be read is wrong usage, and says what can. */
import { InvalidArgumentError } from 'commander';
import { parseSize } from '../plugin/base/config/option.ts';

/** Whole numbers only; ranges are the service's business. */
export function whole(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError('It is not a whole number.');
  return Number(text);
}

/** For options that may be given several times. Each takes one word, so that what follows is still an argument. */
export const repeated = (text: string, former: readonly string[] | undefined): string[] => [...(former ?? []), text];

/** `20GiB`, `1073741824`: bytes. */
export function sizeOf(text: string): number {
  const bytes = /^\d{1,15}$/.test(text) ? Number(text) : parseSize(text);
  if (bytes !== undefined && bytes > 0) return bytes;
  throw new InvalidArgumentError('It is no size: bytes, or text such as 20GiB.');
}

const AGO_MS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const;

/** A time, or a time ago, as the API takes it. */
export function timeOf(text: string): string {
  const [, count, unit] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  const atMs = count === undefined ? Date.parse(text) : Date.now() - Number(count) * AGO_MS[unit as keyof typeof AGO_MS];
  if (!Number.isNaN(atMs)) return new Date(atMs).toISOString();
  throw new InvalidArgumentError('It is no time: ISO 8601 such as 2026-01-31T12:00:00Z, or so long ago such as 30m, 12h, 7d.');
}
