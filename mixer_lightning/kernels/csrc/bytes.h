// Vectors of whole numbers of 32 bits that are read from bytes and written to bytes, cut off at 0 and 255.
//
// Written out for x86, because compilers take such a conversion apart into single numbers. All ways give the same bits.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __SSE4_1__
#include <immintrin.h>
#endif

namespace bytes {

typedef int32_t Eight __attribute__((vector_size(32)));
typedef uint8_t Half __attribute__((vector_size(16)));

static inline int cut(int v) { return v < 0 ? 0 : v > 255 ? 255 : v; }

static inline void store(Eight v, uint8_t* to) {
#ifdef __SSE4_1__
    __m128i half[2];
    std::memcpy(half, &v, 32);
    const __m128i words = _mm_packs_epi32(half[0], half[1]);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
#else
    for (int i = 0; i < 8; i++) to[i] = cut(v[i]);
#endif
}

static inline Eight load_eight(const uint8_t* from) {
#ifdef __AVX2__
    return (Eight)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    Eight v;
    for (int i = 0; i < 8; i++) v[i] = from[i];
    return v;
#endif
}

#if defined __AVX512F__ && defined __AVX512BW__
constexpr long LANES = 16;
typedef int32_t Ints __attribute__((vector_size(64)));

static inline Ints load(const uint8_t* from) {
    return (Ints)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
static inline void store(Ints v, uint8_t* to) {
    const __m512i positive = _mm512_max_epi32((__m512i)v, _mm512_setzero_si512());
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(positive));
}
#else
constexpr long LANES = 8;
typedef Eight Ints;

static inline Ints load(const uint8_t* from) { return load_eight(from); }
#endif

#if defined __AVX512VNNI__ && defined __AVX512VL__
#define BYTES_HAVE_DOT
// 32 sums of bytes times weights, four at a time, where the processor adds four products of bytes at once. A weight of 24
// bits is three digits of 8 bits with a sign; each has its sum.
class Weighted {
  public:
    explicit Weighted(int first) {
        for (int part = 0; part < 4; part++) {
            sums[0][part] = _mm256_set1_epi32(first);
            sums[1][part] = sums[2][part] = _mm256_setzero_si256();
        }
    }

    // The digits of four weights.
    struct Digits {
        int of[3];

        explicit Digits(const int* weights) {
            __m128i left = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights));
            for (int& digit : of) {
                const __m128i low = _mm_srai_epi32(_mm_slli_epi32(left, 24), 24);
                left = _mm_srai_epi32(_mm_sub_epi32(left, low), 8);
                digit = _mm_cvtsi128_si32(_mm_cvtepi32_epi8(low));
            }
        }
        Digits() = default;
    };

    void add(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, const Digits& weights) {
        const __m256i ra = row(a), rb = row(b), rc = row(c), rd = row(d);
        const __m256i ab[2] = {_mm256_unpacklo_epi8(ra, rb), _mm256_unpackhi_epi8(ra, rb)};
        const __m256i cd[2] = {_mm256_unpacklo_epi8(rc, rd), _mm256_unpackhi_epi8(rc, rd)};
        const __m256i fours[4] = {_mm256_unpacklo_epi16(ab[0], cd[0]), _mm256_unpackhi_epi16(ab[0], cd[0]),
                                  _mm256_unpacklo_epi16(ab[1], cd[1]), _mm256_unpackhi_epi16(ab[1], cd[1])};
        for (int digit = 0; digit < 3; digit++)
            for (int part = 0; part < 4; part++)
                sums[digit][part] =
                    _mm256_dpbusd_epi32(sums[digit][part], fours[part], _mm256_set1_epi32(weights.of[digit]));
    }

    template <int BITS>
    void store(uint8_t* to) const {
        __m256i whole[4];
        for (int part = 0; part < 4; part++) {
            const __m256i upper = _mm256_add_epi32(_mm256_slli_epi32(sums[2][part], 8), sums[1][part]);
            whole[part] = _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(upper, 8), sums[0][part]), BITS);
        }
        const __m256i words[2] = {_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3])};
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_packus_epi16(words[0], words[1]));
    }

  private:
    __m256i sums[3][4];

    static __m256i row(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
};
#endif

