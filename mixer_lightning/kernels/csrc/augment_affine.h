// Operations that move pixels. The source of pixel (x, y) is at (a x + b y + c, d x + e y + f); what comes from outside
// has the colour `fill`.
//
// An image is three planes of side x side bytes. Weights are float32, and what is interpolated is rounded down.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "augment_filters.h"
#include "augment_levels.h"
#include "bytes.h"

namespace augment {

struct Matrix {
    double a, b, c, d, e, f;
};

// Memory that is used again.
struct Scratch {
    std::vector<uint8_t> row, turned, moved, pixels;
    std::vector<uint16_t> columns;
    std::vector<uint32_t> sums;
    std::vector<int32_t> places;
    std::vector<float> weights;
};

// Left to right.
static void mirror(const uint8_t* from, long side, uint8_t* __restrict to) {
    for (long y = 0; y < 3 * side; y++, from += side, to += side)
        for (long x = 0; x < side; x++) to[x] = from[side - 1 - x];
}

// ------------------------------------------------------------------------------------- the nearest pixel

// Pixels of three planes by their places, for one row of the result; -1 is outside.
static void gather(const uint8_t* from, long side, const int32_t* places, const uint8_t* fill, long y, uint8_t* to) {
    const long plane = side * side;
    to += y * side;
    long begin = 0, end = side;
    while (begin < side && places[begin] < 0) begin++;
    while (end > begin && places[end - 1] < 0) end--;
    for (int c = 0; c < 3; c++) {
        std::memset(to + c * plane, fill[c], begin);
        std::memset(to + c * plane + end, fill[c], side - end);
    }
    int32_t differing = 0;
    for (long x = begin; x < end; x++) differing |= places[x] - static_cast<int32_t>(x - begin) - places[begin];
    if (differing == 0) {  // neighbours stay neighbours
        for (int c = 0; c < 3 && begin < end; c++)
            std::memcpy(to + c * plane + begin, from + c * plane + places[begin], end - begin);
        return;
    }
    for (long x = begin; x < end; x++) {
        const int32_t place = places[x];
        const uint8_t* pixel = from + std::max(place, 0);
        to[x] = place < 0 ? fill[0] : pixel[0];
        to[x + plane] = place < 0 ? fill[1] : pixel[plane];
        to[x + 2 * plane] = place < 0 ? fill[2] : pixel[2 * plane];
    }
}

static inline int32_t place(int32_t column, int32_t line, int32_t side) {
    const bool inside = (column >= 0) & (column < side) & (line >= 0) & (line < side);
    return inside ? line * side + column : -1;
}

// As Pillow finds it: in fixed point, 16 bits before and after.
static void nearest(const uint8_t* from, long side, const Matrix& m, const uint8_t* fill, uint8_t* to, Scratch& scratch) {
    // of unsigned numbers an overflow is defined
    const auto fixed = [](double v) { return static_cast<uint32_t>(static_cast<int64_t>(std::floor(v * 65536 + 0.5))); };
    const uint32_t a = fixed(m.a), b = fixed(m.b), c = fixed(m.c + (m.a * 0.5 + m.b * 0.5));
    const uint32_t d = fixed(m.d), e = fixed(m.e), f = fixed(m.f + (m.d * 0.5 + m.e * 0.5));
    scratch.places.resize(side);
    int32_t* places = scratch.places.data();
    for (long y = 0; y < side; y++) {
        const uint32_t column = c + b * static_cast<uint32_t>(y), line = f + e * static_cast<uint32_t>(y);
        for (long x = 0; x < side; x++) {
            const uint32_t i = static_cast<uint32_t>(x);
            places[x] = place(static_cast<int32_t>(a * i + column) >> 16, static_cast<int32_t>(d * i + line) >> 16,
                              static_cast<int32_t>(side));
        }
        gather(from, side, places, fill, y, to);
    }
}

// To the nearest whole number, halves away from 0; what is far outside an image becomes less far.
static inline int32_t rounded(float v, float side) {
    const float low = v > -2 ? v : -2.f, near = low < side ? low : side;
    return static_cast<int32_t>(near + std::copysign(0.5f, near));
}

// As TensorFlow finds it: in float32, counted from the first pixel.
static void tf_nearest(const uint8_t* from, long side, const Matrix& m, const uint8_t* fill, uint8_t* to,
                       Scratch& scratch) {
    const float a = static_cast<float>(m.a), b = static_cast<float>(m.b), c = static_cast<float>(m.c);
    const float d = static_cast<float>(m.d), e = static_cast<float>(m.e), f = static_cast<float>(m.f);
    scratch.places.resize(side);
    int32_t* places = scratch.places.data();
    const float last = static_cast<float>(side);
    for (long y = 0; y < side; y++) {
        const float across = b * static_cast<float>(y), down = e * static_cast<float>(y);
        for (long x = 0; x < side; x++) {
            const float h = static_cast<float>(static_cast<int32_t>(x));
            const float column = (a * h + across) + c, line = (d * h + down) + f;
            places[x] = place(rounded(column, last), rounded(line, last), static_cast<int32_t>(side));
        }
        gather(from, side, places, fill, y, to);
    }
}

// ------------------------------------------------------------------------------------------ interpolation

// Levels. A mean of equal levels may fall a little below them, and is rounded down next.
constexpr float ROUNDING_MARGIN = 1.f / 2048;

// Weight of tap t of 2 (linear) or 4 (cubic with slope -1; Keys 1981, a = -1) at distance d behind the middle.
template <int TAPS>
static inline float weight(int t, float d) {
    const float far = 1 - d;
    if (TAPS == 2) return t == 0 ? far : d;
    return t == 0 ? -d * far * far : t == 1 ? 1 + d * d * (d - 2) : t == 2 ? d * (1 + d * far) : -d * d * far;
}

// Each row along itself: the source of pixel x of row y is at x + b y + c, counted to the middle of pixels.
template <int TAPS>
static void shift_rows(const uint8_t* from, long side, double b, double c, uint8_t fill, uint8_t* __restrict to,
                       std::vector<uint8_t>& scratch) {
    const long length = side + TAPS - 1;
    scratch.resize(length);
    uint8_t* near = scratch.data();
    const double last = static_cast<double>(side);
    float w[4] = {};
    for (long y = 0; y < side; y++, from += side, to += side) {
        const double slope = b * (static_cast<double>(y) + 0.5);
        const auto source = [=](long x) { return (static_cast<double>(x) + 0.5 + c) + slope; };
        // x from `begin` to `end` is inside; a first guess is one off at most
        const double guess = std::clamp(-source(0), -last - 1, last + 1);
        long begin = std::clamp(static_cast<long>(guess) - 2, 0L, side);
        while (begin < side && source(begin) < 0) begin++;
        long end = std::clamp(static_cast<long>(guess) + side + 2, begin, side);
        while (end > begin && source(end - 1) >= last) end--;
        if (begin < end) {
            const double position = source(0) - 0.5, whole = std::floor(position);
            for (int t = 0; t < TAPS; t++) w[t] = weight<TAPS>(t, static_cast<float>(position - whole));
            // near[i] is the pixel at `first` + i, those beyond an edge the one at the edge
            const long first = static_cast<long>(whole) - (TAPS - 1) / 2;
            const long before = std::clamp(-first, 0L, length);
            const long behind = std::clamp(first + length - side, 0L, length - before);
            std::memset(near, from[0], before);
            std::memcpy(near + before, from + std::max(first, 0L), length - before - behind);
            std::memset(near + length - behind, from[side - 1], behind);
            const float w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
            for (long x = 0; x < side; x++) {  // the outside too: whole vectors take less time than their parts
                float sum = near[x] * w0 + near[x + 1] * w1;
                if (TAPS == 4) sum = sum + near[x + 2] * w2 + near[x + 3] * w3;
                to[x] = level(sum + ROUNDING_MARGIN);
            }
        }
        std::memset(to, fill, begin);
        std::memset(to + end, fill, side - end);
    }
}

template <int TAPS>
static void along_x(const uint8_t* from, long side, const Matrix& m, const uint8_t* fill, uint8_t* to, Scratch& scratch) {
    for (int c = 0; c < 3; c++)
        shift_rows<TAPS>(from + c * side * side, side, m.b, m.c, fill[c], to + c * side * side, scratch.row);
}

template <int TAPS>
static void along_y(const uint8_t* from, long side, const Matrix& m, const uint8_t* fill, uint8_t* to, Scratch& scratch) {
    scratch.turned.resize(side * side);
    scratch.moved.resize(side * side);
    for (int c = 0; c < 3; c++) {
        transpose(from + c * side * side, side, scratch.turned.data());
        shift_rows<TAPS>(scratch.turned.data(), side, m.d, m.f, fill[c], scratch.moved.data(), scratch.row);
        transpose(scratch.moved.data(), side, to + c * side * side);
    }
}

typedef float FourFloats __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));
typedef float EightFloats __attribute__((vector_size(32)));

