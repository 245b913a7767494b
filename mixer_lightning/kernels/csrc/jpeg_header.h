// What a JPEG file says before its entropy-coded data: T.81, annex B.
//
// Every read is within [at, end). Sizes, tables and scan parameters are checked here, so that the stages behind may
// rely on them. Whatever is not plain is refused with a code, and another decoder says what it is.
#pragma once
#include <cstdint>
#include <cstring>

namespace jpeg {

enum Code : int { DONE = 0, OTHER_KIND = 1, DAMAGED = 2 };

// Places of coefficients in a block, row by row, in the order of the file.
constexpr uint8_t NATURAL[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63};

// How many codes there are of each length, from 1 bit on, and the symbols in the order of their codes.
struct Codes {
    uint8_t counts[16] = {};
    uint8_t symbols[256] = {};
    int total = 0;

    bool operator==(const Codes& other) const {
        return total == other.total && !std::memcmp(counts, other.counts, 16) &&
               !std::memcmp(symbols, other.symbols, total);
    }
};

struct Component {
    int id = 0;
    int h = 1, v = 1;           // blocks in an MCU, across and down
    int quantisation = 0;       // number of its table
    int dc = 0, ac = 0;         // numbers of its Huffman tables
    long width = 0, height = 0; // samples that are of the image
};

struct Header {
    long width = 0, height = 0;
    int components = 0;
    Component component[3];
    int h = 1, v = 1;  // the largest of the components'
    uint16_t quantisation[4][64] = {};  // row by row
    Codes dc[4], ac[4];
    long restart_interval = 0;  // in MCUs; 0: none
    const uint8_t* entropy = nullptr;  // where the scan's data begin

    long mcus_across() const { return (width + 8 * h - 1) / (8 * h); }
    long mcus_down() const { return (height + 8 * v - 1) / (8 * v); }
    long blocks_of_an_mcu() const {
        long sum = 0;
        for (int c = 0; c < components; c++) sum += component[c].h * component[c].v;
        return sum;
    }
};

class HeaderReader {
  public:
    HeaderReader(const uint8_t* file, long length, Header& header)
        : at(file), end(file + length), header(header) {}

    Code read() {
        if (end - at < 4 || at[0] != 0xff || at[1] != 0xd8) return OTHER_KIND;
        at += 2;
        for (;;) {
            if (end - at < 2 || *at++ != 0xff) return DAMAGED;
            while (at < end && *at == 0xff) at++;  // fill bytes
            if (at == end) return DAMAGED;
            const int marker = *at++;
            if (marker == 0x01 || (marker >= 0xd0 && marker <= 0xd9) || marker == 0) return DAMAGED;
            if (end - at < 2) return DAMAGED;
            const long length = word(at);
            if (length < 2 || length > end - at) return DAMAGED;
            const uint8_t *body = at + 2, *after = at + length;
            at = after;
            Code code = DONE;
            switch (marker) {
                case 0xc0: case 0xc1: code = frame(body, after); break;
                case 0xc4: code = huffman(body, after); break;
                case 0xdb: code = quantisation(body, after); break;
                case 0xdd:
                    if (after - body != 2) return DAMAGED;
                    header.restart_interval = word(body);
                    break;
                case 0xda: return scan(body, after);
                case 0xe0: saw_jfif |= after - body >= 12 && !std::memcmp(body, "JFIF", 5); break;
                case 0xee:
                    if (after - body >= 12 && !std::memcmp(body, "Adobe", 5)) adobe = body[11];
                    break;
                default:
                    // other frames, arithmetic coding, what changes a size later
                    if (marker < 0xe0 || (marker > 0xef && marker != 0xfe)) return OTHER_KIND;
            }
            if (code != DONE) return code;
        }
    }

  private:
    const uint8_t* at;
    const uint8_t* end;
    Header& header;
    bool has_quantisation[4] = {}, has_dc[4] = {}, has_ac[4] = {}, saw_jfif = false;
    int adobe = -1;

    static int word(const uint8_t* bytes) { return bytes[0] << 8 | bytes[1]; }

