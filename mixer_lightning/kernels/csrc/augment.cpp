// Flips, and the operations of RandAugment and of colour jitter, on a batch of images of bytes: each thread takes one
// image after the other.
//
// An image of 224 px stays in a core's cache from its first operation to its last. Each has its own operations and is
// computed alone, so that neither the number of threads nor the rest of a batch changes a bit. The same numbers in
// PyTorch, and what the operations mean: data/image_ops.py.
#include <omp.h>

#include <atomic>
#include <exception>

#include "augment_affine.h"
#include "augment_filters.h"
#include "augment_levels.h"

namespace {

using namespace augment;

// The numbers of data/image_ops.Operation.
enum Operation : int64_t {
    IDENTITY, INVERT, POSTERIZE, SOLARIZE, SOLARIZE_ADD, BRIGHTNESS, CONTRAST, AUTOCONTRAST, EQUALIZE, TF_CONTRAST,
    TF_AUTOCONTRAST, COLOR, SHARPNESS, BLUR, TF_COLOR, TF_SHARPNESS, CUTOUT, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y,
    SHIFT_X, SHIFT_Y, ROTATE, TF_SHEAR_X, TF_SHEAR_Y, TF_TRANSLATE_X, TF_TRANSLATE_Y, TF_ROTATE, FLIP
};

// One operation on one image.
struct Step {
    int64_t operation;
    int64_t taps;  // pixels along an axis that an interpolation looks at: 1, 2 or 4
    double argument;
    double centre[2];  // line and column as shares of the side: of CUTOUT
    Matrix matrix;     // where pixels come from: of operations that move them
};

// A square `half` pixels around its centre, in the colour `fill`.
void cut_out(const uint8_t* from, long side, const Step& step, const uint8_t* fill, uint8_t* to) {
    std::memcpy(to, from, 3 * side * side);
    const double extent = static_cast<double>(side);
    const auto edge = [&](double share, double half) {
        return static_cast<long>(std::ceil(std::clamp(std::floor(share * extent) + half, 0.0, extent)));
    };
    const long top = edge(step.centre[0], -step.argument), bottom = edge(step.centre[0], step.argument);
    const long left = edge(step.centre[1], -step.argument), right = edge(step.centre[1], step.argument);
    for (int c = 0; c < 3 && left < right; c++)
        for (long y = top; y < bottom; y++) std::memset(to + (c * side + y) * side + left, fill[c], right - left);
}

void move(const uint8_t* from, long side, const Step& step, const uint8_t* fill, uint8_t* to, Scratch& scratch) {
    const auto by_taps = [&](auto two, auto four) { return step.taps == 4 ? four : two; };
    if (step.operation >= TF_SHEAR_X) return tf_nearest(from, side, step.matrix, fill, to, scratch);
    if (step.taps == 1) return nearest(from, side, step.matrix, fill, to, scratch);
    switch (step.operation) {
        case SHEAR_X: case TRANSLATE_X: case SHIFT_X:
            return by_taps(along_x<2>, along_x<4>)(from, side, step.matrix, fill, to, scratch);
        case SHEAR_Y: case TRANSLATE_Y: case SHIFT_Y:
            return by_taps(along_y<2>, along_y<4>)(from, side, step.matrix, fill, to, scratch);
        default:
            return by_taps(interpolated<2>, interpolated<4>)(from, side, step.matrix, fill, to, scratch);
    }
}

void apply(const uint8_t* from, long side, const Step& step, const uint8_t* fill, uint8_t* to, Scratch& scratch) {
    const long n = side * side;
    const float factor = static_cast<float>(step.argument);
    const auto by_table = [&](const Table& table) { look_up(table, from, 3 * n, to); };
    const auto by_tables = [&](Table (*table)(const uint8_t*, long)) {
        for (int c = 0; c < 3; c++) look_up(table(from + c * n, n), from + c * n, n, to + c * n);
    };
    switch (step.operation) {
        case IDENTITY: std::memcpy(to, from, 3 * n); break;
        case INVERT: by_table(table([](int v) { return 255 - v; })); break;
        case POSTERIZE: by_table(posterize(step.argument)); break;
        case SOLARIZE: by_table(solarize(step.argument)); break;
        case SOLARIZE_ADD: by_table(solarize_add(step.argument)); break;
        case BRIGHTNESS: by_table(brightness(factor)); break;
        case CONTRAST: by_table(contrast(mean_grey(from, n), factor)); break;
        case TF_CONTRAST: by_table(contrast(tf_contrast_level(n), factor)); break;
        case AUTOCONTRAST: by_tables(autocontrast<double>); break;
        case TF_AUTOCONTRAST: by_tables(autocontrast<float>); break;
        case EQUALIZE: by_tables(equalize); break;
        case COLOR: saturate(from, n, factor, to, grey); break;
        case TF_COLOR: saturate(from, n, factor, to, tf_grey); break;
        case SHARPNESS: case TF_SHARPNESS:
            for (int c = 0; c < 3; c++)
                sharpen(from + c * n, side, factor, step.operation == SHARPNESS ? 6 : 0, to + c * n,
                        scratch.columns);
            break;
        case BLUR:
            for (int c = 0; c < 3; c++)
                blur(from + c * n, side, factor, to + c * n, scratch.row, scratch.turned, scratch.sums);
            break;
        case FLIP: mirror(from, side, to); break;
        case CUTOUT: cut_out(from, side, step, fill, to); break;
        default: move(from, side, step, fill, to, scratch);
    }
}

// Memory of one thread.
struct Workspace {
    std::vector<uint8_t> image;
    Scratch scratch;
};

// All steps of one image, which in between is in the workspace or already in `to`.
void apply_all(const uint8_t* from, long side, const Step* steps, long num_steps, const uint8_t* fill, uint8_t* to,
               Workspace& workspace) {
    const auto is_one = [](const Step& step) { return step.operation != IDENTITY; };
    long left = std::count_if(steps, steps + num_steps, is_one);
    if (left == 0) std::memcpy(to, from, 3 * side * side);
    if (left > 1) workspace.image.resize(3 * side * side);
    for (const Step* step = steps; left > 0; step++) {
        if (!is_one(*step)) continue;
        uint8_t* next = --left % 2 == 0 ? to : workspace.image.data();
        apply(from, side, *step, fill, next, workspace.scratch);
        from = next;
    }
}

}  // namespace

// `to` [count, 3, side, side] from `from`, of the same shape, by steps [count, num_steps]. False where memory is short.
extern "C" bool augment_images(const uint8_t* from, uint8_t* to, long count, long side, const Step* steps,
                               long num_steps, const uint8_t* fill, int num_threads) try {
    const long size = 3 * side * side;
    std::vector<Workspace> workspaces(num_threads);
    std::atomic<bool> is_done{true};
#pragma omp parallel for schedule(dynamic, 1) num_threads(num_threads)
    for (long i = 0; i < count; i++) try {
            Workspace& mine = workspaces[omp_get_thread_num()];
            apply_all(from + i * size, side, steps + i * num_steps, num_steps, fill, to + i * size, mine);
        } catch (const std::exception&) {
            is_done = false;
        }
    return is_done;
} catch (const std::exception&) {
    return false;
}
