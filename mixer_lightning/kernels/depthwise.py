"""Depthwise convolution whose gradients are fast on a CPU.

PyTorch's own weight gradient of a depthwise convolution runs at a few percent of the speed of its forward pass, and
most of a ConvMixer training step on a CPU goes there. Here

* the input gradient is a forward convolution with the flipped kernel, which PyTorch does at full speed;
* the gradients of weight and bias are C++ that keeps a row of the kernel in registers. It is compiled when it is
  first needed (a second, once per machine) where there is a C++ compiler; elsewhere a form in PyTorch is used.

    B batch   C channels   H, W sides of x   h, w sides of the output   kh, kw sides of the kernel
    pads (left, right, top, bottom), the order of torch.nn.functional.pad
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Pads = tuple[int, int, int, int]
Padding = int | tuple[int, int] | Literal["same", "valid"]


class DepthwiseConv2d(nn.Conv2d):
    """nn.Conv2d(dim, dim, kernel_size, groups=dim) of stride 1: same parameters, initialisation and results."""

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        *,
        padding: int | Literal["same", "valid"] = "same",
        bias: bool = True,
    ) -> None:
        super().__init__(dim, dim, kernel_size, groups=dim, padding=padding, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w]."""
        return depthwise_conv2d(input, self.weight, self.bias, padding=self.padding)  # type: ignore[arg-type]


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *, padding: Padding = "same") -> Tensor:
    """F.conv2d(x, weight, bias, padding=padding, groups=C) of x [B, C, H, W] and weight [C, 1, kh, kw].

    Training on a CPU in float32 or bfloat16 takes the fast gradients, which can not be differentiated again; anything
    else is F.conv2d itself.
    """
    if not (x.is_cpu and torch.is_grad_enabled() and x.dim() == 4 and weight.shape[:2] == (x.shape[1], 1)):
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
    tensors = [t for t in (x, weight, bias) if t is not None]
    if (
        not any(t.requires_grad for t in tensors)
        or dtype not in (torch.float32, torch.bfloat16)
        or not (autocast or all(t.dtype == dtype for t in tensors))
    ):
        return F.conv2d(x, weight, bias, padding=padding, groups=x.shape[1])
    y: Tensor = _Depthwise.apply(x.to(dtype), weight, bias, _pads(padding, *weight.shape[2:]))
    return y


