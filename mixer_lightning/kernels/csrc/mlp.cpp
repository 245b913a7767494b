// a = gelu(h + bias) between the two matrix products of an MLP, by the tanh form, forward and backward, on a CPU.
//
// h is [R, C]. The bias is one of the columns, [C], or one of the rows, [P] for R = n P: row r has bias[r % P].
// Arithmetic is in float32. Sums are formed in an order that the number of threads does not change.
#include <algorithm>
#include <vector>

#include "activations.h"

template <class Vector, class Scalar>
static void forward(const Scalar* h, const float* bias, Scalar* a, bool by_row, long R, long C, long P, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long r = 0; r < R; r++)
        for (long c = 0; c < C; c += LANES) {
            const long lanes = std::min(LANES, C - c), at = r * C + c;
            const Floats b = by_row ? Floats{} + bias[r % P] : load<Floats>(bias + c, lanes);
            store<Vector>(GeluByTanh::value(load<Vector>(h + at, lanes) + b), a + at, lanes);
        }
}

// g, the gradient of a, becomes that of h. A chunk of rows sums its columns, or each row sums itself.
template <class Vector, class Scalar>
static void backward(const Scalar* h, const float* bias, Scalar* g, float* dbias, bool by_row, long R, long C, long P,
                     int threads) {
    constexpr long ROWS = 64;  // of a chunk
    const long blocks = (C + LANES - 1) / LANES, most = by_row ? 1 : ROWS, chunks = (R + most - 1) / most;
    std::vector<Floats> sums(by_row ? R : chunks * blocks);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long chunk = 0; chunk < chunks; chunk++)
        for (long r = chunk * most; r < std::min(R, (chunk + 1) * most); r++)
            for (long c = 0; c < C; c += LANES) {
                const long lanes = std::min(LANES, C - c), at = r * C + c;
                const Floats b = by_row ? Floats{} + bias[r % P] : load<Floats>(bias + c, lanes);
                Floats value;
                const Floats slope = GeluByTanh::slope(load<Vector>(h + at, lanes) + b, value);
                const Floats gradient = slope * load<Vector>(g + at, lanes);  // 0 in the lanes behind the last
                sums[by_row ? r : chunk * blocks + c / LANES] += gradient;
                store<Vector>(gradient, g + at, lanes);
            }
    std::vector<double> sum(by_row ? P : C);
    if (by_row)
        for (long r = 0; r < R; r++)
            for (long j = 0; j < LANES; j++) sum[r % P] += sums[r][j];
    else
        for (long chunk = 0; chunk < chunks; chunk++)
            for (long c = 0; c < C; c++) sum[c] += sums[chunk * blocks + c / LANES][c % LANES];
    std::copy(sum.begin(), sum.end(), dbias);
}

// h, a, g [R, C] in float32 or bfloat16; bias, dbias in float32
extern "C" void mlp_gelu_forward(const void* h, const float* bias, void* a, bool by_row, bool bfloat16, long R, long C,
                                 long P, int threads) {
    if (bfloat16) forward<Halves>((const uint16_t*)h, bias, (uint16_t*)a, by_row, R, C, P, threads);
    else forward<Floats>((const float*)h, bias, (float*)a, by_row, R, C, P, threads);
}

extern "C" void mlp_gelu_backward(const void* h, const float* bias, void* g, float* dbias, bool by_row, bool bfloat16,
                                  long R, long C, long P, int threads) {
    if (bfloat16) backward<Halves>((const uint16_t*)h, bias, (uint16_t*)g, dbias, by_row, R, C, P, threads);
    else backward<Floats>((const float*)h, bias, (float*)g, dbias, by_row, R, C, P, threads);
}