// The three planes as pixels of four bytes (the last one 0), with two more pixels on each side, those of the edges.
static const uint8_t* interleave(const uint8_t* from, long side, Scratch& scratch) {
    const long wide = side + 4, plane = side * side;
    scratch.pixels.resize(4 * wide * wide);
    scratch.row.resize(3 * wide);
    for (long y = 0; y < wide; y++) {
        const uint8_t* line = from + std::clamp(y - 2, 0L, side - 1) * side;
        for (int c = 0; c < 3; c++) repeat_edges(line + c * plane, side, 2, 2, &scratch.row[c * wide]);
        const uint8_t* row = scratch.row.data();
        uint8_t* __restrict out = &scratch.pixels[4 * y * wide];
        for (long x = 0; x < wide; x++) {
            out[4 * x] = row[x];
            out[4 * x + 1] = row[x + wide];
            out[4 * x + 2] = row[x + 2 * wide];
            out[4 * x + 3] = 0;
        }
    }
    return scratch.pixels.data();
}

// The weighted mean of TAPS x TAPS pixels, of which the first is at `from`, rounded down to levels.
template <int TAPS>
static inline FourInts mean(const uint8_t* from, long stride, const float* across, const float* down, long step) {
    EightFloats pairs[TAPS / 2] = {};
    for (int j = 0; j < TAPS; j++, from += stride)
        for (int i = 0; i < TAPS / 2; i++)
            pairs[i] += __builtin_convertvector(bytes::load_eight(from + 8 * i), EightFloats) * down[j * step];
    FourFloats sum = FourFloats{} + ROUNDING_MARGIN;
    for (int i = 0; i < TAPS / 2; i++) {
        FourFloats half[2];
        std::memcpy(half, &pairs[i], sizeof half);
        sum += half[0] * across[2 * i * step];
        sum += half[1] * across[(2 * i + 1) * step];
    }
    const FourFloats none = {}, all = none + 255;
    sum = sum > none ? sum : none;
    return __builtin_convertvector(sum < all ? sum : all, FourInts);
}

