// AC coefficients of a JPEG scan, written to blocks or passed over, several at a look-up. T.81, F.2.2.2.
#pragma once
#include <algorithm>
#include <cstdint>

#include "jpeg_huffman.h"

namespace jpeg {

// Places of coefficients in a Pair, in the order of the file.
struct Places {
    uint8_t of[64];
    constexpr Places() : of() {
        for (int k = 0; k < 64; k++) of[k] = NATURAL[k] / 8 * 16 + NATURAL[k] % 8;
    }
    constexpr int operator[](unsigned k) const { return of[k]; }
};
constexpr Places PLACES;

// Codes of AC coefficients: of runs of zeros and the sizes of what ends them.
class AcTable : public Codebook {
  public:
    explicit AcTable(const Codes& codes) : Codebook(codes) {
        // What can be in the n bits that are left of a look-up, for n from 0 on, each at 1 << n | bits: an end; one
        // coefficient and perhaps an end; symbols. In the fields of `entries` and `skips`; 0: nothing.
        uint32_t ends[WINDOWS] = {}, seconds[WINDOWS] = {};
        uint16_t groups[2 * WINDOWS] = {};
        std::fill_n(entries, WINDOWS, STOP);
        for (int n = 1; n <= LOOKED_UP; n++)
            each_code(n, [&](int code, int length, int symbol) {
                const int left = n - length, size = symbol & 15, bits = length + size;
                const uint32_t steps = (symbol >> 4) + 1, begin = code << left;
                uint16_t* group = &groups[1 << n | begin];
                uint32_t* entry = n < LOOKED_UP ? &seconds[1 << n | begin] : &entries[begin];
                if (is_end(symbol)) {
                    std::fill_n(group, 1 << left, length | SKIPPED_END | 1 << 7);
                    std::fill_n(entry, 1 << left, length | STOP);
                    if (n < LOOKED_UP) std::fill_n(&ends[1 << n | begin], 1 << left, length | STOP);
                } else if (size > left) {  // the value is not whole
                    if (bits - n > MOST - LOOKED_UP) return;
                    std::fill_n(group, 1 << left, bits | steps << 7);
                    if (n < LOOKED_UP || left == 0 || size > LARGEST_SIZE) return;
                    for (int i = 0; i < 1 << left; i++)
                        entry[i] = bits | steps << 6 | static_cast<uint32_t>(value_of(i << (size - left), size)) << 22;
                } else {
                    const int behind = left - size;
                    for (int v = 0; v < 1 << size; v++, group += 1 << behind, entry += 1 << behind) {
                        const int value = value_of(v, size), rest = 1 << behind;
                        for (int i = 0; i < rest; i++) group[i] = groups[rest | i] + (bits | steps << 7);
                        if (n == LOOKED_UP && size <= LARGEST_SIZE)
                            for (int i = 0; i < rest; i++)
                                entry[i] = seconds[rest | i] + (bits | steps << 6 | static_cast<uint32_t>(value) << 22);
                        if (n < LOOKED_UP && value >= -16 && value <= 15)
                            for (int i = 0; i < rest; i++)
                                entry[i] = ends[rest | i] + (bits | steps << 11 | (value & 31) << 16);
                    }
                }
            });
        for (int i = 0; i < WINDOWS; i++) skips[i] = groups[WINDOWS | i] ? groups[WINDOWS | i] : 64 << 7;
    }

