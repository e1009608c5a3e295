/**
 * Header and trailer of LSMT files: the same 390-byte structure in a 4096-byte block. See FORMAT.md, table 1.
 */
import { MAX_DEVICE_BYTES } from '../../base/limits.ts';
import { SECTOR_BYTES } from '../../base/units.ts';
import { badField, hasBytes, readText, readU32, readU64, writeU32, writeU64 } from './bytes.ts';

export const LSMT_BLOCK_BYTES = 4096;
export const LSMT_RECORD_BYTES = 16;
/** Records of a read-only layer, padding included; the reference's own limit, so that what we accept it accepts. */
export const MAX_LAYER_RECORDS = 1_000_000;

const MAGIC = Uint8Array.from([
  0x4c, 0x53, 0x4d, 0x54, 0x00, 0x01, 0x02, 0x00, 0x65, 0x7e, 0x63, 0xd2, 0x94, 0x44, 0x08, 0x4c, 0xa2, 0xd2, 0xc8, 0xec, 0x4f, 0xcf, 0xae,
  0x8a,
]);
const STRUCT_BYTES = 390;
const USER_TAG_BYTES = 256;
const AT = { size: 24, flags: 28, indexOffset: 32, indexSize: 40, virtualSize: 48, uuid: 56, parentUuid: 93, version: 132, userTag: 134 };

export const LSMT_FLAG = { header: 1, dataFile: 2, sealed: 4, sparse: 16 } as const;
export const NULL_UUID = '00000000-0000-0000-0000-000000000000';

export interface LsmtHeader {
  /** Bits of {@link LSMT_FLAG}; unknown ones are dropped. */
  flags: number;
  indexOffsetBytes: number;
  /** Records, padding included. */
  indexCount: number;
  /** 0: take the size from below. */
  virtualSizeBytes: number;
  uuid: string;
  parentUuid: string;
  /** Up to 256 bytes, trailing NULs removed. */
  userTag: Uint8Array;
}

/** True when the block begins with both LSMT magics. */
export function isLsmt(block: Uint8Array): boolean {
  return hasBytes(block, 0, MAGIC);
}

function parseBlock(block: Uint8Array, subject: string, what: 'header' | 'trailer', atBytes: number): LsmtHeader {
  const op = 'open lsmt layer';
  if (block.length < LSMT_BLOCK_BYTES) {
    throw badField({
      op,
      subject,
      field: `${what} size`,
      found: block.length,
      expected: `${LSMT_BLOCK_BYTES} bytes`,
      offsetBytes: atBytes,
    });
  }
  if (!isLsmt(block)) {
    throw badField({ op, subject, field: `${what} magic`, found: 'something else', expected: 'LSMT', offsetBytes: atBytes });
  }
  let tagEnd = AT.userTag + USER_TAG_BYTES;
  while (tagEnd > AT.userTag && block[tagEnd - 1] === 0) tagEnd--;
  const known = LSMT_FLAG.header | LSMT_FLAG.dataFile | LSMT_FLAG.sealed | LSMT_FLAG.sparse;
  return {
    flags: readU32(block, AT.flags) & known,
    indexOffsetBytes: readU64(block, AT.indexOffset),
    indexCount: readU64(block, AT.indexSize),
    virtualSizeBytes: readU64(block, AT.virtualSize),
    uuid: readText(block, AT.uuid, 36),
    parentUuid: readText(block, AT.parentUuid, 36),
    userTag: Uint8Array.from(block.subarray(AT.userTag, tagEnd)),
  };
}

/** Parses the first block of a file and checks that it is a header of the wanted kind. Throws DataLoss. */
export function parseLsmtHeader(block: Uint8Array, subject: string, kind: 'data' | 'index' = 'data'): LsmtHeader {
  const header = parseBlock(block, subject, 'header', 0);
  const isData = (header.flags & LSMT_FLAG.dataFile) !== 0;
  if ((header.flags & LSMT_FLAG.header) === 0 || isData !== (kind === 'data')) {
    throw badField({
      op: 'open lsmt layer',
      subject,
      field: 'header flags',
      found: `0x${header.flags.toString(16)}`,
      expected: `the header bit, and the data-file bit ${kind === 'data' ? 'set' : 'clear'}`,
      offsetBytes: AT.flags,
    });
  }
  return header;
}

