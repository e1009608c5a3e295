/** The errors of the tar reader: always InvalidArgument or a close relative, always with the byte offset in the decompressed tar. */
import { AppError, type ErrorCode } from '../../base/errors.ts';

/** Text of a byte string for messages: printable ASCII as it is, the rest as `\xNN`, cut at 200 characters. */
export function printableBytes(bytes: string): string {
  let text = '';
  for (const char of bytes) {
    const code = char.charCodeAt(0);
    text += code >= 0x20 && code < 0x7f && code !== 0x5c ? char : `\\x${code.toString(16).padStart(2, '0')}`;
    if (text.length > 200) return `${text}…`;
  }
  return text;
}

/** An error about the entry or header at `offset` (bytes in the decompressed tar). `subject` is the entry's name, or `header`. */
export function tarError(offset: number, subject: string, what: string, code: ErrorCode = 'InvalidArgument'): AppError {
  return new AppError(code, {
    op: 'read tar entry',
    subject: subject === '' ? 'header' : printableBytes(subject),
    what: `at byte ${offset}: ${what}`,
    details: { offset },
  });
}
