// The inverse DCT of a block, to the same samples as libjpeg's default one (its "islow").
//
// Loeffler, Ligtenberg and Moschytz, Practical fast 1-D DCT algorithms with 11 multiplications, ICASSP 1989, in whole
// numbers: factors of 13 bits, 2 more bits between the passes. In unsigned numbers, where overflow is defined: a hostile
// file may bring it about.
#pragma once
#include <cstdint>
#include <cstring>

#include "bytes.h"

namespace jpeg {

typedef uint32_t Eight __attribute__((vector_size(32)));
typedef int32_t SignedEight __attribute__((vector_size(32)));
typedef int16_t ShortEight __attribute__((vector_size(16), aligned(2)));

static inline Eight shifted_right(Eight v, int bits) { return (Eight)((SignedEight)v >> bits); }

// Eight transforms at once, one in each lane; each sum is rounded and loses `bits` bits.
static inline void transform(Eight* r, int bits) {
    constexpr uint32_t F_0_298631336 = 2446, F_0_390180644 = 3196, F_0_541196100 = 4433, F_0_765366865 = 6270,
                       F_0_899976223 = 7373, F_1_175875602 = 9633, F_1_501321110 = 12299, F_1_847759065 = 15137,
                       F_1_961570560 = 16069, F_2_053119869 = 16819, F_2_562915447 = 20995, F_3_072711026 = 25172;
    const Eight turned = (r[2] + r[6]) * F_0_541196100;
    const Eight low = turned - r[6] * F_1_847759065, high = turned + r[2] * F_0_765366865;
    const uint32_t half = 1u << (bits - 1);
    const Eight sum = ((r[0] + r[4]) << 13) + half, difference = ((r[0] - r[4]) << 13) + half;
    const Eight even[4] = {sum + high, difference + low, difference - low, sum - high};

    const Eight common = (r[7] + r[3] + r[5] + r[1]) * F_1_175875602;
    const Eight a = common - (r[7] + r[3]) * F_1_961570560, b = common - (r[5] + r[1]) * F_0_390180644;
    const Eight c = (r[7] + r[1]) * F_0_899976223, d = (r[5] + r[3]) * F_2_562915447;
    const Eight odd[4] = {r[1] * F_1_501321110 - c + b, r[3] * F_3_072711026 - d + a, r[5] * F_2_053119869 - d + b,
                          r[7] * F_0_298631336 - c + a};
    for (int i = 0; i < 4; i++) {
        r[i] = shifted_right(even[i] + odd[i], bits);
        r[7 - i] = shifted_right(even[i] - odd[i], bits);
    }
}

static inline void transpose(Eight* r) {
    Eight s[8], t[8];
    for (int i = 0; i < 8; i += 2) {
        s[i] = __builtin_shuffle(r[i], r[i + 1], Eight{0, 8, 2, 10, 4, 12, 6, 14});
        s[i + 1] = __builtin_shuffle(r[i], r[i + 1], Eight{1, 9, 3, 11, 5, 13, 7, 15});
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            t[i + j] = __builtin_shuffle(s[i + j], s[i + j + 2], Eight{0, 1, 8, 9, 4, 5, 12, 13});
            t[i + j + 2] = __builtin_shuffle(s[i + j], s[i + j + 2], Eight{2, 3, 10, 11, 6, 7, 14, 15});
        }
    for (int i = 0; i < 4; i++) {
        r[i] = __builtin_shuffle(t[i], t[i + 4], Eight{0, 1, 2, 3, 8, 9, 10, 11});
        r[i + 4] = __builtin_shuffle(t[i], t[i + 4], Eight{4, 5, 6, 7, 12, 13, 14, 15});
    }
}

// Coefficients [8, 8] times their steps of quantisation become samples; those of column x go to to[x * stride].
static inline void inverse_dct(const int16_t* block, const uint16_t* steps, uint8_t* to, long stride) {
    Eight r[8];
    for (int i = 0; i < 8; i++) {
        ShortEight c, s;
        std::memcpy(&c, block + 8 * i, 16);
        std::memcpy(&s, steps + 8 * i, 16);
        // in 16 bits, as libjpeg-turbo
        typedef uint16_t Words __attribute__((vector_size(16)));
        r[i] = (Eight)__builtin_convertvector((ShortEight)((Words)c * (Words)s), SignedEight);
    }
    transform(r, 11);
    transpose(r);
    transform(r, 18);
    for (int x = 0; x < 8; x++) bytes::store((SignedEight)r[x] + 128, to + x * stride);
}

// The same of a block whose coefficients are all 0 but the first.
static inline void inverse_dct_of_a_mean(int16_t first, uint16_t step, uint8_t* to, long stride) {
    const int mean = static_cast<int16_t>(static_cast<uint16_t>(first) * step), value = ((mean + 4) >> 3) + 128;
    for (int x = 0; x < 8; x++) std::memset(to + x * stride, bytes::cut(value), 8);
}

}  // namespace jpeg