// Where along an axis a source position is: the pixel in front of it, and how far behind that pixel's middle it is.
static inline int32_t in_front(double position, double last, float* beyond) {
    const double positive = position > 0 ? position : 0, inside = positive < last ? positive : last;
    const int32_t pixel = static_cast<int32_t>(inside + 0.5) - 1;  // rounded down, above -2
    *beyond = static_cast<float>(inside - 0.5 - pixel);
    return pixel;
}

// In two directions at once.
template <int TAPS>
static void interpolated(const uint8_t* from, long side, const Matrix& m, const uint8_t* fill, uint8_t* to,
                         Scratch& scratch) {
    const uint8_t* pixels = interleave(from, side, scratch);
    const long plane = side * side;
    const int32_t wide = static_cast<int32_t>(side) + 4, corner = (2 - (TAPS - 1) / 2) * (wide + 1);
    scratch.places.resize(5 * side);
    scratch.weights.resize((2 * TAPS + 2) * side);
    int32_t *places = scratch.places.data(), *levels = places + side;
    float *across = scratch.weights.data(), *down = across + TAPS * side;
    float *beyond_x = down + TAPS * side, *beyond_y = beyond_x + side;
    const double last = static_cast<double>(side);
    for (long y = 0; y < side; y++, to += side) {
        const double v = static_cast<double>(y) + 0.5, right = m.b * v, below = m.e * v;
        for (long x = 0; x < side; x++) {
            const double h = static_cast<double>(static_cast<int32_t>(x)) + 0.5;
            const double column = (m.a * h + m.c) + right, line = (m.d * h + m.f) + below;
            const int32_t i = in_front(column, last, beyond_x + x), j = in_front(line, last, beyond_y + x);
            const bool inside = (column >= 0) & (column < last) & (line >= 0) & (line < last);
            places[x] = inside ? j * wide + i + corner : -1;
        }
        for (int t = 0; t < TAPS; t++)
            for (long x = 0; x < side; x++) {
                across[t * side + x] = weight<TAPS>(t, beyond_x[x]);
                down[t * side + x] = weight<TAPS>(t, beyond_y[x]);
            }
        long begin = 0, end = side;
        while (begin < side && places[begin] < 0) begin++;
        while (end > begin && places[end - 1] < 0) end--;
        for (long x = begin; x < end; x++) {
            const uint8_t* first = pixels + 4L * std::max(places[x], 0);
            const FourInts value = mean<TAPS>(first, 4L * wide, across + x, down + x, side);
            std::memcpy(levels + 4 * x, &value, sizeof value);
        }
        for (int c = 0; c < 3; c++) {
            uint8_t* __restrict out = to + c * plane;
            const int32_t colour = fill[c];
            for (long x = 0; x < side; x++) {
                const int32_t value = levels[4 * x + c];
                out[x] = static_cast<uint8_t>(places[x] < 0 ? colour : value);
            }
        }
    }
}

}  // namespace augment
