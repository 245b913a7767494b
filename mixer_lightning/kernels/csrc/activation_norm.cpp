// y = BatchNorm(sigma(x)) in training, forward and backward, sigma being GELU or ReLU, on a CPU.
//
// x is [N, C]: N positions of all images, C channels. Arithmetic is in float32, sums over positions are in float64.
// Activations are computed again where they are needed: reading x once more takes less time than writing sigma(x).
//
// Sums are formed over chunks of positions whose number depends on C alone, and then over chunks in their order, so
// that the number of threads does not change a bit.
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

typedef double Doubles __attribute__((vector_size(8 * LANES), aligned(8)));
static Doubles doubles(Floats v) { return __builtin_convertvector(v, Doubles); }

static Floats where(decltype(Floats{} < Floats{}) condition, Floats a, Floats b) { return condition ? a : b; }

// ------------------------------------------------------------------------------------------------ activations

// The normal distribution's Phi(x) - 1/2 by a rational function of x * x, fitted for this file: off by 2e-7 at most.
static Floats phi_minus_half(Floats x) {
    constexpr float LARGE = 5.6568542f;  // beyond it, Phi is 0 or 1 in float32
    const Floats zeros = {}, u = where(x * x < LARGE * LARGE, x * x, zeros + LARGE * LARGE);
    const Floats p =
        ((((2.185163499e-08f * u + 6.336419719e-06f) * u + 1.751235517e-04f) * u + 4.715011956e-03f) * u +
         3.453104776e-02f) * u + 3.989422543e-01f;
    const Floats q =
        ((((1.170079528e-06f * u + 7.535120051e-05f) * u + 1.920542891e-03f) * u + 2.902406689e-02f) * u +
         2.532224529e-01f) * u + 1.f;
    const Floats inside = x * (p / q), outside = where(x < 0, zeros - 0.5f, zeros + 0.5f);
    return where(x * x < LARGE * LARGE, inside, where(x == x, outside, x));
}

// exp(v) for v in [-88, 0]: 2^n 2^f, n whole, f in [-1/2, 1/2], the latter by a polynomial fitted for this file.
static Floats exp_of_negative(Floats v) {
    constexpr float SHIFT = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const Floats t = v * 1.44269504f, shifted = t + SHIFT, f = t - (shifted - SHIFT);
    const Floats p =
        ((((1.326697039e-03f * f + 9.675459746e-03f) * f + 5.550742616e-02f) * f + 2.402212175e-01f) * f +
         6.931469492e-01f) * f + 1.000000071f;
    return bits<Floats>(bits<Words>(p) + (bits<Words>(shifted) << 23));
}

struct Gelu {  // sigma(x) = x Phi(x), sigma'(x) = Phi(x) + x phi(x)
    static Floats value(Floats x) { return x * (phi_minus_half(x) + 0.5f); }
    static Floats slope(Floats x, Floats& value) {
        const Floats Phi = phi_minus_half(x) + 0.5f, zeros = {};
        const Floats exponent = -0.5f * x * x;
        // 0 below 1e-22: times a small gradient it would be one of the numbers that take a CPU hundreds of cycles
        const Floats phi = where(exponent > -50, 0.398942280f * exp_of_negative(exponent), zeros);
        value = x * Phi;
        return Phi + x * phi;
    }
};

struct Relu {
    static Floats value(Floats x) { return where(x <= 0, Floats{}, x); }  // a NaN stays one
    static Floats slope(Floats x, Floats& value) {
        const Floats zeros = {};
        value = Relu::value(x);
        return where(x > 0, zeros + 1, zeros);
    }
};

// --------------------------------------------------------------------------------------------------- channels

// A vector of channels at a time, the last one possibly with fewer lanes.
template <class Task>
static inline void each_block(long C, Task task) {
    const long whole = C / LANES;
    for (long k = 0; k < whole; k++) task(k, LANES);
    if (C % LANES) task(whole, C % LANES);
}

