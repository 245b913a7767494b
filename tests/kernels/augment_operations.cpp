// Random operations on random images, for a build under sanitizers: `images seed`.
//
// Each image and its result have memory of exactly their size, so that a read or write beyond it is seen.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "augment.cpp"

int main(int, char** argv) {
    const long images = std::atol(argv[1]);
    std::mt19937 random(std::atol(argv[2]));
    const auto below = [&](long n) { return static_cast<long>(random() % n); };
    const auto real = [&](double most) { return most * (static_cast<double>(random()) / 2147483648.0 - 1); };
    const uint8_t fill[3] = {1, 128, 255};
    for (long i = 0; i < images; i++) {
        const long side = 1 + below(40), size = 3 * side * side, num_steps = below(4);
        const std::unique_ptr<uint8_t[]> from(new uint8_t[size]), to(new uint8_t[size]);
        const long levels = 1 + below(256);
        for (long j = 0; j < size; j++) from[j] = static_cast<uint8_t>(below(levels));
        const double most[] = {0.1, 1, 10, 300, 30000};
        std::vector<Step> steps;
        for (long j = 0; j < num_steps; j++) {
            const auto any = [&] { return real(most[below(5)]); };
            const long taps[] = {1, 2, 4};
            Step step{below(FLIP + 1), taps[below(3)], any(), {any(), any()}, {1, any(), any(), any(), 1, any()}};
            if (step.operation == BLUR) step.argument = real(9);
            if (step.operation == ROTATE || step.operation == TF_ROTATE) step.matrix.a = any(), step.matrix.e = any();
            steps.push_back(step);
        }
        if (!augment_images(from.get(), to.get(), 1, side, steps.data(), num_steps, fill, 1)) return 1;
    }
    std::printf("%ld images\n", images);
}