class _Depthwise(torch.autograd.Function):
    """y[b, c, m, n] = bias[c] + sum over i, j of weight[c, 0, i, j] * x[b, c, m + i - top, n + j - left]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, pads: Pads) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.pads = pads
        bias = None if bias is None else bias.to(x.dtype)
        return _convolve(x, weight.to(x.dtype), bias, pads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        left, right, top, bottom = ctx.pads
        kh, kw = weight.shape[2:]
        dx = dw = db = None
        if ctx.needs_input_grad[0]:
            # every y[m] holds x[m + i - top] w[i], so dx[m] = sum of g[m + top - i] w[i]: a convolution again
            pads = (kw - 1 - left, kw - 1 - right, kh - 1 - top, kh - 1 - bottom)
            dx = _convolve(g, weight.to(g.dtype).flip(2, 3), None, pads)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            dw, db = (d.to(weight.dtype) for d in weight_gradients(x, g, kh, kw, top, left))
        return dx, dw, db if ctx.needs_input_grad[2] else None, None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, pads: Pads) -> Tensor:
    left, right, top, bottom = pads
    if left == right >= 0 and top == bottom >= 0:
        return F.conv2d(x, weight, bias, padding=(top, left), groups=x.shape[1])
    return F.conv2d(F.pad(x, pads), weight, bias, groups=x.shape[1])  # negative pads cut


def _pads(padding: Padding, kh: int, kw: int) -> Pads:
    """With "same" as PyTorch does it, which pads an even kernel by one more on the right and below."""
    if padding == "same":
        return (kw - 1) // 2, kw // 2, (kh - 1) // 2, kh // 2
    if padding == "valid":
        return 0, 0, 0, 0
    assert not isinstance(padding, str)
    down, across = (padding, padding) if isinstance(padding, int) else padding
    return across, across, down, down


# ------------------------------------------------------------------------------- gradients of weight and bias


@torch.library.custom_op("mixer_lightning::depthwise_weight_gradients", mutates_args=())
def weight_gradients(x: Tensor, g: Tensor, kh: int, kw: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    """(dw, db) from x [B, C, H, W] and the output's gradient g [B, C, h, w], both float32 or both bfloat16.

    dw[c, 0, i, j] = sum over b, m, n of g[b, c, m, n] * x[b, c, m + i - top, n + j - left], outside x zero;
    db[c] = sum over b, m, n of g[b, c, m, n]. Both are float32, and the same bits for any number of threads. An
    operator of its own, so that torch.compile calls it as it is.
    """
    native = native_weight_gradients()
    if native is None:
        return plain_weight_gradients(x, g, kh, kw, top, left)
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    B, C, H, W = x.shape
    h, w = g.shape[2:]
    out = torch.empty(B, kh * kw + 1, C)
    native(
        x.data_ptr(), g.data_ptr(), out.data_ptr(), x.dtype == torch.bfloat16,
        B, C, H, W, h, w, kh, kw, top, left, torch.get_num_threads(),
    )  # fmt: skip
    dw, db = torch.split(out.sum(0), [kh * kw, 1])  # [kh * kw, C], [1, C]
    return dw.t().contiguous().view(C, 1, kh, kw), db[0].clone()


@weight_gradients.register_fake
def _(x: Tensor, g: Tensor, kh: int, kw: int, top: int, left: int) -> tuple[Tensor, Tensor]:
    C = x.shape[1]
    return x.new_empty(C, 1, kh, kw, dtype=torch.float32), x.new_empty(C, dtype=torch.float32)


def plain_weight_gradients(
    x: Tensor, g: Tensor, kh: int, kw: int, top: int, left: int
) -> tuple[Tensor, Tensor]:
    """`weight_gradients` in PyTorch: each map of x [H, W] is convolved with its map of g [h, w] as the kernel."""
    B, C, H, W = x.shape
    h, w = g.shape[2:]
    x = F.pad(x, (left, w + kw - 1 - W - left, top, h + kh - 1 - H - top))  # negative pads cut
    maps = F.conv2d(x.reshape(1, B * C, *x.shape[2:]), g.reshape(B * C, 1, h, w), groups=B * C)
    dw = maps.view(B, C, kh, kw).sum(0, dtype=torch.float32).unsqueeze(1)
    return dw, g.sum(dim=(0, 2, 3), dtype=torch.float32)


@functools.cache
def native_weight_gradients() -> Callable[..., None] | None:
    """The compiled SOURCE; None where no compiler here makes something of it that loads.

    The library stays in the user's cache folder, under a name that changes with the source, the compiler's flags and
    the processor.
    """
    try:
        processor = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        flags = [
            line for line in processor.splitlines() if line.startswith(("flags", "Features", "model name"))
        ]
        name = hashlib.sha256("\n".join([SOURCE, *FLAGS, *flags]).encode()).hexdigest()[:16]
        library = _cache_folder() / f"depthwise-{name}.so"
        if not library.exists():
            _compile(library)
        function = ctypes.CDLL(str(library)).depthwise_weight_gradients
    except (OSError, subprocess.SubprocessError):
        return None
    function.restype = None
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_bool] + [ctypes.c_long] * 10 + [ctypes.c_int]
    return function


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixer_lightning"


def _compile(library: Path) -> None:
    """Several processes may come here at once: each works in its own folder, then moves its file into place."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        source, unlinked, linked = (Path(folder, f"depthwise.{kind}") for kind in ("cpp", "o", "so"))
        source.write_text(SOURCE)
        # Linked without OpenMP: it then uses the OpenMP that PyTorch has loaded, and with it the same threads.
        commands = (
            [*FLAGS, "-c", str(source), "-o", str(unlinked)],
            ["-shared", str(unlinked), "-o", str(linked)],
        )
        for words in commands:
            subprocess.run([*shlex.split(compiler), *words], check=True, capture_output=True, timeout=120)
        linked.replace(library)


FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi")

# Each task is one image and as many channels as a vector register has lanes. It copies both into float32, with the
# zeros around x, and then slides over rows: T taps of a kernel row stay in registers while n positions pass by, four
# at a time, so that a vector of x that was loaded once is used in up to four products.
SOURCE = r"""
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
constexpr long LANES = 16;
#else
constexpr long LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));

static Floats widen(Floats v) { return v; }
static Floats widen(Halves v) {  // a bfloat16 is the upper half of a float32
    Words bits = __builtin_convertvector(v, Words) << 16;
    Floats floats;
    std::memcpy(&floats, &bits, sizeof floats);
    return floats;
}

template <class Vector, class Scalar>
static Floats load(const Scalar* from, long lanes) {
    Vector v = {};
    if (lanes == LANES) std::memcpy(&v, from, sizeof v);
    else std::memcpy(&v, from, lanes * sizeof(Scalar));
    return widen(v);
}

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
"""
