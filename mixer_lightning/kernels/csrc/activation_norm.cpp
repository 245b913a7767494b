// y = BatchNorm(sigma(x)) [+ plus], sigma being GELU or ReLU, on a CPU: trained, forward and backward, and evaluated.
//
// x is [N, C]: N positions of all images, C channels. Arithmetic is in float32, sums over positions are in float64.
// Activations are computed again where they are needed: reading x once more takes less time than writing sigma(x).
//
// Sums are formed over chunks of positions whose number depends on C alone, and then over chunks in their order, so
// that the number of threads does not change a bit.
#include <algorithm>
#include <cmath>
#include <vector>

#include "activations.h"

typedef double Doubles __attribute__((vector_size(8 * LANES), aligned(8)));
static Doubles doubles(Floats v) { return __builtin_convertvector(v, Doubles); }

// --------------------------------------------------------------------------------------------------- channels

// A vector of channels at a time, the last one possibly with fewer lanes.
template <class Task>
static inline void each_block(long C, Task task) {
    const long whole = C / LANES;
    for (long k = 0; k < whole; k++) task(k, LANES);
    if (C % LANES) task(whole, C % LANES);
}

static long blocks_of(long C) { return (C + LANES - 1) / LANES; }
static long positions_of_a_chunk(long C) { return std::max(8L, 16384 / C); }  // 64 KiB of float32

// sums[k] over chunks of parts[chunk][k], each times a weight that the chunk has
template <class Part>
static Doubles sum_over_chunks(long chunks, Part part) {
    Doubles sum = {};
    for (long chunk = 0; chunk < chunks; chunk++) sum += part(chunk);
    return sum;
}

// What is the same at every position: y = (sigma(x) - centre) scale + shift.
struct Affine {
    std::vector<Floats> centre, scale, shift;
    explicit Affine(long C) : centre(blocks_of(C)), scale(blocks_of(C)), shift(blocks_of(C)) {}
    void set(long channel, float mean, double variance, float weight, float bias, double eps) {
        centre[channel / LANES][channel % LANES] = mean;
        scale[channel / LANES][channel % LANES] = float(weight / std::sqrt(variance + eps));
        shift[channel / LANES][channel % LANES] = bias;
    }
};

// ------------------------------------------------------------------------------------------- forward, backward

// Called by each thread of a team, for its share of the positions. `plus` may be null.
template <class Sigma, class Vector, class Scalar>
static void apply(const Scalar* x, const Affine& affine, const Scalar* plus, Scalar* y, long N, long C) {
#pragma omp for schedule(static)
    for (long i = 0; i < N; i++)
        each_block(C, [&](long k, long lanes) {
            const long at = i * C + k * LANES;
            const Floats value = Sigma::value(load<Vector>(x + at, lanes));
            Floats out = (value - affine.centre[k]) * affine.scale[k] + affine.shift[k];
            if (plus) out += load<Vector>(plus + at, lanes);
            store<Vector>(out, y + at, lanes);
        });
}

template <class Sigma, class Vector, class Scalar>
static void forward(const Scalar* x, const float* weight, const float* bias, const Scalar* plus, Scalar* y, float* mean,
                    float* variance, long N, long C, double eps, int threads) {
    const long blocks = blocks_of(C), most = positions_of_a_chunk(C), chunks = (N + most - 1) / most;
    std::vector<Floats> means(chunks * blocks), squares(chunks * blocks);
    Affine affine(C);
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
                affine.set(channel, mean[channel], square[j] / double(N), weight[channel], bias[channel], eps);
            }
        }
        apply<Sigma, Vector>(x, affine, plus, y, N, C);
    }
}

template <class Sigma, class Vector, class Scalar>
static void evaluate(const Scalar* x, const float* weight, const float* bias, const float* mean, const float* variance,
                     const Scalar* plus, Scalar* y, long N, long C, double eps, int threads) {
    Affine affine(C);
    for (long channel = 0; channel < C; channel++)
        affine.set(channel, mean[channel], variance[channel], weight[channel], bias[channel], eps);
#pragma omp parallel num_threads(threads)
    apply<Sigma, Vector>(x, affine, plus, y, N, C);
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

// ---------------------------------------------------------------------------------------------------- interface

// The types of a call: task(sigma, vector, scalar), of which only the types matter.
template <class Task>
static void typed(bool gelu, bool bfloat16, Task task) {
    if (bfloat16) gelu ? task(Gelu{}, Halves{}, uint16_t{}) : task(Relu{}, Halves{}, uint16_t{});
    else gelu ? task(Gelu{}, Floats{}, float{}) : task(Relu{}, Floats{}, float{});
}

// x, y, g, dx, plus (or null) [N, C] in float32 or bfloat16; weight, bias, mean, variance (of sigma(x), over N),
// dweight, dbias [C] in float32
extern "C" void activation_norm_forward(const void* x, const float* weight, const float* bias, const void* plus,
                                        void* y, float* mean, float* variance, bool gelu, bool bfloat16, long N,
                                        long C, double eps, int threads) {
    typed(gelu, bfloat16, [&](auto sigma, auto vector, auto scalar) {
        using Scalar = decltype(scalar);
        forward<decltype(sigma), decltype(vector)>((const Scalar*)x, weight, bias, (const Scalar*)plus, (Scalar*)y,
                                                   mean, variance, N, C, eps, threads);
    });
}

extern "C" void activation_norm_backward(const void* x, const void* g, const float* weight, const float* mean,
                                         const float* variance, void* dx, float* dweight, float* dbias, bool gelu,
                                         bool bfloat16, long N, long C, double eps, int threads) {
    typed(gelu, bfloat16, [&](auto sigma, auto vector, auto scalar) {
        using Scalar = decltype(scalar);
        backward<decltype(sigma), decltype(vector)>((const Scalar*)x, (const Scalar*)g, weight, mean, variance,
                                                    (Scalar*)dx, dweight, dbias, N, C, eps, threads);
    });
}

extern "C" void activation_norm_evaluate(const void* x, const float* weight, const float* bias, const float* mean,
                                         const float* variance, const void* plus, void* y, bool gelu, bool bfloat16,
                                         long N, long C, double eps, int threads) {
    typed(gelu, bfloat16, [&](auto sigma, auto vector, auto scalar) {
        using Scalar = decltype(scalar);
        evaluate<decltype(sigma), decltype(vector)>((const Scalar*)x, weight, bias, mean, variance,
                                                    (const Scalar*)plus, (Scalar*)y, N, C, eps, threads);
    });
}
