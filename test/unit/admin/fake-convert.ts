/** A conversion service with fixed answers, for tests of the API and of obdctl. */
import { AppError } from '../../../plugin/base/errors.ts';
import { type ConvertJob, type ConvertService, convertRequestSchema, type NewRule } from '../../../plugin/convert/service.ts';

const US = Date.parse('2026-01-31T12:00:00.000Z') * 1000;

export const JOB: ConvertJob = {
  id: 7,
  repository: { host: 'registry.example', repository: 'team/app' },
  tag: '1',
  targetTag: '1_containerd_accelerated',
  sourceDigest: null,
  targetDigest: null,
  request: convertRequestSchema.parse({}),
  trigger: 'manual',
  state: 'BUILDING',
  failure: null,
  attempts: 1,
  progress: {
    imagesTotal: 1,
    imagesDone: 0,
    layersTotal: 4,
    layersDone: 1,
    layersReused: 0,
    sourceBytes: 1000,
    readBytes: 500,
    convertedBytes: 300,
    uploadedBytes: 200,
  },
  createdUs: US,
  startedUs: US,
  endedUs: null,
  measures: null,
};
export const DONE: ConvertJob = {
  ...JOB,
  state: 'SUCCESS',
  targetDigest: `sha256:${'1'.repeat(64)}`,
  endedUs: US + 2_000_000,
  measures: { sourceBytes: 1000, resultBytes: 1200, elapsedMs: 1500 },
};

const TOTALS = { count: 3, sourceBytes: 3000, resultBytes: 3300, elapsedMs: 4500, overBudget: { size: 1, time: 0 } };

const ruleOf = (rule: NewRule) => ({
  ...{ id: 1, repository: rule.repository, isEnabled: rule.isEnabled, request: rule.request, filter: rule.filter },
  detection: rule.detection ?? ('poll' as const),
  hasBaseline: false,
  createdUs: US,
  enabledUs: US,
});

export function fakeConvert(overrides: Partial<ConvertService> = {}): ConvertService {
  const gone = (id: number): AppError =>
    new AppError('NotFound', { op: 'find', subject: `job ${id}`, what: 'there is no such conversion' });
  const isOne = (id: number): void => {
    if (id !== 1) throw gone(id);
  };
  const isJob = (id: number): void => {
    if (id !== JOB.id) throw gone(id);
  };
  return {
    convert: (reference, request) => ({ ...JOB, tag: reference.split(':').at(-1)!, request }),
    job: (id) => {
      isJob(id);
      return JOB;
    },
    jobs: ({ limit }) => [JOB, { ...DONE, id: 6 }].slice(0, limit),
    cancel: async (id) => {
      isJob(id);
      return { ...JOB, state: 'FAILED', failure: { code: 'Canceled', message: 'convert x: canceled by request' } };
    },
    watch: (id) => {
      isJob(id);
      return (async function* () {
        yield JOB;
        yield DONE;
      })();
    },
    log: (id, after) => {
      isJob(id);
      return after > 0 ? [] : [{ lineNumber: 1, atUs: US, message: 'asked for by hand' }];
    },
    addRule: ruleOf,
    rule: () => {
      throw gone(1);
    },
    rules: () => [],
    changeRule: () => {
      throw gone(1);
    },
    removeRule: isOne,
    addNotification: ({ name, url, filter, repository, secretFile }) => ({
      ...{ id: 1, name, url, filter, createdUs: US },
      repository: repository ?? null,
      secretFile: secretFile ?? null,
    }),
    notifications: () => [],
    removeNotification: isOne,
    deliveries: () => [],
    removeImage: async (reference) => ({
      ...{
        repository: 'registry.example/team/app',
        digest: `sha256:${'2'.repeat(64)}`,
        kind: 'full',
        manifests: [`sha256:${'2'.repeat(64)}`],
      },
      tags: [reference.split(':').at(-1)!],
    }),
    statistics: () => ({ jobs: { PENDING: 1, BUILDING: 1, SUCCESS: 3, FAILED: 0 }, byMode: { full: TOTALS, 'index-only': TOTALS } }),
    webhookPort: undefined,
    complaint: undefined,
    stop: async () => {},
    ...overrides,
  };
}
