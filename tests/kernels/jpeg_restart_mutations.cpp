// Restart markers for damaged JPEG files, for a build under sanitizers: `executions seed file...`.
//
// What is written must be a file that is written again byte by byte. Prints how many were written, left alone, and found
// damaged.
#include <cstdio>
#include <cstdlib>

#include "jpeg_mutations.h"
#include "jpeg_restart.cpp"

namespace {

// The file with markers, in memory of its own length; a code below 0 where there is none.
long with_markers(const std::vector<uint8_t>& file, long every, std::vector<uint8_t>& marked) {
    marked.resize(2 * file.size() + 4096);
    const long length = jpeg_with_restart_markers(file.data(), file.size(), every, marked.data(), marked.size());
    marked.resize(std::max(0L, length));
    marked.shrink_to_fit();
    return length;
}

}  // namespace

int main(int argc, char** argv) {
    const long executions = std::atol(argv[1]);
    Mutations mutations(std::atol(argv[2]), argc - 3, argv + 3);
    long counts[3] = {};
    std::vector<uint8_t> marked, again;
    for (long e = 0; e < executions; e++) {
        const std::vector<uint8_t> file = mutations.damaged(mutations.whole());
        const long every = 1 + mutations.below(mutations.below(4) ? 8 : 65535);
        const long length = with_markers(file, every, marked);
        counts[length > 0 ? 0 : -length]++;
        if (length == 0) counts[0]--, counts[1]++;  // more than there is room for
        if (length > 0 && (with_markers(marked, every, again) != length || again != marked)) {
            std::fprintf(stderr, "execution %ld: written again, the file differs\n", e);
            return 1;
        }
    }
    std::printf("%ld written, %ld of another kind, %ld damaged\n", counts[0], counts[1], counts[2]);
}
