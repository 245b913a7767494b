// A JPEG file's entropy-coded data written anew, with restart markers and Huffman tables of its own.
//
// Coefficients stay as they are, and with them the pixels of any decoder. Runs of zeros and values are copied as they are
// coded; only DC differences change, which begin from 0 behind each marker. Tables are those of the fewest bits: T.81, K.2.
#include <algorithm>
#include <new>
#include <vector>

#include "jpeg_scan.h"

namespace {

using namespace jpeg;

// One coded symbol and the bits behind it, of a block's DC or AC coefficients.
struct Token {
    uint8_t table;  // 0 to 3: of DC; 4 to 7: of AC
    uint8_t symbol;
    uint16_t bits;
};

struct Counts {
    long of[257] = {};  // 256: a code that no symbol has, so that none is all ones
};

// Lengths of the codes of a Huffman tree over counts, none longer than 16 bits, and the symbols by length.
Codes shortest(const Counts& counts) {
    long frequency[257];
    int length[257] = {}, next[257];
    for (int i = 0; i < 257; i++) frequency[i] = counts.of[i], next[i] = -1;
    frequency[256] = 1;
    for (;;) {
        int a = -1, b = -1;  // the two rarest, of equal ones the last
        for (int i = 0; i < 257; i++)
            if (frequency[i] && (a < 0 || frequency[i] <= frequency[a])) a = i;
        for (int i = 0; i < 257; i++)
            if (frequency[i] && i != a && (b < 0 || frequency[i] <= frequency[b])) b = i;
        if (b < 0) break;
        frequency[a] += frequency[b], frequency[b] = 0;
        int last = a;
        for (;; last = next[last]) {
            length[last]++;
            if (next[last] < 0) break;
        }
        next[last] = b;
        for (int i = b; i >= 0; i = next[i]) length[i]++;
    }
    int of_length[258] = {};
    for (int i = 0; i < 257; i++)
        if (length[i]) of_length[length[i]]++;
    for (int i = 257; i > 16; i--)
        while (of_length[i] > 0) {  // two leaves move up, and a shorter code makes room for one of them and itself
            int j = i - 2;
            while (of_length[j] == 0) j--;
            of_length[i] -= 2, of_length[i - 1]++, of_length[j + 1] += 2, of_length[j]--;
        }
    int longest = 16;
    while (longest > 0 && of_length[longest] == 0) longest--;
    of_length[longest]--;  // the code that no symbol has
    Codes codes;
    for (int i = 1; i <= 16; i++) codes.counts[i - 1] = of_length[i];
    for (int l = 1; l < 258; l++)
        for (int i = 0; i < 256; i++)
            if (length[i] == l) codes.symbols[codes.total++] = i;
    return codes;
}

// Each symbol's code and its length.
struct Encoder {
    uint16_t code[256] = {};
    uint8_t length[256] = {};

    explicit Encoder(const Codes& codes) {
        int next = 0, symbol = 0;
        for (int l = 1; l <= 16; l++, next <<= 1)
            for (int i = 0; i < codes.counts[l - 1]; i++, symbol++)
                code[codes.symbols[symbol]] = next++, length[codes.symbols[symbol]] = l;
    }
};

class Writer {
  public:
    std::vector<uint8_t> bytes;

    void put(uint32_t value, int count) {
        buffer = buffer << count | (value & ((1u << count) - 1)), held += count;
        while (held >= 8) byte(buffer >> (held -= 8));
    }
    void end_segment() {  // filled up with ones
        if (held) put(0xff, 8 - held);
    }
    void marker(int code) { bytes.push_back(0xff), bytes.push_back(code); }
    void word(int value) { bytes.push_back(value >> 8), bytes.push_back(value); }

  private:
    uint64_t buffer = 0;
    int held = 0;

    void byte(uint8_t value) {
        bytes.push_back(value);
        if (value == 0xff) bytes.push_back(0);
    }
};

int size_of(int value) { return value ? 32 - __builtin_clz(value < 0 ? -value : value) : 0; }

// What all blocks of a file are coded by, with DC differences from 0 in each `every`th MCU.
class Tokens {
  public:
    std::vector<Token> all;
    std::vector<size_t> ends;  // behind each MCU
    Counts counts[8];

    Code read(const Header& header, Scan& scan, long every) {
        int read[3] = {}, written[3] = {};
        for (long m = 0; m < scan.total; m++) {
            if (m % scan.interval == 0) scan.open(m / scan.interval), std::fill(read, read + 3, 0);
            if (m % every == 0) std::fill(written, written + 3, 0);
            for (int c = 0; c < header.components; c++) {
                const Component& each = header.component[c];
                for (int b = each.h * each.v; b > 0; b--)
                    if (!read_mean(scan.bits, *scan.dc_tables[c], each.dc, read[c], written[c]) ||
                        !read_rest(scan.bits, *scan.ac_tables[c], 4 + each.ac))
                        return DAMAGED;
            }
            if (scan.bits.is_beyond()) return DAMAGED;
            ends.push_back(all.size());
        }
        return DONE;
    }

