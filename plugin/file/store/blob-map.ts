/**
 * The presence map of a blob on disk: which 64 KiB units of `data` may be believed after a restart. Ours. Little-endian.
 *
 * A file of 512-byte sectors, because a sector is what a disk writes whole or not at all:
 *
 *   sector 0   header: 0 magic "OBDMAP\0\0" | 8 u32 version 1 | 12 u32 unit bytes | 16 u64 blob bytes | 24 digest (32)
 *              | 56 life (16, random, new with each map) | 508 u32 CRC-32 of bytes 0–507. Never rewritten.
 *   sector 1   zero, or: 0 magic "OBDWHOLE" | 508 u32 CRC. The blob is complete and its digest was checked.
 *   sector 2…  508 bytes of presence bits (unit 0 = bit 0 of byte 0) | 508 u32 CRC. All zero: no unit.
 *
 * The CRC of sectors 1… starts from the life and the sector's number, so that a sector of another life or place is damage. Any mix of
 * older and newer sectors is a valid map, since a bit is written only after its unit's data is durable; a sector that is neither
 * makes the whole map worthless.
 */
import { Buffer } from 'node:buffer';
import { crc32 } from 'node:zlib';
import type { Digest } from '../../base/digest.ts';
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import { unitCountOf } from './presence.ts';

export const MAP_SECTOR_BYTES = 512;
export const MAP_LIFE_BYTES = 16;
/** The sector that says "complete and verified". */
export const MAP_WHOLE_SECTOR = 1;
/** The first sector of bits. */
export const MAP_BITS_SECTOR = 2;
const CRC_OFFSET = MAP_SECTOR_BYTES - 4;
/** Units whose bits share a sector: 254 MiB of blob. */
export const UNITS_PER_SECTOR = CRC_OFFSET * 8;

const MAGIC = Buffer.from('OBDMAP\0\0', 'latin1');
const WHOLE_MAGIC = Buffer.from('OBDWHOLE', 'latin1');
const VERSION = 1;

/** The size of the map file of a blob. */
export function mapBytesOf(sizeBytes: number): number {
  return (MAP_BITS_SECTOR + Math.ceil(unitCountOf(sizeBytes) / UNITS_PER_SECTOR)) * MAP_SECTOR_BYTES;
}

/** The map sector that holds a unit's bit. */
export function sectorOfUnit(unit: number): number {
  return MAP_BITS_SECTOR + Math.floor(unit / UNITS_PER_SECTOR);
}

export function encodeHeader(digest: Digest, sizeBytes: number, life: Uint8Array): Buffer {
  const sector = Buffer.alloc(MAP_SECTOR_BYTES);
  MAGIC.copy(sector, 0);
  sector.writeUInt32LE(VERSION, 8);
  sector.writeUInt32LE(FETCH_UNIT_BYTES, 12);
  sector.writeBigUInt64LE(BigInt(sizeBytes), 16);
  sector.write(digest.slice('sha256:'.length), 24, 'hex');
  sector.set(life, 56);
  sector.writeUInt32LE(crc32(sector.subarray(0, CRC_OFFSET)), CRC_OFFSET);
  return sector;
}

function sealSector(sector: Buffer, life: Uint8Array, sectorIndex: number): Buffer {
  sector.writeUInt32LE(sectorCrc(sector, life, sectorIndex), CRC_OFFSET);
  return sector;
}

function sectorCrc(sector: Buffer, life: Uint8Array, sectorIndex: number): number {
  const place = Buffer.alloc(4);
  place.writeUInt32LE(sectorIndex, 0);
  return crc32(sector.subarray(0, CRC_OFFSET), crc32(place, crc32(life)));
}

export function encodeWhole(life: Uint8Array): Buffer {
  const sector = Buffer.alloc(MAP_SECTOR_BYTES);
  WHOLE_MAGIC.copy(sector, 0);
  return sealSector(sector, life, MAP_WHOLE_SECTOR);
}

