// The inverse DCT of blocks, two at a time, to the same samples as libjpeg's default one (its "islow").
//
// Loeffler, Ligtenberg and Moschytz, Practical fast 1-D DCT algorithms with 11 multiplications, ICASSP 1989, in whole
// numbers: factors of 13 bits, 2 more bits between the passes. As in libjpeg-turbo's vectors, numbers have 16 bits
// outside of sums, cut off between the passes, and each sum of two products is one step. Sums are unsigned, where
// overflow is defined: a hostile file may bring it about.
#pragma once
#include <cstdint>
#include <cstring>

#include "bytes.h"

namespace jpeg {

// Coefficients of two blocks: row by row, of each row the first block's eight and then the second's.
struct Pair {
    alignas(64) int16_t coefficients[128];

    static constexpr int SECOND = 8;  // from a place in the first block to the same in the second
};

namespace idct {

using bytes::first_halves, bytes::last_halves, bytes::Longs, bytes::Words;

// Sixteen transforms at once, one in each lane; each sum is rounded and loses BITS bits.
template <int BITS>
static inline void transform(Words* r) {
    constexpr int F_0_298631336 = 2446, F_0_390180644 = 3196, F_0_541196100 = 4433, F_0_765366865 = 6270,
                  F_0_899976223 = 7373, F_1_175875602 = 9633, F_1_501321110 = 12299, F_1_847759065 = 15137,
                  F_1_961570560 = 16069, F_2_053119869 = 16819, F_2_562915447 = 20995, F_3_072711026 = 25172;
    Longs out[2][8];
    const Words z3 = (Words)(r[7] + r[3]), z4 = (Words)(r[5] + r[1]);
    for (int half = 0; half < 2; half++) {
        const auto both = [half](Words a, Words b) { return half ? last_halves(a, b) : first_halves(a, b); };
        const Words by_0_4 = both(r[0], r[4]), by_2_6 = both(r[2], r[6]), by_7_1 = both(r[7], r[1]);
        const Words by_5_3 = both(r[5], r[3]), by_z = both(z3, z4);
        const Longs low = bytes::products(by_2_6, F_0_541196100, F_0_541196100 - F_1_847759065);
        const Longs high = bytes::products(by_2_6, F_0_541196100 + F_0_765366865, F_0_541196100);
        const Longs sum = bytes::products(by_0_4, 1 << 13, 1 << 13) + (1u << (BITS - 1));
        const Longs difference = bytes::products(by_0_4, 1 << 13, -(1 << 13)) + (1u << (BITS - 1));
        const Longs even[4] = {sum + high, difference + low, difference - low, sum - high};

        const Longs a = bytes::products(by_z, F_1_175875602 - F_1_961570560, F_1_175875602);
        const Longs b = bytes::products(by_z, F_1_175875602, F_1_175875602 - F_0_390180644);
        const Longs odd[4] = {bytes::products(by_7_1, -F_0_899976223, F_1_501321110 - F_0_899976223) + b,
                              bytes::products(by_5_3, -F_2_562915447, F_3_072711026 - F_2_562915447) + a,
                              bytes::products(by_5_3, F_2_053119869 - F_2_562915447, -F_2_562915447) + b,
                              bytes::products(by_7_1, F_0_298631336 - F_0_899976223, -F_0_899976223) + a};
        for (int i = 0; i < 4; i++) {
            out[half][i] = bytes::shifted_right(even[i] + odd[i], BITS);
            out[half][7 - i] = bytes::shifted_right(even[i] - odd[i], BITS);
        }
    }
    for (int i = 0; i < 8; i++) r[i] = bytes::packed(out[0][i], out[1][i]);
}

// Each block for itself.
static inline void transpose(Words* r) {
    Words s[8], t[8];
    for (int i = 0; i < 4; i++) s[2 * i] = first_halves(r[i], r[i + 4]), s[2 * i + 1] = last_halves(r[i], r[i + 4]);
    for (int i = 0; i < 4; i++) t[2 * i] = first_halves(s[i], s[i + 4]), t[2 * i + 1] = last_halves(s[i], s[i + 4]);
    for (int i = 0; i < 4; i++) r[2 * i] = first_halves(t[i], t[i + 4]), r[2 * i + 1] = last_halves(t[i], t[i + 4]);
}

}  // namespace idct

// Where the samples of a block go, and the steps of quantisation that its coefficients are multiplied by, row by row.
struct Place {
    const uint16_t* steps;
    uint8_t* to;  // those of column x to to[x * stride]
    long stride;
};

// Two blocks become samples, and zeros.
static inline void inverse_dct(Pair& pair, const Place& first, const Place& second) {
    using bytes::Words;
    Words r[8];
    for (int i = 0; i < 8; i++) {
        r[i] = bytes::words(pair.coefficients + 16 * i);
        r[i] *= bytes::both(first.steps + 8 * i, second.steps + 8 * i);
    }
    std::memset(pair.coefficients, 0, sizeof pair.coefficients);
    idct::transform<11>(r);
    idct::transpose(r);
    idct::transform<18>(r);
    for (int x = 0; x < 8; x += 2) {
        uint64_t columns[4];  // two of the first block, and of the second
        bytes::store_around_128(r[x], r[x + 1], reinterpret_cast<uint8_t*>(columns));
        for (int i = 0; i < 2; i++) {
            std::memcpy(first.to + (x + i) * first.stride, &columns[i], 8);
            std::memcpy(second.to + (x + i) * second.stride, &columns[2 + i], 8);
        }
    }
}

// The same of a block whose coefficients are all 0 but the first.
static inline void inverse_dct_of_a_mean(int16_t first, const Place& place) {
    const int mean = static_cast<int16_t>(static_cast<uint16_t>(first) * place.steps[0]);
    const int value = ((mean + 4) >> 3) + 128;
    for (int x = 0; x < 8; x++) std::memset(place.to + x * place.stride, bytes::cut(value), 8);
}

}  // namespace jpeg
