// Operations on a pixel and its neighbours: sharpness and Gaussian blur, for one plane of side x side bytes.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "augment_levels.h"

namespace augment {

// Away from the mean of 3 x 3 pixels, the middle one five times, or towards it; pixels of the border stay.
// The mean is rounded to the nearest level by Pillow, down by TensorFlow: rounding is 6 or 0 thirteenths.
static void sharpen(const uint8_t* from, long side, float factor, unsigned rounding, uint8_t* __restrict to,
                    std::vector<uint16_t>& scratch) {
    if (side < 3) {
        std::memcpy(to, from, side * side);
        return;
    }
    scratch.resize(side + 2);
    uint16_t* column = scratch.data() + 1;
    std::memcpy(to, from, side);
    std::memcpy(to + (side - 1) * side, from + (side - 1) * side, side);
    for (long y = 1; y < side - 1; y++) {
        const uint8_t *row = from + y * side, *above = row - side, *below = row + side;
        uint8_t* __restrict out = to + y * side;
        for (long x = 0; x < side; x++) column[x] = above[x] + row[x] + below[x];
        for (long x = 0; x < side; x++) {  // both ends too: whole vectors take less time than their parts
            const unsigned sum = column[x - 1] + column[x] + column[x + 1] + 4 * row[x] + rounding;
            const unsigned mean = sum * 5042 >> 16;  // a thirteenth, rounded down, of what is below 6553
            out[x] = blend(static_cast<float>(static_cast<int>(mean)), row[x], factor);
        }
        out[0] = row[0];
        out[side - 1] = row[side - 1];
    }
}

// A tile of 16 x 16: byte (y, x) of `from` becomes byte (x, y) of `to`. Four times, the rows of its upper half are
// interleaved with those of the lower.
static inline void transpose_tile(const uint8_t* from, uint8_t* to, long stride) {
    typedef uint8_t Row __attribute__((vector_size(16)));
    constexpr Row FIRST = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, LAST = FIRST + 8;
    Row rows[16], next[16];
    for (int y = 0; y < 16; y++) std::memcpy(&rows[y], from + y * stride, 16);
    for (int round = 0; round < 4; round++) {
        for (int i = 0; i < 8; i++) {
            next[2 * i] = __builtin_shuffle(rows[i], rows[i + 8], FIRST);
            next[2 * i + 1] = __builtin_shuffle(rows[i], rows[i + 8], LAST);
        }
        std::memcpy(rows, next, sizeof rows);
    }
    for (int x = 0; x < 16; x++) std::memcpy(to + x * stride, &rows[x], 16);
}

// to[x, y] = from[y, x].
static void transpose(const uint8_t* from, long side, uint8_t* to) {
    const long whole = side / 16 * 16;
    for (long y = 0; y < whole; y += 16)
        for (long x = 0; x < whole; x += 16) transpose_tile(from + y * side + x, to + x * side + y, side);
    for (long y = 0; y < side; y++)
        for (long x = y < whole ? whole : 0; x < side; x++) to[x * side + y] = from[y * side + x];
}

// A row of `side` bytes, the first one repeated `before` times and the last one `behind` times.
static void repeat_edges(const uint8_t* row, long side, long before, long behind, uint8_t* to) {
    std::memset(to, row[0], before);
    std::memcpy(to + before, row, side);
    std::memset(to + before + side, row[side - 1], behind);
}

// A box of radius `reach` pixels, the outermost one on each side in part: weights in 2^-24.
struct Box {
    long reach;
    uint32_t weight, outermost;

    // One of three boxes whose sum of variances is that of a Gaussian: equations 11 and 14 of Gwosdek et al.,
    // "Theoretical foundations of Gaussian convolution by extended box filtering" (SSVM 2011), in Pillow's float32.
    explicit Box(float deviation) {
        const float variance = deviation * deviation / 3;
        const float whole = std::floor((std::sqrt(12 * variance + 1) - 1) / 2);
        const float share = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) /
                            (6 * (variance - (whole + 1) * (whole + 1)));
        const float radius = whole + share;
        reach = static_cast<long>(radius) + 1;
        weight = static_cast<uint32_t>(16777216.f / (radius * 2 + 1));
        outermost = static_cast<uint32_t>((16777216 - (2 * reach - 1) * static_cast<int64_t>(weight)) / 2);
    }

    // Each row three times through the box, rounded to whole levels each time.
    void blur_rows(const uint8_t* from, long side, uint8_t* to, std::vector<uint8_t>& row,
                   std::vector<uint32_t>& sums) const {
        row.resize(side + 2 * reach);
        sums.resize(side);
        const uint8_t* near = row.data();
        uint32_t* sum = sums.data();
        for (long y = 0; y < side; y++) {
            uint8_t* out = to + y * side;
            for (int i = 0; i < 3; i++) {
                repeat_edges(i == 0 ? from + y * side : out, side, reach, reach, row.data());
                for (long x = 0; x < side; x++) sum[x] = (near[x] + near[x + 2 * reach]) * outermost + (1u << 23);
                for (long t = 1; t < 2 * reach; t++)
                    for (long x = 0; x < side; x++) sum[x] += near[x + t] * weight;
                for (long x = 0; x < side; x++) out[x] = static_cast<uint8_t>(sum[x] >> 24);
            }
        }
    }
};

static void blur(const uint8_t* from, long side, float deviation, uint8_t* to, std::vector<uint8_t>& row,
                 std::vector<uint8_t>& turned, std::vector<uint32_t>& sums) {
    const Box box(deviation);
    turned.resize(side * side);
    box.blur_rows(from, side, to, row, sums);
    transpose(to, side, turned.data());
    box.blur_rows(turned.data(), side, turned.data(), row, sums);
    transpose(turned.data(), side, to);
}

}  // namespace augment
