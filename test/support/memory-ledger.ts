/** A ledger of converted layers in memory, as the control plane keeps it in its database. Ours. */
import type { Digest } from '../../plugin/base/digest.ts';
import type { KnownLayer, LayerEntry, LayerLedger } from '../../plugin/convert/publish/ledger.ts';

export class MemoryLedger {
  /** `repository chain` → layer. */
  readonly rows = new Map<string, KnownLayer>();

  /** The ledger as a publication into `repository` sees it. */
  of(repository: string): LayerLedger {
    return {
      find: async (chainIds) => chainIds.map((chainId) => this.entry(repository, chainId)),
      record: async (chainId, layer) => {
        this.rows.set(`${repository} ${chainId}`, layer);
      },
      forget: async (chainId) => {
        this.rows.delete(`${repository} ${chainId}`);
      },
    };
  }

  private entry(repository: string, chainId: Digest): LayerEntry | undefined {
    const found = [...this.rows].filter(([key]) => key.endsWith(` ${chainId}`));
    found.sort(([a], [b]) => Number(b.startsWith(`${repository} `)) - Number(a.startsWith(`${repository} `)));
    const [first] = found;
    return first === undefined ? undefined : { ...first[1], repositories: found.map(([key]) => key.split(' ')[0]!) };
  }
}
