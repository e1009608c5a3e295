/** What the random-access gzip reader needs from an inflate library. Implemented in plugin/kernel/inflate.ts. */
export interface RawInflater {
  /**
   * Inflates raw deflate data from a block boundary until `output` is full, the deflate stream ends or the input is used up.
   * `bits` (0..7) bits of `bitsValue` come before the first byte of `input`; `dictionary` is the preceding output.
   * `produced` is -1 when the data is not valid deflate.
   */
  inflate(
    input: Uint8Array,
    start: { bits: number; bitsValue: number; dictionary: Uint8Array },
    output: Uint8Array,
  ): { produced: number; ended: boolean };
}
