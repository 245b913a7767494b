// Huffman codes of a JPEG scan: tables and the bits that they are looked up by. T.81, annexes C and F.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "jpeg_header.h"

namespace jpeg {

// ---------------------------------------------------------------------------------------------------- bits

constexpr long BITS_OF_A_SYMBOL = 16 + 15;  // code and value, at most
constexpr long PADDING = 2048;  // zeros behind a segment, more than the symbols of an MCU: 6 * 64 * 31 bits

// Bits of a segment without stuffed bytes, from the highest on. Reads up to PADDING bytes beyond its end:
// `is_beyond` is to be asked after each MCU.
struct Bits {
    uint64_t buffer = 0;  // the next bit is the highest one
    int count = 0;        // of those that are valid
    const uint8_t* at = nullptr;
    const uint8_t* end = nullptr;

    // At least 56 bits are valid behind it.
    void refill() {
        uint64_t next;
        std::memcpy(&next, at, 8);
        buffer |= __builtin_bswap64(next) >> count;
        at += (63 - count) >> 3;
        count |= 56;
    }
    uint32_t peek(int n) const { return buffer >> (64 - n); }
    void skip(int n) { buffer <<= n, count -= n; }
    bool is_beyond() const { return at - (count >> 3) > end; }
};

// --------------------------------------------------------------------------------------------------- tables

// What a look-up finds: a symbol, and its value where that is within the bits looked up.
//   bits 0 to 4     of code and value together; 0: the code is longer than a look-up
//   bits 5 to 8     of the value that are still to be read
//   bits 9 to 15    coefficients from the last one to this; those of END end a block
//   bits 16 to 31   the value
using Entry = uint32_t;
constexpr int LOOKED_UP = 11;
constexpr int END = 127;

static inline int bits_of(Entry e) { return e & 31; }
static inline int value_bits_of(Entry e) { return e >> 5 & 15; }
static inline int steps_of(Entry e) { return e >> 9 & 127; }
static inline int value_of(Entry e) { return static_cast<int32_t>(e) >> 16; }

// The number that `size` bits stand for.
static inline int extended(int bits, int size) { return bits < 1 << (size - 1) ? bits - (1 << size) + 1 : bits; }

class Table {
  public:
    Codes codes;

    Table(const Codes& codes, bool is_ac) : codes(codes), is_ac(is_ac), entries(1 << LOOKED_UP) {
        int code = 0, symbol = 0;
        for (int length = 1; length <= 16; length++, code <<= 1) {
            first_code[length] = code, first_symbol[length] = symbol;
            for (int i = 0; i < codes.counts[length - 1]; i++, code++, symbol++)
                if (length <= LOOKED_UP) fill(code, length, codes.symbols[symbol]);
        }
        if (is_ac) fill_skips();
    }

    // The next symbol, its value not yet read; 0 where there is none.
    Entry find(uint64_t buffer) const {
        const Entry e = find_short(buffer);
        return __builtin_expect(bits_of(e) != 0, 1) ? e : find_long(buffer);
    }
    Entry find_short(uint64_t buffer) const { return entries[buffer >> (64 - LOOKED_UP)]; }

    Entry find_long(uint64_t buffer) const {
        int length = LOOKED_UP + 1;
        const int symbol = find_symbol(buffer, length);
        return symbol < 0 ? 0 : entry(length, symbol, (symbol & 15) == 0, 0);
    }

    // The symbol whose code, of `length` bits or more, comes next, and the code's length; -1 where there is none.
    int find_symbol(uint64_t buffer, int& length) const {
        for (; length <= 16; length++) {
            const int index = static_cast<int>(buffer >> (64 - length)) - first_code[length];
            if (index >= 0 && index < codes.counts[length - 1]) return codes.symbols[first_symbol[length] + index];
        }
        return -1;
    }

    // Whole symbols of AC coefficients within the bits looked up: bits 0 to 3 how many bits (0: not one), 4 to 10
    // the coefficients passed, 11 whether the block ends there.
    uint32_t find_skip(uint64_t buffer) const { return skips[buffer >> (64 - LOOKED_UP)]; }

  private:
    bool is_ac;
    std::vector<Entry> entries;
    std::vector<uint16_t> skips;
    int first_code[17], first_symbol[17];

    Entry entry(int length, int symbol, bool with_value, int value) const {
        const int size = symbol & 15, run = symbol >> 4;
        int steps = run + 1;
        if (is_ac && size == 0) steps = run == 15 ? 16 : END;  // 16 zeros; nothing more
        return static_cast<uint32_t>(value) << 16 | steps << 9 | (with_value ? 0 : size) << 5 | (length + size);
    }

