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
    void skip(int n) { buffer <<= n, count -= n; }
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

// Places of coefficients in a Pair, in the order of the file.
struct Places {
    uint8_t of[64];
    constexpr Places() : of() {
        for (int k = 0; k < 64; k++) of[k] = NATURAL[k] / 8 * 16 + NATURAL[k] % 8;
    }
    constexpr int operator[](int k) const { return of[k]; }
};
constexpr Places PLACES;

// Codes of AC coefficients: of runs of zeros and the sizes of what ends them.
class AcTable : public Codebook {
  public:
    explicit AcTable(const Codes& codes) : Codebook(codes) {
        uint32_t single[1 << LOOKED_UP] = {};
        each_code(LOOKED_UP, [&](int code, int length, int symbol) {
            const int left = LOOKED_UP - length, size = symbol & 15, run = symbol >> 4;
            uint32_t* to = &single[code << left];
            const uint32_t entry = is_end(symbol) ? END : (run + 1) << 5;
            if (size == 0 || size > std::min(left, LARGEST_SIZE)) {
                std::fill_n(to, 1 << left, static_cast<uint32_t>(size) << 21 | entry | (length + size));
                if (size && size <= left) std::fill_n(to, 1 << left, 0);  // rare: read slowly
                return;
            }
            for (int bits = 0; bits < 1 << size; bits++, to += 1 << (left - size)) {
                const uint32_t value = extended(static_cast<uint64_t>(bits) << (64 - size), size);
                std::fill_n(to, 1 << (left - size), (value & 1023) << 21 | entry | (length + size));
            }
        });
        for (uint32_t window = 0; window < 1 << LOOKED_UP; window++) compose(window, single);
    }

    // Write AC coefficients that are not 0 to a block of zeros; whether there are any is told by `any`. False where a
    // code is none, or coefficients are too many.
    bool read(Bits& of_segment, int16_t* block, bool& any) const {
        Bits bits = of_segment;  // in registers
        int k = 0;
        for (;;) {
            bits.refill();
            for (int i = 0; i < 5; i++) {  // 11 bits each, of 56
                const uint32_t entry = entries[bits.buffer >> (64 - LOOKED_UP)];
                const int used = entry & 31;
                if (__builtin_expect(used == 0 || used > LOOKED_UP, 0)) {
                    bits.refill();
                    if (used == 0) {
                        of_segment = bits;
                        any = true;
                        return read_slowly(of_segment, block, k);
                    }
                    k += entry >> 5 & 31;
                    if (k > 63) return false;
                    const int size = entry >> 21;
                    block[PLACES[k]] = extended(bits.buffer << (used - size), size);
                    bits.skip(used);
                    if (k == 63) {
                        of_segment = bits;
                        return any = true;
                    }
                    break;
                }
                const int first = k + (entry >> 5 & 31), second = first + (entry >> 10 & 31);
                const int16_t first_value = static_cast<int32_t>(entry << 1) >> 22;
                const int16_t second_value = static_cast<int32_t>(entry << 11) >> 26;
                if (entry & END || second >= 63) {
                    if (second + (entry & END ? 1 : 0) > 63) {  // what comes second is of the next block
                        of_segment = bits;
                        any = true;
                        return read_slowly(of_segment, block, k);
                    }
                    const bool is_alone = first == k;  // an end writes 0, where there is none yet
                    block[PLACES[is_alone ? 63 : second]] = second_value;
                    block[PLACES[is_alone ? 63 : first]] = first_value;
                    any = second > 0;
                    bits.skip(used);
                    of_segment = bits;
                    return true;
                }
                block[PLACES[second]] = second_value;
                block[PLACES[first]] = first_value;  // where there is no second one, it is what stays
                k = second;
                bits.skip(used);
            }
        }
    }

    // Pass over the AC coefficients of a block.
    bool skip(Bits& of_segment) const {
        Bits bits = of_segment;  // in registers
        int k = 0;
        for (;;) {
            bits.refill();
            for (int i = 0; i < 5; i++) {  // 11 bits each, of 56
                const int group = skips[bits.buffer >> (64 - LOOKED_UP)];
                const int passed = k + (group >> 5);
                if (__builtin_expect(passed > 63, 0)) {
                    bits.refill();
                    const uint32_t entry = entries[bits.buffer >> (64 - LOOKED_UP)];
                    int length = 1, symbol;
                    if ((entry & 31) > LOOKED_UP) {
                        bits.skip(entry & 31);
                        k += entry >> 5 & 31;
                    } else if ((symbol = find_symbol(bits.buffer, length)) >= 0) {
                        bits.skip(length + (symbol & 15));
                        k = is_end(symbol) ? 63 : k + (symbol >> 4) + 1;
                    } else {
                        return false;
                    }
                    if (k >= 63) {
                        of_segment = bits;
                        return k == 63;
                    }
                    break;
                }
                bits.skip(group & 15);
                k = passed;
                if (group & SKIPPED_END || k == 63) {
                    of_segment = bits;
                    return true;
                }
            }
        }
    }

