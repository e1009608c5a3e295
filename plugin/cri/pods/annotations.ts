/**
 * What a pod's annotations ask of image caches. Source: requirements R142 – R147, R153, R159; the vendor's ImageCache pages. Pure, strict, and
 * never a reason to stop a pod: what cannot be understood counts as absent and is told.
 *
 *   pin ─ yes ─► that cache alone                        (R146)
 *    └ no ─► auto = "false" ─► no cache, none is made
 *             └ else ─► perfect match ─► every image     (R147)
 *                        └ else ─► match count ─► so many images
 *                                   └ else ─► the best match
 */

import { GIB } from '../../base/units.ts';
import { parseQuantity } from './quantity.ts';

const PREFIX = 'k8s.aliyun.com/';

/** The seven annotations; the aliases are older names, and the new name wins. */
export const ANNOTATIONS = {
  auto: `${PREFIX}eci-auto-imc`,
  autoAlias: `${PREFIX}eci-image-cache`,
  perfectMatch: `${PREFIX}imc-perfect-match`,
  matchCount: `${PREFIX}imc-match-count-request`,
  pin: `${PREFIX}eci-imc-id`,
  pinAlias: `${PREFIX}eci-image-snapshot-id`,
  extraEphemeral: `${PREFIX}eci-extra-ephemeral-storage`,
} as const;

/** Images of a pod that may be asked for; more containers than this are in no pod. */
const MAX_COUNT = 100;
/** GiB (R134). */
const MAX_EXTRA_GIB = 5_000;
/** Characters of a value that a message quotes. */
const QUOTED_CHARS = 60;

export interface PodRules {
  /** Id of the one cache that may be used. */
  readonly pin: string | null;
  /** Look for a cache that fits, and have one made when there is none. */
  readonly isAutomatic: boolean;
  /** Only a cache that holds every image. */
  readonly isPerfectMatch: boolean;
  /** Only a cache that holds at least so many images; set aside by the two above. */
  readonly matchCount: number | null;
  /** GiB of ephemeral storage beyond the 30 that every pod has. */
  readonly extraEphemeralGib: number;
}

export interface AnnotationWarning {
  readonly annotation: string;
  readonly message: string;
}

export interface ReadAnnotations {
  readonly rules: PodRules;
  readonly warnings: readonly AnnotationWarning[];
}

/** `"yes"` or, for long ones, `"yes… (1048576 characters)`. Control characters are escaped. */
function quoted(value: string): string {
  return value.length <= QUOTED_CHARS
    ? JSON.stringify(value)
    : `${JSON.stringify(value.slice(0, QUOTED_CHARS))}… (${value.length} characters)`;
}

function readBoolean(value: string): boolean | undefined {
  return value === 'true' ? true : value === 'false' ? false : undefined;
}

function readCount(value: string): number | undefined {
  const count = /^[0-9]{1,3}$/.test(value) ? Number(value) : 0;
  return count >= 1 && count <= MAX_COUNT ? count : undefined;
}

function readId(value: string): string | undefined {
  return /^[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,126}[A-Za-z0-9])?$/.test(value) ? value : undefined;
}

/** A Kubernetes quantity in whole GiB, rounded up; a number without a unit is GiB, as in the vendor's API. */
function readGib(value: string): number | undefined {
  const gib = /^[0-9]+$/.test(value) ? Number(value) : gibOf(parseQuantity(value));
  return gib !== undefined && gib <= MAX_EXTRA_GIB ? gib : undefined;
}

/** Whole GiB that hold so many bytes. */
export function gibOf(bytes: number | undefined): number | undefined {
  return bytes === undefined ? undefined : Math.ceil(bytes / GIB);
}

/** Reads a pod's annotations; all others are passed over. */
export function readAnnotations(annotations: Readonly<Record<string, string>>): ReadAnnotations {
  const warnings: AnnotationWarning[] = [];
  const read = <T>(annotation: string, parse: (value: string) => T | undefined, expected: string): T | undefined => {
    const value = Object.hasOwn(annotations, annotation) ? annotations[annotation] : undefined;
    if (value === undefined) return undefined;
    const parsed = parse(value);
    if (parsed === undefined) warnings.push({ annotation, message: `${quoted(value)} is not ${expected}; treated as absent` });
    return parsed;
  };
  const readEither = <T>(annotation: string, alias: string, parse: (value: string) => T | undefined, expected: string): T | undefined => {
    const value = read(annotation, parse, expected);
    const older = read(alias, parse, expected);
    if (value !== undefined && older !== undefined && value !== older) {
      warnings.push({ annotation: alias, message: `says otherwise than ${annotation}, which wins` });
    }
    return value ?? older;
  };
  const boolean = '"true" or "false"';
  const pin = readEither(ANNOTATIONS.pin, ANNOTATIONS.pinAlias, readId, 'an id of an image cache') ?? null;
  const isAutomatic = readEither(ANNOTATIONS.auto, ANNOTATIONS.autoAlias, readBoolean, boolean) ?? true;
  const isPerfectMatch = read(ANNOTATIONS.perfectMatch, readBoolean, boolean) ?? false;
  const matchCount = read(ANNOTATIONS.matchCount, readCount, `a number from 1 to ${MAX_COUNT}`) ?? null;
  const extraEphemeralGib = read(ANNOTATIONS.extraEphemeral, readGib, `a size up to ${MAX_EXTRA_GIB}Gi, such as "50Gi"`) ?? 0;
  return { rules: { pin, isAutomatic, isPerfectMatch, matchCount, extraEphemeralGib }, warnings };
}

/** Which of its rules a pod is under, after their order of precedence. */
export type RuleInForce = 'pin' | 'off' | 'perfect-match' | 'match-count' | 'best-match';

export function ruleInForce(rules: PodRules): RuleInForce {
  if (rules.pin !== null) return 'pin';
  if (!rules.isAutomatic) return 'off';
  if (rules.isPerfectMatch) return 'perfect-match';
  return rules.matchCount === null ? 'best-match' : 'match-count';
}
