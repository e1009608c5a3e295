/** One pod, decided for, as the admin API shows it. */
import { AppError } from '../../../plugin/base/errors.ts';
import type { PodService, PodView } from '../../../plugin/cri/service.ts';

export const POD: PodView = {
  uid: '5f0c9d4e-0000-4000-8000-000000000001',
  namespace: 'team',
  name: 'web-0',
  firstSeenAt: '2026-01-31T12:00:00.000Z',
  lastSeenAt: '2026-01-31T12:00:01.000Z',
  rules: {
    ...{ inForce: 'pin', pin: 'imc-00000000000000000001', isAutomatic: true, isPerfectMatch: false, matchCount: null },
    ...{ extraEphemeralGib: 20, isSelected: true },
  },
  images: ['registry.example/team/app:1'],
  imagesFrom: 'api-server',
  decisions: [
    {
      image: 'registry.example/team/app:1',
      decision: 'pinned-cache',
      imageCacheId: 'imc-00000000000000000001',
      digest: `sha256:${'a'.repeat(64)}`,
      outcome: 'cache',
      reasons: ['the pod pins one cache', 'the registry consents (with Secret team/acr-credential-a)'],
      decidedAt: '2026-01-31T12:00:00.000Z',
    },
  ],
};

export function fakePods(): PodService {
  return {
    pods: (limit) => [POD].slice(0, limit),
    explainPod(pod) {
      if (pod === POD.uid || pod === `${POD.namespace}/${POD.name}`) return POD;
      throw new AppError('NotFound', { op: 'explain pod', subject: pod, what: 'no image was pulled for it' });
    },
  };
}
