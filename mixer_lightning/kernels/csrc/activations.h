// GELU, exact and by tanh, and ReLU, with their slopes, on vectors of float32.
#pragma once
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "vectors.h"

static inline Floats where(decltype(Floats{} < Floats{}) condition, Floats a, Floats b) { return condition ? a : b; }

// 1 / v for finite v above 0, to 1e-7 of it: a division of 16 numbers takes as long as 16 products.
static inline Floats reciprocal(Floats v) {
#ifdef __AVX512F__
    const Floats near = (Floats)_mm512_rcp14_ps((__m512)v);
    return near * (2.f - v * near);
#else
    return 1.f / v;
#endif
}

static inline Floats clamped(Floats x, float least, float most) {  // a NaN becomes one of the two
    const Floats zeros = {}, low = zeros + least, high = zeros + most, above = x > low ? x : low;
    return above < high ? above : high;
}

// The normal distribution function by a rational function of x * x, fitted for it: off by 2e-7 at most. Of a NaN, 0.
static inline Floats Phi(Floats x) {
    constexpr float LARGE = 5.6568542f;  // beyond it, Phi is 0 or 1 in float32
    const Floats v = clamped(x, -LARGE, LARGE), u = v * v;
    const Floats p =
        ((((2.185163499e-08f * u + 6.336419719e-06f) * u + 1.751235517e-04f) * u + 4.715011956e-03f) * u +
         3.453104776e-02f) * u + 3.989422543e-01f;
    const Floats q =
        ((((1.170079528e-06f * u + 7.535120051e-05f) * u + 1.920542891e-03f) * u + 2.902406689e-02f) * u +
         2.532224529e-01f) * u + 1.f;
    return where(x > -LARGE, v * p * reciprocal(q) + 0.5f, Floats{});
}

// exp(v) for v in [-88, 0]: 2^n 2^f, n whole, f in [-1/2, 1/2], the latter by a polynomial fitted for it.
static inline Floats exp_of_negative(Floats v) {
    constexpr float SHIFT = 12582912.f;  // 1.5 * 2^23: what is added to it is rounded to a whole number
    const Floats t = v * 1.44269504f, shifted = t + SHIFT, f = t - (shifted - SHIFT);
    const Floats p =
        ((((1.326697039e-03f * f + 9.675459746e-03f) * f + 5.550742616e-02f) * f + 2.402212175e-01f) * f +
         6.931469492e-01f) * f + 1.000000071f;
    return bits<Floats>(bits<Words>(p) + (bits<Words>(shifted) << 23));
}

struct Gelu {  // sigma(x) = x Phi(x), sigma'(x) = Phi(x) + x phi(x)
    static Floats value(Floats x) { return x * Phi(x); }
    static Floats slope(Floats x, Floats& value) {
        const Floats below = Phi(x), zeros = {};
        const Floats exponent = -0.5f * x * x;
        // 0 below 1e-22: times a small gradient it would be one of the numbers that take a CPU hundreds of cycles
        const Floats phi = where(exponent > -50, 0.398942280f * exp_of_negative(exponent), zeros);
        value = x * below;
        return below + x * phi;
    }
};

struct GeluByTanh {  // sigma(x) = x / (1 + exp(-t)), t = sqrt(8 / pi) (x + 0.044715 x^3)
    static Floats value(Floats x) {
        Floats slope;
        return x * share(x, slope);
    }
    static Floats slope(Floats x, Floats& value) {
        Floats slope_of_t;
        const Floats s = share(x, slope_of_t);
        value = x * s;
        return s + value * (1.f - s) * slope_of_t;
    }

  private:
    static Floats share(Floats x, Floats& slope_of_t) {
        constexpr float LINEAR = 1.59576912f, CUBIC = 0.0713548163f, LARGE = 8.f;  // beyond it, 1 or below 1e-21
        const Floats v = clamped(x, -LARGE, LARGE), u = v * v, t = v * (CUBIC * u + LINEAR);
        const Floats e = exp_of_negative(where(t < 0, t, -t)), s = reciprocal(e + 1.f);
        slope_of_t = 3 * CUBIC * u + LINEAR;
        return where(x > -LARGE, where(t < 0, e * s, s), Floats{});
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
