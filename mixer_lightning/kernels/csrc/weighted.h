// Sums of bytes times weights of 24 bits with a sign, in as many columns at once as the processor has room for.
//
// Processors multiply short numbers faster than long ones: a weight is taken apart into digits with signs, each of which
// has its sum. Sums are of 32 bits, where what is carried out of them is lost in all ways alike: all give the same bits.
#pragma once
#include <cstdint>
#include <cstring>

#include "bytes.h"

namespace resample {

#if defined __AVX512VNNI__ && defined __AVX512BW__ && defined __AVX512VL__

// Four products of bytes are added at once: three digits of 8 bits.
class Weighted {
  public:
    static constexpr long ROWS = 4, WIDTH = 64;

    // The digits of four weights.
    struct Factors {
        int of[3];

        explicit Factors(const int* weights) {
            __m128i left = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights));
            for (int& digit : of) {
                const __m128i low = _mm_srai_epi32(_mm_slli_epi32(left, 24), 24);
                left = _mm_srai_epi32(_mm_sub_epi32(left, low), 8);
                digit = _mm_cvtsi128_si32(_mm_cvtepi32_epi8(low));
            }
        }
        Factors() = default;
    };

    explicit Weighted(int first) {
        for (int part = 0; part < 4; part++) {
            sums[0][part] = _mm512_set1_epi32(first);
            sums[1][part] = sums[2][part] = _mm512_setzero_si512();
        }
    }

    // Of ROWS rows `left` are there; the first stands for those that are not, whose weights are 0.
    void add(const uint8_t* rows, long stride, long left, const Factors& factors) {
        const __m512i a = row(rows), b = row(rows + (left > 1 ? stride : 0));
        const __m512i c = row(rows + (left > 2 ? 2 * stride : 0)), d = row(rows + (left > 3 ? 3 * stride : 0));
        const __m512i ab[2] = {_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b)};
        const __m512i cd[2] = {_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d)};
        const __m512i fours[4] = {_mm512_unpacklo_epi16(ab[0], cd[0]), _mm512_unpackhi_epi16(ab[0], cd[0]),
                                  _mm512_unpacklo_epi16(ab[1], cd[1]), _mm512_unpackhi_epi16(ab[1], cd[1])};
        for (int digit = 0; digit < 3; digit++)
            for (int part = 0; part < 4; part++)
                sums[digit][part] =
                    _mm512_dpbusd_epi32(sums[digit][part], fours[part], _mm512_set1_epi32(factors.of[digit]));
    }

    // The sums / 2^BITS, rounded down and cut off.
    template <int BITS>
    void store(uint8_t* to) const {
        __m512i whole[4];
        for (int part = 0; part < 4; part++) {
            const __m512i upper = _mm512_add_epi32(_mm512_slli_epi32(sums[2][part], 8), sums[1][part]);
            whole[part] = _mm512_srai_epi32(_mm512_add_epi32(_mm512_slli_epi32(upper, 8), sums[0][part]), BITS);
        }
        const __m512i words[2] = {_mm512_packs_epi32(whole[0], whole[1]), _mm512_packs_epi32(whole[2], whole[3])};
        _mm512_storeu_si512(to, _mm512_packus_epi16(words[0], words[1]));
    }

  private:
    __m512i sums[3][4];

    static __m512i row(const uint8_t* from) { return _mm512_loadu_si512(from); }
};

#elif defined __AVX2__

// Two products of words are added at once: two digits of 12 bits.
class Weighted {
  public:
    static constexpr long ROWS = 2, WIDTH = 32;

    // The digits of two weights.
    struct Factors {
        int of[2];

        explicit Factors(const int* weights) {
            const int low[2] = {low_digit(weights[0]), low_digit(weights[1])};
            of[0] = pair(low[0], low[1]);
            of[1] = pair((weights[0] - low[0]) >> 12, (weights[1] - low[1]) >> 12);
        }
        Factors() = default;

      private:
        static int low_digit(int weight) { return ((weight + 2048) & 4095) - 2048; }
        static int pair(int first, int second) {
            return static_cast<int>((first & 0xffff) | static_cast<uint32_t>(second) << 16);
        }
    };

    explicit Weighted(int first) {
        for (int part = 0; part < 4; part++) {
            sums[0][part] = _mm256_set1_epi32(first);
            sums[1][part] = _mm256_setzero_si256();
        }
    }

    // Of ROWS rows `left` are there; the first stands for one that is not, whose weight is 0.
    void add(const uint8_t* rows, long stride, long left, const Factors& factors) {
        const __m256i a = row(rows), b = row(rows + (left > 1 ? stride : 0)), zero = _mm256_setzero_si256();
        const __m256i ab[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
        const __m256i pairs[4] = {_mm256_unpacklo_epi8(ab[0], zero), _mm256_unpackhi_epi8(ab[0], zero),
                                  _mm256_unpacklo_epi8(ab[1], zero), _mm256_unpackhi_epi8(ab[1], zero)};
        for (int digit = 0; digit < 2; digit++) {
            const __m256i factor = _mm256_set1_epi32(factors.of[digit]);
            for (int part = 0; part < 4; part++)
                sums[digit][part] = _mm256_add_epi32(sums[digit][part], _mm256_madd_epi16(pairs[part], factor));
        }
    }

    // The sums / 2^BITS, rounded down and cut off.
    template <int BITS>
    void store(uint8_t* to) const {
        __m256i whole[4];
        for (int part = 0; part < 4; part++)
            whole[part] =
                _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(sums[1][part], 12), sums[0][part]), BITS);
        const __m256i words[2] = {_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3])};
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_packus_epi16(words[0], words[1]));
    }

  private:
    __m256i sums[2][4];

    static __m256i row(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
};

#else

// One product at a time.
class Weighted {
  public:
    static constexpr long ROWS = 1, WIDTH = 8;

    struct Factors {
        int weight;

        explicit Factors(const int* weights) : weight(*weights) {}
        Factors() = default;
    };

    explicit Weighted(int first) : sums(bytes::Eight{} + first) {}

    void add(const uint8_t* row, long, long, const Factors& factors) { sums += bytes::load_eight(row) * factors.weight; }

    // The sums / 2^BITS, rounded down and cut off.
    template <int BITS>
    void store(uint8_t* to) const {
        bytes::store(sums >> BITS, to);
    }

  private:
    bytes::Eight sums;
};

#endif

}  // namespace resample