/**
 * Parses the last block of a committed or sealed layer file of `fileSizeBytes` and checks everything that can be checked without the
 * index: kind, where the index lies, how large the device is. Throws DataLoss. After it, reading `indexCount` records at
 * `indexOffsetBytes` stays inside the file, and their number is bounded by {@link MAX_LAYER_RECORDS}.
 */
export function parseLsmtTrailer(block: Uint8Array, fileSizeBytes: number, subject: string): LsmtHeader {
  const op = 'open lsmt layer';
  const at = fileSizeBytes - LSMT_BLOCK_BYTES;
  const trailer = parseBlock(block, subject, 'trailer', at);
  const wanted = LSMT_FLAG.dataFile | LSMT_FLAG.sealed;
  if ((trailer.flags & (wanted | LSMT_FLAG.header)) !== wanted) {
    const found = `0x${trailer.flags.toString(16)}`;
    throw badField({ op, subject, field: 'trailer flags', found, expected: 'data file, sealed, not header', offsetBytes: at + AT.flags });
  }
  const { indexCount, indexOffsetBytes, virtualSizeBytes } = trailer;
  if (indexCount > MAX_LAYER_RECORDS) {
    const expected = `at most ${MAX_LAYER_RECORDS} records`;
    throw badField({ op, subject, field: 'index_size', found: indexCount, expected, offsetBytes: at + AT.indexSize });
  }
  if (
    indexOffsetBytes < LSMT_BLOCK_BYTES ||
    indexOffsetBytes % SECTOR_BYTES !== 0 ||
    indexOffsetBytes + indexCount * LSMT_RECORD_BYTES > at
  ) {
    const expected = `a multiple of 512 from 4096 on, with ${indexCount} records before the trailer at ${at}`;
    throw badField({ op, subject, field: 'index_offset', found: indexOffsetBytes, expected, offsetBytes: at + AT.indexOffset });
  }
  if (virtualSizeBytes % SECTOR_BYTES !== 0 || virtualSizeBytes > MAX_DEVICE_BYTES) {
    const expected = `a multiple of 512, at most ${MAX_DEVICE_BYTES}`;
    throw badField({ op, subject, field: 'virtual_size', found: virtualSizeBytes, expected, offsetBytes: at + AT.virtualSize });
  }
  return trailer;
}

export interface LsmtIdentity {
  virtualSizeBytes: number;
  /** Text form in any case; absent: the all-zero UUID. */
  uuid?: string | undefined;
  parentUuid?: string | undefined;
  userTag?: Uint8Array | undefined;
}

/** Builds a header or trailer block. Throws nothing; a tag longer than 256 bytes is cut, as the reference does. */
export function encodeLsmtBlock(
  identity: LsmtIdentity,
  fields: { flags: number; indexOffsetBytes: number; indexCount: number },
): Uint8Array {
  const block = new Uint8Array(LSMT_BLOCK_BYTES);
  block.set(MAGIC);
  writeU32(block, AT.size, STRUCT_BYTES);
  writeU32(block, AT.flags, fields.flags);
  writeU64(block, AT.indexOffset, fields.indexOffsetBytes);
  writeU64(block, AT.indexSize, fields.indexCount);
  writeU64(block, AT.virtualSize, identity.virtualSizeBytes);
  block.set(asciiOf((identity.uuid ?? NULL_UUID).toUpperCase(), 36), AT.uuid);
  block.set(asciiOf((identity.parentUuid ?? NULL_UUID).toUpperCase(), 36), AT.parentUuid);
  block[AT.version] = 1;
  block[AT.version + 1] = 1;
  if (identity.userTag !== undefined) block.set(identity.userTag.subarray(0, USER_TAG_BYTES), AT.userTag);
  return block;
}

function asciiOf(text: string, size: number): Uint8Array {
  return Uint8Array.from(text.slice(0, size), (c) => c.charCodeAt(0) & 0x7f);
}