typedef uint16_t Words __attribute__((vector_size(32)));
typedef uint32_t Longs __attribute__((vector_size(32)));

static inline Longs shifted_right(Longs v, int bits) { return (Longs)((Eight)v >> bits); }

// Eight words and eight others.
static inline Words both(const uint16_t* first, const uint16_t* second) {
#ifdef __AVX2__
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second));
    return (Words)_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
#else
    Words v;
    std::memcpy(&v, first, 16);
    std::memcpy(reinterpret_cast<char*>(&v) + 16, second, 16);
    return v;
#endif
}

// Of each two signed words the first one times a plus the second one times b.
static inline Longs products(Words v, int a, int b) {
#ifdef __AVX2__
    return (Longs)_mm256_madd_epi16((__m256i)v, _mm256_set1_epi32(static_cast<int>((a & 0xffff) | static_cast<uint32_t>(b) << 16)));
#else
    return shifted_right((Longs)v << 16, 16) * static_cast<uint32_t>(a) + shifted_right((Longs)v, 16) * static_cast<uint32_t>(b);
#endif
}

// Signed words of the first four numbers of a, of b, of the last four of a, and of b, cut off where they are too large.
static inline Words packed(Longs a, Longs b) {
#ifdef __AVX2__
    return (Words)_mm256_packs_epi32((__m256i)a, (__m256i)b);
#else
    Words v;
    for (int i = 0; i < 16; i++) {
        const int32_t from = (i & 4 ? b : a)[(i & 3) | (i >> 1 & 4)];
        v[i] = from < -32768 ? -32768 : from > 32767 ? 32767 : from;
    }
    return v;
#endif
}

// 128 and a signed word each, cut off: of the first eight of a, of b, of the last eight of a, and of b.
static inline void store_around_128(Words a, Words b, uint8_t* to) {
#ifdef __AVX2__
    const __m256i v = _mm256_xor_si256(_mm256_packs_epi16((__m256i)a, (__m256i)b), _mm256_set1_epi8(-128));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v);
#else
    for (int i = 0; i < 32; i++) to[i] = cut(static_cast<int16_t>((i & 8 ? b : a)[(i & 7) | (i >> 1 & 8)]) + 128);
#endif
}

// A tile of 8 x 8: byte (y, x) of `from` becomes byte (x, y) of `to`.
static inline void transpose_tile(const uint8_t* from, long from_stride, uint8_t* to, long to_stride) {
    typedef uint16_t Short __attribute__((vector_size(16)));
    typedef uint32_t Long __attribute__((vector_size(16)));
    Half row[8], pairs[4];
    Short fours[4];
    Long columns[4];
    for (int y = 0; y < 8; y++) {
        row[y] = Half{};
        std::memcpy(&row[y], from + y * from_stride, 8);
    }
    for (int i = 0; i < 4; i++)
        pairs[i] = __builtin_shuffle(row[2 * i], row[2 * i + 1],
                                     Half{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
    for (int i = 0; i < 4; i += 2) {
        const Short a = (Short)pairs[i], b = (Short)pairs[i + 1];
        fours[i] = __builtin_shuffle(a, b, Short{0, 8, 1, 9, 2, 10, 3, 11});
        fours[i + 1] = __builtin_shuffle(a, b, Short{4, 12, 5, 13, 6, 14, 7, 15});
    }
    for (int i = 0; i < 2; i++) {
        const Long a = (Long)fours[i], b = (Long)fours[i + 2];
        columns[2 * i] = __builtin_shuffle(a, b, Long{0, 4, 1, 5});
        columns[2 * i + 1] = __builtin_shuffle(a, b, Long{2, 6, 3, 7});
    }
    for (int x = 0; x < 8; x++)
        std::memcpy(to + x * to_stride, reinterpret_cast<const uint8_t*>(&columns[x / 2]) + x % 2 * 8, 8);
}

}  // namespace bytes