    // Write AC coefficients that are not 0 to a block of zeros; whether there are any is told by `any`. False where a
    // code is none, or coefficients are too many.
    bool read(Bits& of_segment, int16_t* block, bool& any) const {
        Bits bits = of_segment;  // in registers
        unsigned k = 0;
        for (;;) {
            bits.refill();
            for (int i = 0; i < 3; i++) {  // 18 bits each, of 56
                const uint32_t entry = entries[bits.buffer >> (64 - LOOKED_UP)];
                const unsigned used = entry & 63;
                const unsigned first = k + (entry >> 6 & 31), second = first + (entry >> 11 & 31);
                if (__builtin_expect(entry & STOP || second >= 63, 0)) {
                    const bool ends = entry & STOP;
                    if (used && second + ends <= 63) {
                        const bool is_alone = first == k;  // an end writes 0, where there is none yet
                        block[PLACES[is_alone ? 63 : second]] = second_value(entry);
                        block[PLACES[is_alone ? 63 : first]] = first_value(entry, used, bits.buffer);
                        any = second > 0;
                        bits.skip(used);
                        of_segment = bits;
                        return true;
                    }
                    // A long code, or what comes second is of the next block: one symbol alone.
                    int symbol, value;
                    if (!read_symbol(bits, symbol, value)) return false;
                    if (!is_end(symbol)) {
                        k += (symbol >> 4) + 1;
                        if (k > 63) return false;
                        block[PLACES[k]] = value;
                    }
                    if (is_end(symbol) || k == 63) {
                        any = k > 0;
                        of_segment = bits;
                        return true;
                    }
                    break;
                }
                block[PLACES[second]] = second_value(entry);
                block[PLACES[first]] = first_value(entry, used, bits.buffer);  // stays where there is no second one
                k = second;
                bits.skip(used);
            }
        }
    }

    // Pass over the AC coefficients of a block.
    bool skip(Bits& of_segment) const {
        Bits bits = of_segment;  // in registers
        unsigned k = 0;
        for (;;) {
            bits.refill();
            for (int i = 0; i < 3; i++) {  // 18 bits each, of 56
                const unsigned group = skips[bits.buffer >> (64 - LOOKED_UP)], passed = k + (group >> 7);
                if (__builtin_expect(passed > 63, 0)) {
                    int symbol, value;
                    if (!read_symbol(bits, symbol, value)) return false;
                    k = is_end(symbol) ? 63 : k + (symbol >> 4) + 1;
                    if (k >= 63) {
                        of_segment = bits;
                        return k == 63;
                    }
                    break;
                }
                bits.skip(group & 63);
                k = passed;
                if (group & SKIPPED_END || k == 63) {
                    of_segment = bits;
                    return true;
                }
            }
        }
    }

  private:
    static constexpr int LOOKED_UP = 11, WINDOWS = 1 << LOOKED_UP;
    static constexpr int MOST = 18;  // bits that an entry stands for: three of them are in a buffer

    // One or two coefficients, and perhaps the block's end, whose codes are within the bits looked up:
    //   bits 0 to 5     of all codes and values; 0: one symbol alone is to be read
    //   bits 6 to 10    steps from the last coefficient to the first; 0: there is none, the block ends
    //   bits 11 to 15   steps from the first to the second; 0: there is none
    //   bits 16 to 20   the second one's value
    //   bit 21          whether the block ends behind them, or no bits are used
    //   bits 22 to 31   the first one's value; where bits of it are beyond those looked up, they are to be added
    uint32_t entries[WINDOWS];
    static constexpr uint32_t STOP = 1u << 21;
    static constexpr int LARGEST_SIZE = 9;

    static int first_value(uint32_t entry, unsigned used, uint64_t buffer) {
        const unsigned beyond = used > LOOKED_UP ? used - LOOKED_UP : 0;
        return (static_cast<int32_t>(entry) >> 22) + static_cast<int>(buffer >> (64 - used) & ((1u << beyond) - 1));
    }
    static int second_value(uint32_t entry) { return static_cast<int32_t>(entry << 11) >> 27; }

    // Symbols whose codes are within the bits looked up:
    //   bits 0 to 5     of all codes and values
    //   bit 6           whether the block ends there
    //   bits 7 to 15    steps over coefficients, the end's among them; 64 where there is no symbol
    uint16_t skips[WINDOWS];
    static constexpr unsigned SKIPPED_END = 1 << 6;

    static bool is_end(int symbol) { return (symbol & 15) == 0 && symbol != 0xf0; }
    static int value_of(int bits, int size) { return size && bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

    // The next symbol and its value, whatever their length; false where there is none.
    bool read_symbol(Bits& bits, int& symbol, int& value) const {
        bits.refill();
        int length = 1;
        symbol = find_symbol(bits.buffer, length);
        if (symbol < 0) return false;
        value = extended(bits.buffer << length, symbol & 15);
        bits.skip(length + (symbol & 15));
        return true;
    }
};

}  // namespace jpeg
