// Damages JPEG files at random and crops them, for a build under sanitizers: `executions seed file...`.
//
// Most mutations are behind the headers, as most bytes of a file are; each fourth one is within the first 700 bytes, and
// some files are cut. Prints how many were decoded, left to another decoder, and found damaged.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "jpeg.cpp"

int main(int argc, char** argv) {
    const long executions = std::atol(argv[1]);
    std::mt19937 random(std::atol(argv[2]));
    std::vector<std::vector<uint8_t>> files;
    for (int i = 3; i < argc; i++) {
        std::ifstream file(argv[i], std::ios::binary);
        files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
    const auto below = [&](long n) { return n > 0 ? static_cast<long>(random() % n) : 0; };
    long counts[3] = {};
    constexpr long SIZE = 24;
    std::vector<uint8_t> out(3 * SIZE * SIZE);
    for (long e = 0; e < executions; e++) {
        // a copy of its own length, so that a read beyond it is seen
        std::vector<uint8_t> file = files[below(files.size())];
        jpeg::Header header;
        jpeg::HeaderReader(file.data(), file.size(), header).read();
        for (long n = 1 + below(4); n > 0; n--) {
            const bool is_early = below(4) == 0;
            uint8_t& byte = file[below(is_early ? std::min<long>(700, file.size()) : file.size())];
            byte = below(3) == 0 ? 0xff : below(2) ? byte ^ (1 << below(8)) : below(256);
        }
        if (below(8) == 0) file.resize(below(file.size()));
        file.shrink_to_fit();
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