  private:
    void add(int table, int symbol, int bits) {
        all.push_back({static_cast<uint8_t>(table), static_cast<uint8_t>(symbol), static_cast<uint16_t>(bits)});
        counts[table].of[symbol]++;
    }

    // A symbol and the bits behind it; false where there is none.
    static bool next(Bits& bits, const Codebook& table, int& symbol, int& value) {
        bits.refill();
        int length = 1;
        symbol = table.find_symbol(bits.buffer, length);
        if (symbol < 0) return false;
        const int size = symbol & 15;
        value = size ? static_cast<int>(bits.buffer << length >> (64 - size)) : 0;
        bits.skip(length + size);
        return true;
    }

    bool read_mean(Bits& bits, const Codebook& table, int number, int& read, int& written) {
        int symbol, value;
        if (!next(bits, table, symbol, value)) return false;
        if (symbol) read += extended(static_cast<uint64_t>(value) << (64 - symbol), symbol);
        const int change = read - written, size = size_of(change);
        if (size > 11) return false;  // more than baseline files may have
        written = read;
        add(number, size, change < 0 ? change - 1 : change);
        return true;
    }

    bool read_rest(Bits& bits, const Codebook& table, int number) {
        int symbol, value;
        for (int k = 0; k < 63;) {
            if (!next(bits, table, symbol, value)) return false;
            const bool ends = (symbol & 15) == 0 && symbol != 0xf0;
            k += ends ? 0 : (symbol >> 4) + 1;
            if (k > 63) return false;
            add(number, ends ? 0 : symbol, value);
            if (ends) return true;
        }
        return true;
    }
};

Code rewrite(const uint8_t* file, long length, long every, Writer& writer) {
    Header header;
    if (const Code code = HeaderReader(file, length, header).read()) return code;
    Tables tables;
    std::vector<uint8_t> scratch;
    Scan scan(file + length, header, tables, scratch);
    if (const Code code = scan.find_segments()) return code;
    Tokens tokens;
    if (const Code code = tokens.read(header, scan, every)) return code;

    writer.bytes.reserve(length + length / 8);
    writer.marker(0xd8);
    const uint8_t* at = file + 2;
    for (;;) {  // the header's segments as they are, but for tables of codes and the interval
        while (at[1] == 0xff) at++;
        if (at[1] == 0xda) break;
        const uint8_t* after = at + 2 + (at[2] << 8 | at[3]);
        if (at[1] != 0xc4 && at[1] != 0xdd) writer.bytes.insert(writer.bytes.end(), at, after);
        at = after;
    }
    std::vector<Encoder> encoders;
    for (int t = 0; t < 8; t++) {
        const Codes codes = shortest(tokens.counts[t]);
        encoders.emplace_back(codes);
        if (codes.total == 0) continue;
        writer.marker(0xc4);
        writer.word(2 + 17 + codes.total);
        writer.bytes.push_back(t / 4 << 4 | t % 4);
        writer.bytes.insert(writer.bytes.end(), codes.counts, codes.counts + 16);
        writer.bytes.insert(writer.bytes.end(), codes.symbols, codes.symbols + codes.total);
    }
    writer.marker(0xdd);
    writer.word(4);
    writer.word(every);
    writer.bytes.insert(writer.bytes.end(), at, header.entropy);  // start of scan
    size_t t = 0;
    for (long m = 0; m < scan.total; m++) {
        if (m && m % every == 0) {
            writer.end_segment();
            writer.marker(0xd0 | ((m / every - 1) & 7));
        }
        for (; t < tokens.ends[m]; t++) {
            const Token& token = tokens.all[t];
            const Encoder& encoder = encoders[token.table];
            writer.put(encoder.code[token.symbol], encoder.length[token.symbol]);
            if (token.symbol & 15) writer.put(token.bits, token.symbol & 15);
        }
    }
    writer.end_segment();
    writer.marker(0xd9);
    return DONE;
}

}  // namespace

// Write the file with a restart marker behind each `every` MCUs, 1 to 65,535, to out. Returns its length, 0 where that is
// more than `capacity`, or a negative code.
extern "C" long jpeg_with_restart_markers(const uint8_t* file, int64_t length, long every, uint8_t* out, long capacity) try {
    Writer writer;
    if (const Code code = rewrite(file, length, every, writer)) return -code;
    const long written = writer.bytes.size();
    if (written > capacity) return 0;
    std::memcpy(out, writer.bytes.data(), written);
    return written;
} catch (const std::bad_alloc&) {
    return -OTHER_KIND;
}
