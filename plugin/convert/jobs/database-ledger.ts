/** The book of converted layers in the control plane's database, as one publication sees it. Ours. */
import { z } from 'zod';
import type { ConvertedLayerRow, ConvertLayerStore } from '../../../db/convert-layer-store.ts';
import type { Clock } from '../../base/clock.ts';
import type { Digest } from '../../base/digest.ts';
import type { Repository } from '../../registry/reference.ts';
import { type KnownLayer, knownLayerSchema, type LayerEntry, type LayerLedger } from '../publish/ledger.ts';

const annotationsSchema = z.record(z.string(), z.string());

export class DatabaseLedger implements LayerLedger {
  private readonly store: ConvertLayerStore;
  private readonly repository: Repository;
  private readonly options: string;
  private readonly clock: Clock;

  constructor(store: ConvertLayerStore, repository: Repository, options: string, clock: Clock) {
    this.store = store;
    this.repository = repository;
    this.options = options;
    this.clock = clock;
  }

  async find(chainIds: readonly Digest[]): Promise<readonly (LayerEntry | undefined)[]> {
    return chainIds.map((chainId) => this.entry(chainId));
  }

  async record(chainId: Digest, { digest, sizeBytes, annotations }: KnownLayer): Promise<void> {
    const { host, repository } = this.repository;
    const createdUs = this.clock.nowMs() * 1000;
    this.store.put({
      host,
      repository,
      chainId,
      options: this.options,
      digest,
      sizeBytes,
      annotations: JSON.stringify(annotations),
      createdUs,
    });
  }

  async forget(chainId: Digest): Promise<void> {
    const { host, repository } = this.repository;
    this.store.remove(host, repository, chainId, this.options);
  }

  private entry(chainId: Digest): LayerEntry | undefined {
    const { host, repository } = this.repository;
    const own = this.store.get(host, repository, chainId, this.options);
    const others = this.store.elsewhere(host, repository, chainId, this.options);
    const row = own ?? others[0];
    if (row === undefined) return undefined;
    // Equal chains and options give equal layers; a row that says otherwise is of an older builder's making and no help here.
    const same = others.filter((other) => other.digest === row.digest);
    return { ...layerOf(row), repositories: [...(own === undefined ? [] : [own.repository]), ...same.map((other) => other.repository)] };
  }
}

function layerOf({ digest, sizeBytes, annotations }: ConvertedLayerRow): KnownLayer {
  return knownLayerSchema.parse({ digest, sizeBytes, annotations: annotationsSchema.parse(JSON.parse(annotations)) });
}