  private:
    static constexpr int LOOKED_UP = 11;

    // One or two coefficients, and perhaps the block's end, within the bits looked up:
    //   bits 0 to 4     of all codes and values; 0: a code is longer than a look-up; more than LOOKED_UP: the value of
    //                   the one coefficient is still to be read, and its size stands in its place
    //   bits 5 to 9     steps from the last coefficient to the first; 0: there is none, the block ends
    //   bits 10 to 14   steps from the first to the second; 0: there is none
    //   bits 15 to 20   the second one's value
    //   bits 21 to 30   the first one's value
    //   bit 31          whether the block ends behind them
    uint32_t entries[1 << LOOKED_UP];
    static constexpr uint32_t END = 1u << 31;
    static constexpr int LARGEST_SIZE = 9;

    // Whole symbols within the bits looked up:
    //   bits 0 to 3     of all codes and values
    //   bit 4           whether the block ends there
    //   bits 5 to 11    steps over coefficients, the end's among them; 64 where not one symbol is whole
    uint16_t skips[1 << LOOKED_UP];
    static constexpr int SKIPPED_END = 16;

    static bool is_end(int symbol) { return (symbol & 15) == 0 && symbol != 0xf0; }

    void compose(uint32_t window, const uint32_t* single) {
        const auto after = [&](int bits) { return single[window << bits & ((1 << LOOKED_UP) - 1)]; };
        const auto is_whole = [](uint32_t e, int bits) { return e & 31 && (e & 31) + bits <= LOOKED_UP; };
        uint32_t& entry = entries[window] = single[window];
        int used = 0, steps = 0, number = 0;
        bool ends = false;
        for (uint32_t next = entry; is_whole(next, used) && !ends; next = after(used), number++) {
            const int wide = next & 31, step = next >> 5 & 31, value = static_cast<int32_t>(next << 1) >> 22;
            if (number == 1 && !(next & END) && value >= -32 && value < 32)
                entry = (entry + wide) | step << 10 | (value & 63) << 15;
            else if (next & END && number == (entry >> 10 & 31 ? 2 : 1))
                entry = (entry + wide) | END;
            if (steps + step + (next & END ? 1 : 0) > 63) break;
            used += wide, steps += step, ends = next & END;
        }
        skips[window] = used ? used | ends * SKIPPED_END | (steps + ends) << 5 : 64 << 5;
    }

    // What is left of a block from coefficient k on, symbol by symbol.
    bool read_slowly(Bits& bits, int16_t* block, int k) const {
        while (k < 63) {
            bits.refill();
            int length = 1;
            const int symbol = find_symbol(bits.buffer, length);
            if (symbol < 0) return false;
            const int size = symbol & 15;
            const int value = extended(bits.buffer << length, size);
            bits.skip(length + size);
            if (is_end(symbol)) return true;
            k += (symbol >> 4) + 1;
            if (k > 63) return false;
            block[PLACES[k]] = value;
        }
        return true;
    }
};

// Tables of the files before: many have the same ones. The one asked for last stands first.
template <class Table>
class TableCache {
  public:
    const Table& get(const Codes& codes) {
        size_t i = 0;
        while (i < kept.size() && !(kept[i]->codes == codes)) i++;
        if (i == kept.size()) {
            if (kept.size() == KEPT) kept.pop_back(), i--;
            kept.push_back(std::make_unique<Table>(codes));
        }
        std::rotate(kept.begin(), kept.begin() + i, kept.begin() + i + 1);
        return *kept.front();
    }

  private:
    static constexpr size_t KEPT = 8;  // one file has 4 of a kind at most, which stay
    std::vector<std::unique_ptr<Table>> kept;
};

struct Tables {
    TableCache<DcTable> dc;
    TableCache<AcTable> ac;
};

}  // namespace jpeg