static long blocks_of(long C) { return (C + LANES - 1) / LANES; }
static long positions_of_a_chunk(long C) { return std::max(8L, 16384 / C); }  // 64 KiB of float32, of a second-level cache

// sums[k] over chunks of parts[chunk][k], each times a weight that the chunk has
template <class Part>
static Doubles sum_over_chunks(long chunks, Part part) {
    Doubles sum = {};
    for (long chunk = 0; chunk < chunks; chunk++) sum += part(chunk);
    return sum;
}

// ------------------------------------------------------------------------------------------- forward, backward

template <class Sigma, class Vector, class Scalar>
static void forward(const Scalar* x, const float* weight, const float* bias, Scalar* y, float* mean, float* variance,
                    long N, long C, double eps, int threads) {
    const long blocks = blocks_of(C), most = positions_of_a_chunk(C), chunks = (N + most - 1) / most;
    std::vector<Floats> means(chunks * blocks), squares(chunks * blocks), centre(blocks), scale(blocks), shift(blocks);
    const auto size = [&](long chunk) { return std::min(most, N - chunk * most); };
#pragma omp parallel num_threads(threads)
    {
        std::vector<Floats> a(most * blocks);
#pragma omp for schedule(static)
        for (long chunk = 0; chunk < chunks; chunk++) {  // mean, and sum of squared distances from it
            const long n = size(chunk);
            const Scalar* from = x + chunk * most * C;
            Floats *m = &means[chunk * blocks], *s = &squares[chunk * blocks];
            for (long i = 0; i < n; i++)
                each_block(C, [&](long k, long lanes) {
                    const Floats value = Sigma::value(load<Vector>(from + i * C + k * LANES, lanes));
                    a[i * blocks + k] = value;
                    m[k] += value;
                });
            for (long k = 0; k < blocks; k++) m[k] /= float(n);
            for (long i = 0; i < n; i++)
                for (long k = 0; k < blocks; k++) {
                    const Floats distance = a[i * blocks + k] - m[k];
                    s[k] += distance * distance;
                }
        }
#pragma omp for schedule(static)
        for (long k = 0; k < blocks; k++) {
            const long lanes = std::min(LANES, C - k * LANES);
            const Doubles middle =
                sum_over_chunks(chunks, [&](long c) { return double(size(c)) * doubles(means[c * blocks + k]); }) /
                double(N);
            const Doubles square = sum_over_chunks(chunks, [&](long c) {
                const Doubles distance = doubles(means[c * blocks + k]) - middle;
                return doubles(squares[c * blocks + k]) + double(size(c)) * distance * distance;
            });
            for (long j = 0; j < lanes; j++) {
                const long channel = k * LANES + j;
                mean[channel] = float(middle[j]);
                variance[channel] = float(square[j] / double(N));
                centre[k][j] = mean[channel];
                scale[k][j] = float(weight[channel] / std::sqrt(square[j] / double(N) + eps));
                shift[k][j] = bias[channel];
            }
        }
#pragma omp for schedule(static)
        for (long i = 0; i < N; i++)
            each_block(C, [&](long k, long lanes) {
                const long at = i * C + k * LANES;
                const Floats value = Sigma::value(load<Vector>(x + at, lanes));
                store<Vector>((value - centre[k]) * scale[k] + shift[k], y + at, lanes);
            });
    }
}

