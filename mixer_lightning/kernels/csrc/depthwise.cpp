// Gradients of weight and bias of a depthwise convolution, in float32, on a CPU.
//
// Each task is one image and as many channels as a vector register has lanes. It copies both into float32, with the
// zeros around x, and then slides over rows: T taps of a kernel row stay in registers while n positions pass by, four
// at a time, so that a vector of x that was loaded once is used in up to four products.
#include <algorithm>
#include <vector>

#include "vectors.h"

template <int T>
static void slide(const Floats* x, const Floats* g, Floats* sums, long n) {
    Floats s[T];
    for (int j = 0; j < T; j++) s[j] = sums[j];
    long m = 0;
    for (; m + 4 <= n; m += 4) {
        const Floats g0 = g[m], g1 = g[m + 1], g2 = g[m + 2], g3 = g[m + 3];
#pragma GCC unroll 16
        for (int j = 0; j < T + 3; j++) {
            const Floats v = x[m + j];
            if (j < T) s[j] += g0 * v;
            if (1 <= j && j < T + 1) s[j - 1] += g1 * v;
            if (2 <= j && j < T + 2) s[j - 2] += g2 * v;
            if (3 <= j) s[j - 3] += g3 * v;
        }
    }
    for (; m < n; m++)
        for (int j = 0; j < T; j++) s[j] += g[m] * x[m + j];
    for (int j = 0; j < T; j++) sums[j] = s[j];
}

constexpr long MOST = 9;  // taps at a time
using Slide = void (*)(const Floats*, const Floats*, Floats*, long);
static const Slide SLIDES[MOST + 1] = {nullptr, slide<1>, slide<2>, slide<3>, slide<4>,
                                       slide<5>, slide<6>, slide<7>, slide<8>, slide<9>};

// x [B, H, W, C], g [B, h, w, C] -> out [B, kh * kw + 1, C], the last row holding the sums of g
template <class Vector, class Scalar>
static void run(const Scalar* x, const Scalar* g, float* out, long B, long C, long H, long W, long h, long w,
                long kh, long kw, long top, long left, int threads) {
    const long rows = h + kh - 1, columns = w + kw - 1, blocks = (C + LANES - 1) / LANES;
    const long top_end = std::min(H + top, rows), left_end = std::min(W + left, columns);
#pragma omp parallel num_threads(threads)
    {
        std::vector<Floats> padded(rows * columns, Floats{}), grads(h * w), sums(kh * kw + 1);
#pragma omp for schedule(static)
        for (long task = 0; task < B * blocks; task++) {
            const long b = task / blocks, c = task % blocks * LANES, lanes = std::min(LANES, C - c);
            for (long m = std::max(0L, top); m < top_end; m++)
                for (long n = std::max(0L, left); n < left_end; n++)
                    padded[m * columns + n] = load<Vector>(x + ((b * H + m - top) * W + n - left) * C + c, lanes);
            std::fill(sums.begin(), sums.end(), Floats{});
            for (long m = 0; m < h * w; m++)
                sums[kh * kw] += grads[m] = load<Vector>(g + (b * h * w + m) * C + c, lanes);
            for (long m = 0; m < h; m++)
                for (long i = 0; i < kh; i++)
                    for (long j = 0; j < kw; j += MOST)
                        SLIDES[std::min(MOST, kw - j)](&padded[(m + i) * columns + j], &grads[m * w],
                                                      &sums[i * kw + j], w);
            for (long i = 0; i <= kh * kw; i++)
                std::memcpy(out + (b * (kh * kw + 1) + i) * C + c, &sums[i], 4 * lanes);
        }
    }
}

extern "C" void depthwise_weight_gradients(const void* x, const void* g, float* out, bool bfloat16, long B, long C,
                                          long H, long W, long h, long w, long kh, long kw, long top, long left,
                                          int threads) {
    if (bfloat16)
        run<Halves>((const uint16_t*)x, (const uint16_t*)g, out, B, C, H, W, h, w, kh, kw, top, left, threads);
    else
        run<Floats>((const float*)x, (const float*)g, out, B, C, H, W, h, w, kh, kw, top, left, threads);
}
