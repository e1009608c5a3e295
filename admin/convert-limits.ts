/** Bounds of the conversion part of the admin API, with their reasons. */

/** Deleting an image looks at every tag of its repository first, thousands in large ones. */
export const REMOVE_DEADLINE_MS = 120_000;
