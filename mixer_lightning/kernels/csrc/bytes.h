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

// A tile of 8 x 8: byte (y, x) of `from` becomes byte (x, y) of `to`.
static inline void transpose_tile(const uint8_t* from, long from_stride, uint8_t* to, long to_stride) {
    typedef uint16_t Words __attribute__((vector_size(16)));
    typedef uint32_t Longs __attribute__((vector_size(16)));
    Half row[8], pairs[4];
    Words fours[4];
    Longs columns[4];
    for (int y = 0; y < 8; y++) {
        row[y] = Half{};
        std::memcpy(&row[y], from + y * from_stride, 8);
    }
    for (int i = 0; i < 4; i++)
        pairs[i] = __builtin_shuffle(row[2 * i], row[2 * i + 1],
                                     Half{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
    for (int i = 0; i < 4; i += 2) {
        const Words a = (Words)pairs[i], b = (Words)pairs[i + 1];
        fours[i] = __builtin_shuffle(a, b, Words{0, 8, 1, 9, 2, 10, 3, 11});
        fours[i + 1] = __builtin_shuffle(a, b, Words{4, 12, 5, 13, 6, 14, 7, 15});
    }
    for (int i = 0; i < 2; i++) {
        const Longs a = (Longs)fours[i], b = (Longs)fours[i + 2];
        columns[2 * i] = __builtin_shuffle(a, b, Longs{0, 4, 1, 5});
        columns[2 * i + 1] = __builtin_shuffle(a, b, Longs{2, 6, 3, 7});
    }
    for (int x = 0; x < 8; x++)
        std::memcpy(to + x * to_stride, reinterpret_cast<const uint8_t*>(&columns[x / 2]) + x % 2 * 8, 8);
}

}  // namespace bytes
