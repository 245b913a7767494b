// Operations on levels: tables, and blends of pixels of the same place, with the rounding of Pillow or of TensorFlow.
//
// An image is three planes of n bytes, one behind the other. What is float32 here is rounded after each operation: a
// compiler must not fuse them.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#ifdef __AVX512VBMI__
#include <immintrin.h>
#endif

namespace augment {

typedef std::array<uint8_t, 256> Table;

// Rounded down, and cut off at 0 and 255.
static inline uint8_t level(float v) { return static_cast<uint8_t>(static_cast<int>(v > 0 ? v < 255 ? v : 255.f : 0.f)); }

static inline uint8_t blend(float start, float value, float factor) { return level((value - start) * factor + start); }

// Pillow's luma.
static inline int grey(int red, int green, int blue) {
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16;
}

// That of tf.image.rgb_to_grayscale: it weighs shares of 255 and takes 255.5 times the sum.
static inline float tf_grey(int red, int green, int blue) {
    constexpr float share = static_cast<float>(1.0 / 255);
    const float luma = 0.2989f * (red * share) + 0.5870f * (green * share) + 0.1140f * (blue * share);
    return static_cast<float>(static_cast<int>(luma * 255.5f));
}

// ------------------------------------------------------------------------------------------------- tables

template <class Function>
static Table table(Function function) {
    Table to;
    for (int v = 0; v < 256; v++) to[v] = static_cast<uint8_t>(function(v));
    return to;
}

static Table posterize(double bits) {
    const int lost = 8 - static_cast<int>(std::clamp(bits, 0.0, 8.0));
    return table([=](int v) { return v >> lost << lost; });
}

static Table solarize(double first_inverted) {
    return table([=](int v) { return v < first_inverted ? v : 255 - v; });
}

static Table solarize_add(double argument) {
    const int added = static_cast<int>(std::clamp(argument, 0.0, 255.0));
    return table([=](int v) { return v < 128 ? std::min(255, v + added) : v; });
}

static Table brightness(float factor) {
    return table([=](int v) { return level(factor * static_cast<float>(v)); });
}

static Table contrast(float around, float factor) {
    return table([=](int v) { return blend(around, static_cast<float>(v), factor); });
}

// The mean of an image's luma, halves up.
static float mean_grey(const uint8_t* from, long n) {
    const uint8_t *red = from, *green = from + n, *blue = from + 2 * n;
    int64_t sum = 0;
    for (long begin = 0; begin < n; begin += 1 << 16) {
        const long end = std::min(n, begin + (1 << 16));
        int part = 0;
        for (long i = begin; i < end; i++) part += grey(red[i], green[i], blue[i]);
        sum += part;
    }
    return static_cast<float>((2 * sum + n) / (2 * n));
}

// How many pixels a bin of 256 has on average, which big_vision's Contrast takes for the mean level.
static float tf_contrast_level(long n) { return static_cast<float>(std::min(n / 256, 255L)); }

// A channel's darkest level to 0 and its brightest to 255: in float64 as Pillow does it, in float32 as TensorFlow.
template <class Real>
static Table autocontrast(const uint8_t* from, long n) {
    uint8_t darkest = 255, brightest = 0;
    for (long i = 0; i < n; i++) {
        darkest = std::min(darkest, from[i]);
        brightest = std::max(brightest, from[i]);
    }
    if (darkest >= brightest) return table([](int v) { return v; });
    const Real low = darkest, scale = Real(255) / (Real(brightest) - low), shift = -low * scale;
    return table([=](int v) { return static_cast<int>(std::clamp(Real(v) * scale + shift, Real(0), Real(255))); });
}

// About as many pixels of a channel at every level.
static Table equalize(const uint8_t* from, long n) {
    uint32_t counts[4][256] = {};  // neighbours in tables of their own: one need not wait for the other
    long i = 0;
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; j++) counts[j][from[i + j]]++;
    for (; i < n; i++) counts[0][from[i]]++;
    int64_t brightest = 0;
    for (int v = 0; v < 256; v++) {
        counts[0][v] += counts[1][v] + counts[2][v] + counts[3][v];
        if (counts[0][v]) brightest = counts[0][v];
    }
    const int64_t step = (n - brightest) / 255;
    if (step == 0) return table([](int v) { return v; });
    int64_t below = 0;
    Table to;
    for (int v = 0; v < 256; v++) {
        to[v] = static_cast<uint8_t>(std::min<int64_t>(255, (step / 2 + below) / step));
        below += counts[0][v];
    }
    return to;
}

static void look_up(const Table& table, const uint8_t* from, long n, uint8_t* __restrict to) {
    long i = 0;
#ifdef __AVX512VBMI__  // 64 levels at a time, in both halves of the table
    __m512i quarter[4];
    std::memcpy(quarter, table.data(), sizeof quarter);
    for (; i + 64 <= n; i += 64) {
        const __m512i v = _mm512_loadu_si512(from + i);
        const __m512i low = _mm512_permutex2var_epi8(quarter[0], v, quarter[1]);
        const __m512i high = _mm512_permutex2var_epi8(quarter[2], v, quarter[3]);
        _mm512_storeu_si512(to + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), low, high));
    }
#endif
    for (; i < n; i++) to[i] = table[from[i]];
}

// ------------------------------------------------------------------------------------------------- colour

// Each pixel away from its luma, or towards it.
template <class Luma>
static void saturate(const uint8_t* from, long n, float factor, uint8_t* __restrict to, Luma luma) {
    const uint8_t *red = from, *green = from + n, *blue = from + 2 * n;
    for (long i = 0; i < n; i++) {
        const float start = static_cast<float>(luma(red[i], green[i], blue[i]));
        to[i] = blend(start, red[i], factor);
        to[i + n] = blend(start, green[i], factor);
        to[i + 2 * n] = blend(start, blue[i], factor);
    }
}

}  // namespace augment
