/** Headers of the pages that this API serves to browsers: nothing is loaded from elsewhere, nothing may frame them, nothing is kept. */
import { createHash } from 'node:crypto';

const hashOf = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

/** The only script and style that the browser may run are those whose hashes stand here. */
export function pageHeaders({ script, style }: { script?: string; style?: string } = {}): Record<string, string> {
  const policy = [
    "default-src 'none'",
    `script-src ${script === undefined ? "'none'" : hashOf(script)}`,
    `style-src ${style === undefined ? "'none'" : hashOf(style)}`,
    "connect-src 'self'",
    // An empty icon, so that browsers do not ask for one.
    'img-src data:',
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ];
  return {
    'content-security-policy': policy.join('; '),
    'x-content-type-options': 'nosniff',
    'referrer-policy': 'no-referrer',
    'cross-origin-opener-policy': 'same-origin',
    'cross-origin-resource-policy': 'same-origin',
    'cache-control': 'no-store',
  };
}
