// Huffman codes of a JPEG scan, the bits that they are looked up by, and DC differences. T.81, annexes C and F.
#pragma once
#include <cstdint>
#include <cstring>

#include "jpeg_header.h"

namespace jpeg {

// ---------------------------------------------------------------------------------------------------- bits

// Bytes that may be read behind a segment, whatever they are: more than the symbols of an MCU, 6 * 64 * 31 bits.
constexpr long PADDING = 2048;

// Bits of a segment without stuffed bytes, from the highest on. Reads up to PADDING bytes beyond its end:
// `is_beyond` is to be asked after each MCU.
struct Bits {
    uint64_t buffer = 0;  // the next bit is the highest one
    unsigned count = 0;   // of those that are valid
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
    void skip(unsigned n) { buffer <<= n, count -= n; }
    bool is_beyond() const { return at - (count >> 3) > end; }
};

// --------------------------------------------------------------------------------------------------- tables

// The number that `size` bits stand for, 0 to 15 of them, which are the highest of `bits`: without a branch, because
// signs and sizes cannot be foretold.
static inline int extended(uint64_t bits, int size) {
    const int64_t is_negative = ~(static_cast<int64_t>(bits) >> 63);
    const int64_t distance = (bits ^ is_negative) >> 1 >> (63 - size);
    return (distance ^ is_negative) - is_negative;
}

// Codes by their canonical order: whatever their length, but slowly.
class Codebook {
  public:
    Codes codes;

    explicit Codebook(const Codes& codes) : codes(codes) {
        int code = 0, symbol = 0;
        for (int length = 1; length <= 16; length++, code <<= 1) {
            first_code[length] = code, first_symbol[length] = symbol;
            code += codes.counts[length - 1], symbol += codes.counts[length - 1];
        }
    }

    // The symbol whose code, of `length` bits or more, comes next, and the code's length; -1 where there is none.
    int find_symbol(uint64_t buffer, int& length) const {
        for (; length <= 16; length++) {
            const int index = static_cast<int>(buffer >> (64 - length)) - first_code[length];
            if (index >= 0 && index < codes.counts[length - 1]) return codes.symbols[first_symbol[length] + index];
        }
        return -1;
    }

  protected:
    // Call found(code, length, symbol) for all codes up to a length.
    template <class Found>
    void each_code(int longest, const Found& found) const {
        for (int length = 1; length <= longest; length++)
            for (int i = 0; i < codes.counts[length - 1]; i++)
                found(first_code[length] + i, length, codes.symbols[first_symbol[length] + i]);
    }

  private:
    int first_code[17], first_symbol[17];
};

// Codes of the sizes of DC differences.
class DcTable : public Codebook {
  public:
    explicit DcTable(const Codes& codes) : Codebook(codes) {
        each_code(LOOKED_UP, [this](int code, int length, int symbol) {
            const int left = LOOKED_UP - length;
            std::memset(&entries[code << left], length | symbol << 4, 1 << left);
        });
    }

    // The difference that comes next; false where there is no such code.
    bool read(Bits& bits, int& difference) const {
        bits.refill();
        const int entry = entries[bits.buffer >> (64 - LOOKED_UP)];
        int length = entry & 15, size = entry >> 4;
        if (__builtin_expect(length == 0, 0)) {
            length = LOOKED_UP + 1;
            size = find_symbol(bits.buffer, length);
            if (size < 0) return false;
        }
        difference = extended(bits.buffer << length, size);
        bits.skip(length + size);
        return true;
    }

  private:
    static constexpr int LOOKED_UP = 10;
    uint8_t entries[1 << LOOKED_UP] = {};  // of the code, bits 0 to 3: its length, 0: it is longer; from 4 on: the size
};

}  // namespace jpeg