    Code frame(const uint8_t* body, const uint8_t* after) {
        if (header.components) return DAMAGED;  // a second one
        if (after - body < 6) return DAMAGED;
        header.height = word(body + 1), header.width = word(body + 3);
        const int components = body[5];
        if (body[0] != 8 || !header.height || !header.width) return OTHER_KIND;
        if (components != 1 && components != 3) return OTHER_KIND;
        if (after - body != 6 + 3 * components) return DAMAGED;
        for (int c = 0; c < components; c++) {
            Component& each = header.component[c];
            const uint8_t* said = body + 6 + 3 * c;
            each.id = said[0], each.h = said[1] >> 4, each.v = said[1] & 15, each.quantisation = said[2];
            if (each.quantisation > 3) return DAMAGED;
            if (components == 1) each.h = each.v = 1;  // a scan of one component has one block in an MCU
            const bool is_plain = c == 0 ? each.h >= 1 && each.h <= 2 && each.v >= 1 && each.v <= 2
                                         : each.h == 1 && each.v == 1;
            if (!is_plain) return OTHER_KIND;
        }
        header.components = components;
        header.h = header.component[0].h, header.v = header.component[0].v;
        for (int c = 0; c < components; c++) {
            Component& each = header.component[c];
            each.width = (header.width * each.h + header.h - 1) / header.h;
            each.height = (header.height * each.v + header.v - 1) / header.v;
        }
        return DONE;
    }

    Code quantisation(const uint8_t* body, const uint8_t* after) {
        while (body < after) {
            const int wide = *body >> 4, number = *body & 15;
            body++;
            if (wide > 1 || number > 3 || after - body < 64 * (wide + 1)) return DAMAGED;
            for (int k = 0; k < 64; k++, body += wide + 1)
                header.quantisation[number][NATURAL[k]] = wide ? word(body) : *body;
            has_quantisation[number] = true;
        }
        return DONE;
    }

    Code huffman(const uint8_t* body, const uint8_t* after) {
        while (body < after) {
            if (after - body < 17) return DAMAGED;
            const int is_ac = *body >> 4, number = *body & 15;
            if (is_ac > 1 || number > 3) return DAMAGED;
            Codes codes;
            std::memcpy(codes.counts, body + 1, 16);
            body += 17;
            // Of each length, codes are whole numbers in a row; none is all ones.
            long code = 0;
            for (int length = 1; length <= 16; length++) {
                code = 2 * code + codes.counts[length - 1];
                if (code >= 1L << length && codes.counts[length - 1]) return DAMAGED;
                codes.total += codes.counts[length - 1];
            }
            if (codes.total > 256 || after - body < codes.total) return DAMAGED;
            std::memcpy(codes.symbols, body, codes.total);
            body += codes.total;
            for (int i = 0; i < codes.total && !is_ac; i++)
                if (codes.symbols[i] > 15) return DAMAGED;
            (is_ac ? header.ac : header.dc)[number] = codes;
            (is_ac ? has_ac : has_dc)[number] = true;
        }
        return DONE;
    }

    Code scan(const uint8_t* body, const uint8_t* after) {
        const int components = header.components;
        if (!components) return DAMAGED;
        if (after - body < 1) return DAMAGED;
        if (body[0] != components) return OTHER_KIND;  // a scan for each
        if (after - body != 4 + 2 * components) return DAMAGED;
        for (int c = 0; c < components; c++) {
            Component& each = header.component[c];
            if (body[1 + 2 * c] != each.id) return OTHER_KIND;
            each.dc = body[2 + 2 * c] >> 4, each.ac = body[2 + 2 * c] & 15;
            if (each.dc > 3 || each.ac > 3 || !has_dc[each.dc] || !has_ac[each.ac]) return DAMAGED;
            if (!has_quantisation[each.quantisation]) return DAMAGED;
        }
        const uint8_t* progression = body + 1 + 2 * components;
        if (progression[0] != 0 || progression[1] != 63 || progression[2] != 0) return OTHER_KIND;
        if (components == 3 && !is_ycc()) return OTHER_KIND;
        header.entropy = after;
        return DONE;
    }

    // As libjpeg guesses it.
    bool is_ycc() const {
        if (saw_jfif) return true;
        if (adobe >= 0) return adobe == 1;
        const Component* each = header.component;
        return !(each[0].id == 'R' && each[1].id == 'G' && each[2].id == 'B');
    }
};

}  // namespace jpeg
