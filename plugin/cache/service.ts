/** The public door of image caches. */
export * from './requests.ts';
export * from './types.ts';
