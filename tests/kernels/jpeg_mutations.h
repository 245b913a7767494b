// JPEG files damaged at random, for builds under sanitizers.
//
// Most mutations are behind the headers, as most bytes of a file are; each fourth one is within the first 700 bytes, and
// some files are cut.
#pragma once
#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

class Mutations {
  public:
    Mutations(unsigned long seed, int paths, char** path) : random(seed) {
        for (int i = 0; i < paths; i++) {
            std::ifstream file(path[i], std::ios::binary);
            files.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
        }
    }

    long below(long n) { return n > 0 ? static_cast<long>(random() % n) : 0; }

    const std::vector<uint8_t>& whole() { return files[below(files.size())]; }

    // A copy of its own length, so that a read beyond it is seen.
    std::vector<uint8_t> damaged(std::vector<uint8_t> file) {
        for (long n = 1 + below(4); n > 0; n--) {
            const bool is_early = below(4) == 0;
            uint8_t& byte = file[below(is_early ? std::min<long>(700, file.size()) : file.size())];
            byte = below(3) == 0 ? 0xff : below(2) ? byte ^ (1 << below(8)) : below(256);
        }
        if (below(8) == 0) file.resize(below(file.size()));
        file.shrink_to_fit();
        return file;
    }

  private:
    std::mt19937 random;
    std::vector<std::vector<uint8_t>> files;
};
