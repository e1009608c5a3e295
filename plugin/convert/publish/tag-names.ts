/** Names of converted images: only the tag differs from the original's. Source: R5–R8, S0. */
import { AppError } from '../../base/errors.ts';
import { isTag } from '../../registry/reference.ts';

/** What a conversion makes. */
export type Mode = 'full' | 'index-only';
/** What shall run the result. */
export type Runtime = 'containerd' | 'docker-and-containerd';

const SUFFIX_BOTH = '_accelerated';
const SUFFIX_CONTAINERD = '_containerd_accelerated';

/** The tag of the converted image. Throws InvalidArgument when it would be too long, or when the tag is that of a converted image. */
export function acceleratedTag(tag: string, mode: Mode, runtime: Runtime): string {
  const refuse = (what: string): AppError => new AppError('InvalidArgument', { op: 'name the converted image of', subject: tag, what });
  if (isOutputTag(tag)) throw refuse('it is the tag of a converted image already');
  const name = `${tag}${mode === 'full' && runtime === 'containerd' ? SUFFIX_CONTAINERD : SUFFIX_BOTH}`;
  if (!isTag(name)) throw refuse(`${name.length} characters are too long for a tag`);
  return name;
}

const REFERRERS_TAG = /^sha256-[0-9a-f]{64}(?:\.[a-z]+)?$/;

/** True for tags that conversion and its tools write: never an input (R28). The second form lists referrers or carries signatures. */
export function isOutputTag(tag: string): boolean {
  return isResultTag(tag) || REFERRERS_TAG.test(tag);
}

/** True for tags of converted images. */
export function isResultTag(tag: string): boolean {
  return tag.endsWith(SUFFIX_BOTH);
}

/** What the result of a conversion is meant for, by its tag; any other tag is taken for the narrower one. */
export function runtimeOfTag(tag: string): Runtime {
  return tag.endsWith(SUFFIX_BOTH) && !tag.endsWith(SUFFIX_CONTAINERD) ? 'docker-and-containerd' : 'containerd';
}

/** The tags under which results of a tag may stand. */
export function twinTags(tag: string): string[] {
  return [`${tag}${SUFFIX_CONTAINERD}`, `${tag}${SUFFIX_BOTH}`];
}
