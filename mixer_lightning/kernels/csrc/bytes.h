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

// Call found(place) for each byte of 0xff in [from, end), until it says that it is enough.
template <class Found>
static inline void each_ff(const uint8_t* from, const uint8_t* end, const Found& found) {
#ifdef __AVX2__
    for (; end - from >= 32; from += 32) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
        uint32_t places = _mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_set1_epi8(-1)));
        for (; places; places &= places - 1)
            if (found(from + __builtin_ctz(places))) return;
    }
#endif
    while (from < end && (from = static_cast<const uint8_t*>(std::memchr(from, 0xff, end - from))))
        if (found(from++)) return;
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

// Words of a and b in turn: the first four of each eight, or the last four.
static inline Words first_halves(Words a, Words b) {
    return __builtin_shuffle(a, b, Words{0, 16, 1, 17, 2, 18, 3, 19, 8, 24, 9, 25, 10, 26, 11, 27});
}
static inline Words last_halves(Words a, Words b) {
    return __builtin_shuffle(a, b, Words{4, 20, 5, 21, 6, 22, 7, 23, 12, 28, 13, 29, 14, 30, 15, 31});
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

static inline Words words(const int16_t* from) {
    typedef Words Unaligned __attribute__((aligned(2), may_alias));
    return *reinterpret_cast<const Unaligned*>(from);
}

static inline Words words(const uint8_t* from) {
#ifdef __AVX2__
    return (Words)_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Words v;
    for (int i = 0; i < 16; i++) v[i] = from[i];
    return v;
#endif
}

// Signed words, cut off.
static inline void store(Words v, uint8_t* to) {
#ifdef __AVX2__
    const __m128i last = _mm256_extracti128_si256((__m256i)v, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(_mm256_castsi256_si128((__m256i)v), last));
#else
    for (int i = 0; i < 16; i++) to[i] = cut(static_cast<int16_t>(v[i]));
#endif
}

// Signed words times a factor / 2^16, rounded.
static inline Words scaled(Words v, int factor) {
#ifdef __AVX2__
    const __m256i f = _mm256_set1_epi16(factor);
    return (Words)_mm256_mulhi_epi16((__m256i)v, f) + ((Words)_mm256_mullo_epi16((__m256i)v, f) >> 15);
#else
    for (int i = 0; i < 16; i++) v[i] = (static_cast<int16_t>(v[i]) * factor + 32768) >> 16;
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
    typedef uint64_t Pair __attribute__((vector_size(16)));
    Half row[8], pairs[4];
    Short fours[4];
    Long columns[4];
    for (int y = 0; y < 8; y++) {
        uint64_t eight;
        std::memcpy(&eight, from + y * from_stride, 8);
        row[y] = (Half)Pair{eight, 0};  // in a register: half a vector that is written to memory is slow to read as a whole
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
    for (int x = 0; x < 8; x++) {
        const uint64_t eight = ((Pair)columns[x / 2])[x % 2];
        std::memcpy(to + x * to_stride, &eight, 8);
    }
}

}  // namespace bytes
