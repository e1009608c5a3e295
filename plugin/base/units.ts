/** Units that formats and limits are written in. */

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;

/** The granularity of LSMT records and of tar. */
export const SECTOR_BYTES = 512;

/** Rounds up to a multiple of `step` (a positive safe integer). */
export function roundUp(value: number, step: number): number {
  return Math.ceil(value / step) * step;
}

/** `1536` → `1.5 KiB`; for people, not for parsing. */
export function formatBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return unit === 0 ? `${bytes} B` : `${value.toFixed(value >= 100 ? 0 : 1)} ${units[unit]}`;
}
