// Crops of damaged JPEG files, for a build under sanitizers: `executions seed file...`.
//
// Prints how many were decoded, left to another decoder, and found damaged.
#include <cstdio>
#include <cstdlib>

#include "jpeg.cpp"
#include "jpeg_mutations.h"

int main(int argc, char** argv) {
    const long executions = std::atol(argv[1]);
    Mutations mutations(std::atol(argv[2]), argc - 3, argv + 3);
    const auto below = [&](long n) { return mutations.below(n); };
    long counts[3] = {};
    constexpr long SIZE = 24;
    std::vector<uint8_t> out(3 * SIZE * SIZE);
    for (long e = 0; e < executions; e++) {
        const std::vector<uint8_t>& whole = mutations.whole();
        jpeg::Header header;
        jpeg::HeaderReader(whole.data(), whole.size(), header).read();
        const std::vector<uint8_t> file = mutations.damaged(whole);
        // a box of the size that the file said, seen at a size of its own
        const long width = 1 + below(header.width), height = 1 + below(header.height);
        const long to_width = SIZE + below(40), to_height = SIZE + below(40);
        const Crop crop{below(header.width - width + 1), below(header.height - height + 1), width, height, to_width,
                        to_height, below(to_width - SIZE + 1), below(to_height - SIZE + 1), below(2)};
        const uint8_t* data = file.data();
        const int64_t length = file.size();
        uint8_t* to = out.data();
        int32_t code;
        jpeg_crops(1, &data, &length, &crop, SIZE, &to, &code);
        counts[code]++;
    }
    std::printf("%ld decoded, %ld of another kind, %ld damaged\n", counts[0], counts[1], counts[2]);
}