// With h = (sigma(x) - mean) / s, s = sqrt(variance + eps), and g the gradient of y:
//   dbias = sum g     dweight = sum g h     dx = sigma'(x) weight / s (g - dbias / N - h dweight / N)
template <class Sigma, class Vector, class Scalar>
static void backward(const Scalar* x, const Scalar* g, const float* weight, const float* mean, const float* variance,
                     Scalar* dx, float* dweight, float* dbias, long N, long C, double eps, int threads) {
    const long blocks = blocks_of(C), most = positions_of_a_chunk(C), chunks = (N + most - 1) / most;
    std::vector<Floats> sums(chunks * blocks), products(chunks * blocks), centre(blocks), scale(blocks), shift(blocks),
        slope(blocks);
    for (long channel = 0; channel < C; channel++) centre[channel / LANES][channel % LANES] = mean[channel];
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long chunk = 0; chunk < chunks; chunk++) {
            const long end = std::min(N, (chunk + 1) * most);
            Floats *s = &sums[chunk * blocks], *p = &products[chunk * blocks];
            for (long i = chunk * most; i < end; i++)
                each_block(C, [&](long k, long lanes) {
                    const long at = i * C + k * LANES;
                    const Floats gradient = load<Vector>(g + at, lanes);
                    s[k] += gradient;
                    p[k] += gradient * (Sigma::value(load<Vector>(x + at, lanes)) - centre[k]);
                });
        }
#pragma omp for schedule(static)
        for (long k = 0; k < blocks; k++) {
            const long lanes = std::min(LANES, C - k * LANES);
            const Doubles sum = sum_over_chunks(chunks, [&](long c) { return doubles(sums[c * blocks + k]); });
            const Doubles product = sum_over_chunks(chunks, [&](long c) { return doubles(products[c * blocks + k]); });
            for (long j = 0; j < lanes; j++) {
                const long channel = k * LANES + j;
                const double over_s = 1 / std::sqrt(variance[channel] + eps);
                dbias[channel] = float(sum[j]);
                dweight[channel] = float(product[j] * over_s);
                scale[k][j] = float(weight[channel] * over_s);
                shift[k][j] = float(sum[j] / double(N));
                slope[k][j] = float(product[j] * over_s * over_s / double(N));
            }
        }
#pragma omp for schedule(static)
        for (long i = 0; i < N; i++)
            each_block(C, [&](long k, long lanes) {
                const long at = i * C + k * LANES;
                Floats value;
                const Floats derivative = Sigma::slope(load<Vector>(x + at, lanes), value);
                const Floats gradient = load<Vector>(g + at, lanes);
                const Floats through = gradient - shift[k] - (value - centre[k]) * slope[k];
                store<Vector>(derivative * scale[k] * through, dx + at, lanes);
            });
    }
}

// x, y, g, dx [N, C] in float32 or bfloat16; weight, bias, mean, variance (of sigma(x), over N), dweight, dbias [C]
extern "C" void activation_norm_forward(const void* x, const float* weight, const float* bias, void* y, float* mean,
                                        float* variance, bool gelu, bool bfloat16, long N, long C, double eps,
                                        int threads) {
    const auto run = [&](auto sigma, auto vector, auto scalar) {
        using Scalar = decltype(scalar);
        forward<decltype(sigma), decltype(vector)>((const Scalar*)x, weight, bias, (Scalar*)y, mean, variance, N, C,
                                                   eps, threads);
    };
    if (bfloat16) gelu ? run(Gelu{}, Halves{}, uint16_t{}) : run(Relu{}, Halves{}, uint16_t{});
    else gelu ? run(Gelu{}, Floats{}, float{}) : run(Relu{}, Floats{}, float{});
}

extern "C" void activation_norm_backward(const void* x, const void* g, const float* weight, const float* mean,
                                         const float* variance, void* dx, float* dweight, float* dbias, bool gelu,
                                         bool bfloat16, long N, long C, double eps, int threads) {
    const auto run = [&](auto sigma, auto vector, auto scalar) {
        using Scalar = decltype(scalar);
        backward<decltype(sigma), decltype(vector)>((const Scalar*)x, (const Scalar*)g, weight, mean, variance,
                                                    (Scalar*)dx, dweight, dbias, N, C, eps, threads);
    };
    if (bfloat16) gelu ? run(Gelu{}, Halves{}, uint16_t{}) : run(Relu{}, Halves{}, uint16_t{});
    else gelu ? run(Gelu{}, Floats{}, float{}) : run(Relu{}, Floats{}, float{});
}
