/** Content digests as OCI writes them: `sha256:<64 lower-case hex>`. Source: OCI image-spec, descriptor.md. */
import { createHash } from 'node:crypto';
import { AppError } from './errors.ts';

export type Digest = `sha256:${string}`;

const DIGEST = /^sha256:[0-9a-f]{64}$/;

/** True for a canonical SHA-256 digest; other algorithms are not accepted anywhere in the product. */
export function isDigest(text: unknown): text is Digest {
  return typeof text === 'string' && DIGEST.test(text);
}

/** Checks text that came from outside. Throws InvalidArgument naming `subject`. */
export function parseDigest(text: unknown, subject: string): Digest {
  if (isDigest(text)) return text;
  throw new AppError('InvalidArgument', {
    op: 'parse digest',
    subject,
    what: `${JSON.stringify(String(text).slice(0, 100))} is not sha256: and 64 hexadecimal digits`,
  });
}

export function sha256(bytes: Uint8Array | string): Digest {
  return `sha256:${createHash('sha256').update(bytes).digest('hex')}`;
}