    void fill(int code, int length, int symbol) {
        const int size = symbol & 15, left = LOOKED_UP - length;
        Entry* to = &entries[code << left];
        if (size > left || size == 0) {
            const Entry e = entry(length, symbol, size == 0, 0);
            for (int i = 0; i < 1 << left; i++) to[i] = e;
            return;
        }
        for (int bits = 0; bits < 1 << size; bits++) {
            const Entry e = entry(length, symbol, true, extended(bits, size));
            for (int i = 0; i < 1 << (left - size); i++) *to++ = e;
        }
    }

    void fill_skips() {
        skips.resize(1 << LOOKED_UP);
        for (uint32_t window = 0; window < 1 << LOOKED_UP; window++) {
            int bits = 0, steps = 0;
            bool ends = false;
            while (!ends) {
                const Entry e = entries[window << bits & ((1 << LOOKED_UP) - 1)];
                if (bits_of(e) == 0 || bits + bits_of(e) > LOOKED_UP) break;
                ends = steps_of(e) == END;
                if (!ends && steps + steps_of(e) > 64) break;
                bits += bits_of(e);
                if (!ends) steps += steps_of(e);
            }
            skips[window] = bits | steps << 4 | ends << 11;
        }
    }
};

// Tables of the files before: many have the same ones. The one asked for last stands first.
class Tables {
  public:
    const Table& get(const Codes& codes, bool is_ac) {
        auto& kept = tables[is_ac];
        size_t i = 0;
        while (i < kept.size() && !(kept[i]->codes == codes)) i++;
        if (i == kept.size()) {
            if (kept.size() == KEPT) kept.pop_back(), i--;
            kept.push_back(std::make_unique<Table>(codes, is_ac));
        }
        std::rotate(kept.begin(), kept.begin() + i, kept.begin() + i + 1);
        return *kept.front();
    }

  private:
    static constexpr size_t KEPT = 8;  // one file has 4 of a kind at most, which stay
    std::vector<std::unique_ptr<Table>> tables[2];
};

// ------------------------------------------------------------------------------------------------- blocks

// The difference of a block's DC coefficient to the one before; false where there is no such code.
static inline bool read_dc(Bits& bits, const Table& table, int& difference) {
    bits.refill();
    const Entry e = table.find(bits.buffer);
    if (bits_of(e) == 0) return false;
    const int size = value_bits_of(e);
    difference = value_of(e);
    if (size) difference = extended(bits.buffer << (bits_of(e) - size) >> (64 - size), size);
    bits.skip(bits_of(e));
    return true;
}

// Write AC coefficients that are not 0 to a block of zeros. `last` is the number of the last one, in file order.
static inline bool read_ac(Bits& of_segment, const Table& table, int16_t* block, int& last) {
    Bits bits = of_segment;  // in registers
    int k = 0;
    for (;;) {
        bits.refill();
        for (int i = 0; i < 2; i++) {  // 26 bits each, of 56
            Entry e = table.find_short(bits.buffer);
            const bool is_short = bits_of(e) != 0;
            if (__builtin_expect(!is_short, 0)) {
                bits.refill();
                e = table.find_long(bits.buffer);
                if (bits_of(e) == 0) return false;
            }
            k += steps_of(e);
            const int size = value_bits_of(e);
            int value = value_of(e);
            if (size) value = extended(bits.buffer << (bits_of(e) - size) >> (64 - size), size);
            bits.skip(bits_of(e));
            if (k >= 63) {
                of_segment = bits;
                if (k > 63) return k >= END;  // the block's end, unless there are too many coefficients
                block[63] = value, last = 63;
                return true;
            }
            block[NATURAL[k]] = value, last = k;
            if (!is_short) bits.refill();
        }
    }
}

// Pass over the AC coefficients of a block.
static inline bool skip_ac(Bits& of_segment, const Table& table) {
    Bits bits = of_segment;  // in registers
    int k = 0;
    for (;;) {
        bits.refill();
        for (int i = 0; i < 3; i++) {  // 11 bits each, of 56
            const uint32_t group = table.find_skip(bits.buffer);
            const int used = group & 15, steps = group >> 4 & 127;
            const bool ends = group >> 11;
            if (__builtin_expect(used && k + steps + ends <= 63, 1)) {
                bits.skip(used);
                k += steps;
                if (ends || k == 63) {
                    of_segment = bits;
                    return true;
                }
                continue;
            }
            bits.refill();
            const Entry e = table.find(bits.buffer);
            if (bits_of(e) == 0) return false;
            bits.skip(bits_of(e));
            k += steps_of(e);
            if (k >= 63) {
                of_segment = bits;
                return k == 63 || k >= END;
            }
            break;
        }
    }
}

}  // namespace jpeg
