// Antialiased resizing of a part of an image, one axis after the other, with Pillow's weights and rounding.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bytes.h"
#include "weighted.h"

namespace resample {

enum Filter : int { BILINEAR = 0, BICUBIC = 1 };

static inline double triangle(double x) { return std::max(0.0, 1 - std::abs(x)); }

static inline double cubic(double x) {  // Keys', a = -1/2
    constexpr double a = -0.5;
    x = std::abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

// One axis of a crop: `extent` pixels from `first` on become `to_extent`, of which `size` from `offset` on are seen.
struct Axis {
    long first, extent, to_extent, offset, size;
};

// Output j is the sum of inputs begin[j] + t times weight[j * taps + t] / 2^BITS, t below count[j].
struct Taps {
    static constexpr int BITS = 22;
    long taps = 0;  // at most, and a multiple of 4; weights behind the last input are 0
    std::vector<int> begin, count;
    std::vector<int> weight;  // below 1.25 * 2^BITS, whatever part of a filter an edge leaves
    std::vector<double> scratch;

    long first() const { return *std::min_element(begin.begin(), begin.end()); }
    long last() const {
        int end = 0;
        for (size_t j = 0; j < begin.size(); j++) end = std::max(end, begin[j] + count[j]);
        return end - 1;
    }

    // For samples of a component that has `samples` of them along the axis: one for each pixel, or with `is_halved` one
    // for two, between which libjpeg interpolates ("fancy upsampling": 3/4 of the nearer one, 1/4 of the other).
    void set(const Axis& axis, Filter filter, bool is_halved, long samples) {
        const double scale = static_cast<double>(axis.extent) / axis.to_extent, wide = std::max(scale, 1.0);
        const double reach = (filter == BICUBIC ? 2 : 1) * wide, narrow = 1 / wide;
        const long pixels = static_cast<long>(std::ceil(reach)) * 2 + 1;
        taps = ((is_halved ? pixels / 2 + 3 : pixels) + 3) / 4 * 4;
        begin.resize(axis.size), this->count.resize(axis.size);
        weight.assign(axis.size * taps, 0);
        scratch.resize(pixels);
        std::vector<double>& of_pixel = scratch;
        double sums[MAX_TAPS];
        for (long j = 0; j < axis.size; j++) {
            const double centre = (j + axis.offset + 0.5) * scale;
            const long from = std::max(0L, static_cast<long>(centre - reach + 0.5));
            const long count = std::min(axis.extent, static_cast<long>(centre + reach + 0.5)) - from;
            double total = 0;
            for (long t = 0; t < count; t++) {
                const double x = (t + from - centre + 0.5) * narrow;
                total += of_pixel[t] = filter == BICUBIC ? cubic(x) : triangle(x);
            }
            const double share = total == 0 ? 0 : 1 / total;
            const long pixel = axis.first + from;
            int* to = &weight[j * taps];
            if (!is_halved) {
                begin[j] = pixel;
                for (long t = 0; t < count; t++) to[t] = fixed(of_pixel[t] * share);
            } else {
                begin[j] = std::max(0L, (pixel - 1) >> 1);
                std::fill(sums, sums + taps, 0.0);
                for (long t = 0; t < count; t++) {
                    const long near = (pixel + t) >> 1, other = near + ((pixel + t) & 1 ? 1 : -1);
                    sums[near - begin[j]] += 0.75 * of_pixel[t] * share;
                    sums[std::min(std::max(other, 0L), samples - 1) - begin[j]] += 0.25 * of_pixel[t] * share;
                }
                for (long t = 0; t < taps; t++) to[t] = fixed(sums[t]);
            }
            long used = taps;
            while (used > 1 && to[used - 1] == 0) used--;
            this->count[j] = used;
        }
    }

    static constexpr long MAX_TAPS = 512;  // larger reductions are left to others

    static bool is_possible(const Axis& axis) {
        return axis.first >= 0 && axis.extent > 0 && axis.to_extent > 0 && axis.offset >= 0 && axis.size > 0 &&
               axis.offset + axis.size <= axis.to_extent && axis.extent / axis.to_extent < MAX_TAPS / 4 - 2;
    }

  private:
    static int fixed(double w) { return static_cast<int>(w < 0 ? w * (1 << BITS) - 0.5 : w * (1 << BITS) + 0.5); }
};

// to[i] = sum over t of from[t * stride + i] * weight[t], i below `length` rounded up to whole vectors; what lies
// behind is read and written, and is not used. Weights are 0 from `taps` on to the next multiple of 4.
static inline void weighted_sum(const uint8_t* from, long stride, const int* weight, long taps, uint8_t* to, long length) {
    Weighted::Factors factors[Taps::MAX_TAPS / Weighted::ROWS];
    for (long t = 0; t < taps; t += Weighted::ROWS) factors[t / Weighted::ROWS] = Weighted::Factors(weight + t);
    for (long i = 0; i < length; i += Weighted::WIDTH) {
        Weighted sum(1 << (Taps::BITS - 1));
        for (long t = 0; t < taps; t += Weighted::ROWS)
            sum.add(from + t * stride + i, stride, taps - t, factors[t / Weighted::ROWS]);
        sum.store<Taps::BITS>(to + i);
    }
}

// to[x, y] = from[y, x] for y below `rows`, x below `columns`, in tiles of 8 x 8 as they come, the last ones beyond both.
static inline void transpose(const uint8_t* from, long from_stride, long rows, long columns, uint8_t* to, long to_stride) {
    for (long y = 0; y < rows; y += 8)
        for (long x = 0; x < columns; x += 8)
            bytes::transpose_tile(from + y * from_stride + x, from_stride, to + x * to_stride + y, to_stride);
}

}  // namespace resample
