/** Which mirror sent each unit of a blob, so that bytes that prove wrong, perhaps much later, are fetched again from another one. Ours. */

/** One byte a unit tells them apart; a blob has some dozen at most. */
const MIRRORS_MAX = 256;

export class UnitMirrors {
  private readonly unitCount: number;
  private readonly names: string[] = [];
  /** Index into `names`; made when a second mirror sends something, since before that there is nothing to tell apart. */
  private units: Uint8Array | undefined;

  constructor(unitCount: number) {
    this.unitCount = unitCount;
  }

  /** `mirror` sent units [firstUnit, endUnit). */
  set(firstUnit: number, endUnit: number, mirror: string): void {
    let index = this.names.indexOf(mirror);
    if (index === -1) {
      if (this.names.length === MIRRORS_MAX) return;
      index = this.names.push(mirror) - 1;
    }
    if (this.names.length === 1) return;
    this.units ??= new Uint8Array(this.unitCount);
    this.units.fill(index, firstUnit, endUnit);
  }

  /** Every mirror that sent something. */
  all(): readonly string[] {
    return this.names;
  }

  /** The mirrors that sent units [firstUnit, endUnit). Units from before this process are taken for the first mirror's. */
  of(firstUnit: number, endUnit: number): string[] {
    if (this.units === undefined) return [...this.names];
    const indexes = new Set(this.units.subarray(firstUnit, endUnit));
    return [...indexes].flatMap((index) => this.names[index] ?? []);
  }
}
