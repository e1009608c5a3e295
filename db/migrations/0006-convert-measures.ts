/** Conversion: how large each result is beside its original, and how long it took. */
export const CONVERT_MEASURES_0006 = `
ALTER TABLE convert_jobs ADD COLUMN source_bytes INTEGER;
ALTER TABLE convert_jobs ADD COLUMN result_bytes INTEGER;
ALTER TABLE convert_jobs ADD COLUMN elapsed_ms INTEGER;
`;
