/**
 * Damaged devices as a base: reading the model back ends with a tree or an AppError; no loop, no crash, no read beyond the device.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isAppError } from '../../../../../plugin/base/errors.ts';
import { encodeSuperblock } from '../../../../../plugin/image/erofs/format.ts';
import { VOLUME_NAME } from '../../../../../plugin/image/erofs/layer-writer.ts';
import { restoreTree } from '../../../../../plugin/image/erofs/restore-tree.ts';
import { readFixture } from '../../../../support/fixtures.ts';
import { forTime } from '../../../../support/for-time.ts';
import { MemoryBuilder } from '../../convert/builder.ts';

const TIME_MS = Number(process.env.OBD_PROPERTY_MS ?? 4000);

describe('damaged devices', () => {
  it('end in a tree or a clear error', async () => {
    const builder = new MemoryBuilder();
    builder.addLayer(readFixture('oci/l1.tar'), 2048);
    builder.addLayer(readFixture('oci/l2.tar'), 2048);
    const device = builder.read(0, builder.deviceBytes);
    const blocks = [...builder.blocks.keys()].filter((block) => block === 0 || block * 4096 >= builder.deviceBytes - 400_000);
    let trees = 0;
    let errors = 0;
    const edit = fc.record({ block: fc.nat(), at: fc.nat(4095), byte: fc.oneof(fc.nat(255), fc.constantFrom(0, 1, 2, 0x2f, 0x40, 0xff)) });
    await forTime(
      TIME_MS,
      fc.property(fc.array(edit, { minLength: 1, maxLength: 5 }), (edits) => {
        const damaged = Buffer.from(device);
        for (const { block, at, byte } of edits) damaged[blocks[block % blocks.length]! * 4096 + at] = byte;
        encodeSuperblock(damaged, {
          rootNid: 36,
          inodeCount: 1,
          blockCount: damaged.length / 4096,
          uuid: Buffer.alloc(16),
          volumeName: VOLUME_NAME,
        });
        try {
          restoreTree((offset, length) => {
            expect(offset >= 0 && offset + length <= damaged.length).toBe(true);
            return Buffer.from(damaged.subarray(offset, offset + length));
          });
          trees += 1;
        } catch (error) {
          if (!isAppError(error)) throw error;
          errors += 1;
        }
      }),
      { isEnough: () => trees > 0 && errors > 0 },
    );
  }, 60_000);
});
