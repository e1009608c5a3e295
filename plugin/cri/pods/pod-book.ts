/**
 * The pods that pull here: what their annotations said when they were first seen, which is never read again (R140), and their images as far as
 * they are known. Kept in the database, so that a restart changes no decision.
 */
import { LRUCache } from 'lru-cache';
import { z } from 'zod';
import type { PodImageRow, PodRow, PodStore } from '../../../db/pod-store.ts';
import type { Clock } from '../../base/clock.ts';
import { isImageReference } from '../../cache/service.ts';
import { formatReference, parseReference } from '../../registry/reference.ts';
import type { PodSandbox } from '../wire/messages.ts';
import { type PodRules, readAnnotations } from './annotations.ts';
import type { PodEvents } from './pod-events.ts';
import { MAX_POD_IMAGES, type PodFacts, type PodFactsFinder } from './pod-facts.ts';

/** Pods that are remembered: a node runs some hundred at once; the rest is for whoever asks afterwards. */
const MAX_PODS = 5_000;
/** Facts of pods that are pulling now. */
const MAX_FACTS = 500;
const FACTS_TTL_MS = 60_000;
const MAX_EXTRA_GIB = 5_000;
/** Annotations of one pod that are complained of. */
const MAX_WARNINGS = 10;

const storedRulesSchema = z.object({
  pin: z.string().nullable(),
  isAutomatic: z.boolean(),
  isPerfectMatch: z.boolean(),
  matchCount: z.number().nullable(),
  extraEphemeralGib: z.number(),
  /** False: the pod does not have the configured label, and is left alone. */
  isSelected: z.boolean(),
});
export type StoredRules = z.infer<typeof storedRulesSchema>;

/** A pod as it is known now. */
export interface KnownPod {
  readonly sandbox: PodSandbox;
  readonly rules: StoredRules;
  /** References, the one that is pulled now included. */
  readonly images: readonly string[];
  readonly imagesFrom: PodRow['imagesFrom'];
  readonly facts: PodFacts | undefined;
  /** Why there are no facts. */
  readonly factsReason: string;
}

export interface PodBookOptions {
  readonly store: PodStore;
  readonly facts: PodFactsFinder;
  readonly events: PodEvents;
  readonly clock: Clock;
  /** GiB that every pod has; what it declares comes on top (R93). */
  readonly baseEphemeralGib: number;
  /** `key=value`; undefined: all pods. */
  readonly selector: string | undefined;
}

export class PodBook {
  private readonly options: PodBookOptions;
  private readonly facts: LRUCache<string, PodFacts>;

  constructor(options: PodBookOptions) {
    this.options = options;
    this.facts = new LRUCache({ max: MAX_FACTS, ttl: FACTS_TTL_MS });
  }

  /** Enters a pod that pulls an image, or adds the image to it. Rejects only with the signal's reason. */
  async see(sandbox: PodSandbox, image: string, signal: AbortSignal): Promise<KnownPod> {
    const { facts, reason } = await this.factsOf(sandbox, signal);
    const { store } = this.options;
    // From here on without a pause, so that pulls at once do not lose each other's images.
    const row = store.get(sandbox.uid);
    const rules = row === undefined ? this.firstRules(sandbox, facts) : storedRulesSchema.parse(JSON.parse(row.rules));
    const before = row === undefined ? [] : (JSON.parse(row.images) as string[]);
    const images = distinctImages([...(facts?.images ?? []), ...before, image]).slice(0, MAX_POD_IMAGES);
    const imagesFrom = facts?.from ?? row?.imagesFrom ?? 'pulls';
    const nowUs = this.options.clock.nowMs() * 1000;
    const next: PodRow = {
      uid: sandbox.uid,
      namespace: sandbox.namespace,
      name: sandbox.name,
      rules: JSON.stringify(rules),
      images: JSON.stringify(images),
      imagesFrom,
      firstSeenUs: row?.firstSeenUs ?? nowUs,
      lastSeenUs: nowUs,
    };
    store.put(next, MAX_PODS);
    return { sandbox, rules, images, imagesFrom, facts, factsReason: reason };
  }

  decision(uid: string, image: string): PodImageRow | undefined {
    return this.options.store.image(uid, image);
  }

  /** Writes a decision, or what became of it. The first time of a decision stays, unless it was a refusal. */
  record(
    uid: string,
    image: string,
    to: Pick<PodImageRow, 'decision' | 'cacheId' | 'digest' | 'outcome'> & { reasons: readonly string[] },
  ): void {
    const nowUs = this.options.clock.nowMs() * 1000;
    const known = this.options.store.image(uid, image);
    const decidedUs = known === undefined || known.decision === 'refused' ? nowUs : known.decidedUs;
    this.options.store.putImage({ ...to, uid, image, reasons: JSON.stringify(to.reasons), decidedUs, updatedUs: nowUs });
  }

  private async factsOf(sandbox: PodSandbox, signal: AbortSignal): Promise<{ facts: PodFacts | undefined; reason: string }> {
    const known = this.facts.get(sandbox.uid);
    if (known !== undefined) return { facts: known, reason: '' };
    const found = await this.options.facts.find(sandbox, signal);
    if (found.facts !== undefined) this.facts.set(sandbox.uid, found.facts);
    return found;
  }

  private firstRules(sandbox: PodSandbox, facts: PodFacts | undefined): StoredRules {
    const { rules, warnings } = readAnnotations(sandbox.annotations);
    const isSelected = this.isSelected(sandbox);
    if (isSelected) {
      for (const { annotation, message } of warnings.slice(0, MAX_WARNINGS)) {
        this.options.events.add('pod-annotation-ignored', `${sandbox.namespace}/${sandbox.name}`, `annotation ${annotation}: ${message}`);
      }
    }
    // A pod may have what its containers may write in all, if that is more than what it declared for itself.
    const byLimit = Math.max((facts?.ephemeralLimitGib ?? 0) - this.options.baseEphemeralGib, 0);
    const extraEphemeralGib = Math.min(Math.max(rules.extraEphemeralGib, byLimit), MAX_EXTRA_GIB);
    return { ...(isSelected ? rules : NO_RULES), extraEphemeralGib, isSelected };
  }

  private isSelected({ labels }: PodSandbox): boolean {
    const { selector } = this.options;
    if (selector === undefined) return true;
    const equals = selector.indexOf('=');
    return labels[selector.slice(0, equals)] === selector.slice(equals + 1);
  }
}

/**
 * Each image once, by the last of its names: kubelet pulls `app:latest` where the pod says `app`, and that is one image. A name that is none
 * fails its own pull, and no other image of the pod.
 */
function distinctImages(names: readonly string[]): string[] {
  const byName = new Map(names.filter(isImageReference).map((name) => [formatReference(parseReference(name)), name]));
  return [...byName.values()];
}

const NO_RULES: Omit<PodRules, 'extraEphemeralGib'> = { pin: null, isAutomatic: false, isPerfectMatch: false, matchCount: null };

/** The rules of a stored pod, for people. */
export function rulesOf(row: PodRow): StoredRules {
  return storedRulesSchema.parse(JSON.parse(row.rules));
}
