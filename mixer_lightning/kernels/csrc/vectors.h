// Vectors of float32 as wide as a register, and what reads and writes them: float32 itself or bfloat16.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
constexpr long LANES = 16;
#else
constexpr long LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));

template <class To, class From>
static To bits(From v) {
    static_assert(sizeof(To) == sizeof(From));
    return (To)v;
}

static inline Floats widen(Floats v) { return v; }
static inline Floats widen(Halves v) {  // a bfloat16 is the upper half of a float32
    return bits<Floats>(__builtin_convertvector(v, Words) << 16);
}

// A vector somewhere in memory: read and written at once, where memcpy may take it in halves, which it is slow to wait for.
template <class Vector>
struct __attribute__((packed, may_alias)) Whole {
    Vector vector;
};

// The vector's first `lanes` numbers, zeros behind them.
template <class Vector, class Scalar>
static inline Floats load(const Scalar* from, long lanes) {
    if (lanes == LANES) return widen(reinterpret_cast<const Whole<Vector>*>(from)->vector);
    Vector v = {};
    std::memcpy(&v, from, lanes * sizeof(Scalar));
    return widen(v);
}

static inline void narrow(Floats v, Floats& to) { to = v; }
static inline void narrow(Floats v, Halves& to) {  // to the nearest, of two as near to the even one
    const Words w = bits<Words>(v), rounded = (w + 0x7fff + (w >> 16 & 1)) >> 16;
    to = __builtin_convertvector(v == v ? rounded : (w >> 16 | 0x40), Halves);  // a NaN stays one
}

template <class Vector, class Scalar>
static inline void store(Floats v, Scalar* to, long lanes) {
    Vector narrowed;
    narrow(v, narrowed);
    if (lanes == LANES) reinterpret_cast<Whole<Vector>*>(to)->vector = narrowed;
    else std::memcpy(to, &narrowed, lanes * sizeof(Scalar));
}
