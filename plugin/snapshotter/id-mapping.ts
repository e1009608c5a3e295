/** User-namespace mappings as containerd writes them into labels: `container:host:size`, several joined by commas. */
import { AppError } from '../base/errors.ts';

const ENTRY = /^([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})$/;

/** The kernel takes 340 lines; nobody needs more. */
const MAX_ENTRIES = 340;

/** The host id that container id 0 maps to. Throws InvalidArgument naming `label`. */
export function hostRootOf(mapping: string, label: string): number {
  const entries = mapping.split(',');
  let root: number | undefined;
  for (const entry of entries) {
    const match = ENTRY.exec(entry.trim());
    if (match === null || entries.length > MAX_ENTRIES) {
      throw new AppError('InvalidArgument', {
        op: 'read label',
        subject: label,
        what: `${JSON.stringify(mapping.slice(0, 100))} is not container:host:size`,
      });
    }
    if (match[1] === '0') root = Number(match[2]);
  }
  if (root === undefined) throw new AppError('InvalidArgument', { op: 'read label', subject: label, what: 'container id 0 is not mapped' });
  return root;
}