/** One sector of bits; `isSet` is asked for each of its units that the blob has. */
export function encodeBits(life: Uint8Array, sectorIndex: number, unitCount: number, isSet: (unit: number) => boolean): Buffer {
  const sector = Buffer.alloc(MAP_SECTOR_BYTES);
  const firstUnit = (sectorIndex - MAP_BITS_SECTOR) * UNITS_PER_SECTOR;
  const endUnit = Math.min(unitCount, firstUnit + UNITS_PER_SECTOR);
  for (let unit = firstUnit; unit < endUnit; unit += 1) {
    const bit = unit - firstUnit;
    if (isSet(unit)) sector[bit >> 3] = sector[bit >> 3]! | (1 << (bit & 7));
  }
  return sealSector(sector, life, sectorIndex);
}

/** What is wrong with a header sector, or undefined. Damage is an answer here, not a failure: the blob is fetched again. */
export function headerDamage(sector: Uint8Array, digest: Digest): string | undefined {
  const header = Buffer.from(sector.buffer, sector.byteOffset, sector.byteLength);
  if (header.length < MAP_SECTOR_BYTES) return `the map has ${header.length} bytes`;
  if (!header.subarray(0, 8).equals(MAGIC)) return 'the map has no magic';
  if (header.readUInt32LE(CRC_OFFSET) !== crc32(header.subarray(0, CRC_OFFSET))) return "the map header's checksum is wrong";
  if (header.readUInt32LE(8) !== VERSION) return `the map has version ${header.readUInt32LE(8)}`;
  if (header.readUInt32LE(12) !== FETCH_UNIT_BYTES) return `the map counts units of ${header.readUInt32LE(12)} bytes`;
  if (header.toString('hex', 24, 56) !== digest.slice('sha256:'.length)) return 'the map belongs to another blob';
  return undefined;
}

/** Size of the blob according to a header that {@link headerDamage} found whole. */
export function headerBlobBytes(sector: Uint8Array): number {
  return Number(Buffer.from(sector.buffer, sector.byteOffset, sector.byteLength).readBigUInt64LE(16));
}

export interface DecodedMap {
  life: Uint8Array;
  isWhole: boolean;
}

/**
 * Reads a map file and calls `onUnit` for each unit that is durably present. Returns a sentence instead when the map is damaged; units
 * may have been reported by then, and the caller must forget them.
 */
export function decodeMap(bytes: Uint8Array, digest: Digest, sizeBytes: number, onUnit: (unit: number) => void): DecodedMap | string {
  const map = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (map.length !== mapBytesOf(sizeBytes)) return `the map has ${map.length} bytes instead of ${mapBytesOf(sizeBytes)}`;
  const damage = headerDamage(map.subarray(0, MAP_SECTOR_BYTES), digest);
  if (damage !== undefined) return damage;
  if (headerBlobBytes(map) !== sizeBytes) return `the map describes a blob of ${headerBlobBytes(map)} bytes instead of ${sizeBytes}`;

  const life = Uint8Array.from(map.subarray(56, 56 + MAP_LIFE_BYTES));
  const unitCount = unitCountOf(sizeBytes);
  const sectorCount = map.length / MAP_SECTOR_BYTES;
  for (let index = MAP_WHOLE_SECTOR; index < sectorCount; index += 1) {
    const sector = map.subarray(index * MAP_SECTOR_BYTES, (index + 1) * MAP_SECTOR_BYTES);
    if (isZero(sector)) continue;
    if (sector.readUInt32LE(CRC_OFFSET) !== sectorCrc(sector, life, index)) return `the checksum of map sector ${index} is wrong`;
    if (index === MAP_WHOLE_SECTOR) {
      if (!sector.subarray(0, 8).equals(WHOLE_MAGIC)) return 'the map has an unknown state sector';
      continue;
    }
    const firstUnit = (index - MAP_BITS_SECTOR) * UNITS_PER_SECTOR;
    for (let bit = 0; bit < UNITS_PER_SECTOR; bit += 1) {
      if ((sector[bit >> 3]! & (1 << (bit & 7))) === 0) continue;
      if (firstUnit + bit >= unitCount) return `the map names unit ${firstUnit + bit} of ${unitCount}`;
      onUnit(firstUnit + bit);
    }
  }
  return { life, isWhole: map[MAP_WHOLE_SECTOR * MAP_SECTOR_BYTES] !== 0 };
}

function isZero(sector: Buffer): boolean {
  for (let at = 0; at < sector.length; at += 4) if (sector.readUInt32LE(at) !== 0) return false;
  return true;
}
