// The samples of a part of a JPEG: of the scan's entropy-coded data only as much is decoded as the part needs.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "jpeg_header.h"
#include "jpeg_huffman.h"
#include "jpeg_idct.h"

namespace jpeg {

// A rectangle of MCUs: [left, right) x [top, bottom).
struct Part {
    long left, right, top, bottom;
};

// Samples of one component, column by column: sample (x, y) of the image is at (x - left) * stride + y - top.
struct Plane {
    std::vector<uint8_t> samples;
    long left = 0, top = 0, stride = 0;

    void set(const Component& component, const Part& part) {
        left = part.left * component.h * 8, top = part.top * component.v * 8;
        const long columns = (part.right - part.left) * component.h * 8;
        const long rows = (part.bottom - part.top) * component.v * 8;
        stride = (rows / 64 | 1) * 64 + 64;  // columns that lie one below the other would share lines of a cache
        if (static_cast<long>(samples.size()) < columns * stride + SLACK) samples.resize(columns * stride + SLACK);
    }

    static constexpr long SLACK = 64;  // bytes that a vector may reach beyond a column
};

class Scan {
  public:
    Bits bits;  // of the segment that is open
    const DcTable* dc_tables[3];  // of the components
    const AcTable* ac_tables[3];
    long total;  // MCUs
    long interval = 0;  // MCUs in a segment

    Scan(const uint8_t* file_end, const Header& header, Tables& tables, std::vector<uint8_t>& scratch)
        : file_end(file_end), header(header), scratch(scratch), across(header.mcus_across()) {
        total = across * header.mcus_down();
        for (int c = 0; c < header.components; c++) {
            dc_tables[c] = &tables.dc.get(header.dc[header.component[c].dc]);
            ac_tables[c] = &tables.ac.get(header.ac[header.component[c].ac]);
        }
    }

    // Find where the segments between restart markers are, up to the end of the image.
    Code find_segments() {
        interval = header.restart_interval ? header.restart_interval : total;
        const long expected = (total + interval - 1) / interval;
        // A block takes 2 bits at least: whoever promises more blocks than there are bits for is not believed.
        if (total * header.blocks_of_an_mcu() > 4 * (file_end - header.entropy)) return DAMAGED;
        const uint8_t* at = header.entropy;
        begins.assign(1, at);
        for (;;) {
            at = static_cast<const uint8_t*>(std::memchr(at, 0xff, file_end - at));
            if (!at || file_end - at < 2) return DAMAGED;
            const int marker = at[1];
            if (marker == 0) { at += 2; continue; }
            if (marker == 0xff) { at++; continue; }
            const long segment = begins.size();
            if (marker == 0xd9) {
                ends_at = at;
                return segment == expected ? DONE : DAMAGED;
            }
            if (marker != (0xd0 | ((segment - 1) & 7)) || segment == expected) return DAMAGED;
            begins.push_back(at += 2);
        }
    }

    // Put the bits of a segment, without stuffed bytes, into the scratch memory.
    void open(size_t segment) {
        const uint8_t* from = begins[segment];
        const uint8_t* end = segment + 1 < begins.size() ? begins[segment + 1] - 2 : ends_at;
        scratch.resize(std::max<size_t>(scratch.size(), end - from + PADDING));
        uint8_t* to = scratch.data();
        while (from < end) {
            const void* found = std::memchr(from, 0xff, end - from);
            // behind 0xff stands 0, or fill bytes at the end
            const uint8_t* stop = found ? static_cast<const uint8_t*>(found) + 1 : end;
            std::memcpy(to, from, stop - from);
            to += stop - from;
            from = found ? stop + 1 : end;
        }
        std::memset(to, 0, PADDING);
        bits = Bits();
        bits.at = scratch.data(), bits.end = to;
    }

    // Decode the samples of a part into planes [components]; they are to be set to it.
    Code decode(const Part& part, Plane* planes) {
        for (size_t s = 0; s < begins.size(); s++) {
            const long first = s * interval, last = last_needed(first, std::min(first + interval, total), part);
            if (last < 0) continue;
            open(s);
            int16_t means[3] = {};
            long row = first / across, column = first % across;
            for (long m = first; m <= last; m++) {
                const bool is_needed =
                    row >= part.top && row < part.bottom && column >= part.left && column < part.right;
                const bool is_whole = is_needed ? read_mcu(means, planes, column, row) : skip_mcu(means);
                if (!is_whole || bits.is_beyond()) return DAMAGED;
                if (++column == across) column = 0, row++;
            }
        }
        uint8_t unseen[64];
        if (number_waiting) inverse_dct(waiting, places[0], {places[0].steps, unseen, 8});
        return DONE;
    }

  private:
    const uint8_t* file_end;
    const Header& header;
    std::vector<uint8_t>& scratch;
    long across;
    std::vector<const uint8_t*> begins;
    const uint8_t* ends_at = nullptr;
    Pair waiting = {};  // blocks whose inverse transform is still to be done
    Place places[2];
    int number_waiting = 0;

    // The last MCU of [first, end) that is in the part; -1 where there is none.
    long last_needed(long first, long end, const Part& part) const {
        for (long row = std::min((end - 1) / across, part.bottom - 1); row >= std::max(first / across, part.top); row--) {
            const long from = std::max(first - row * across, part.left), to = std::min(end - row * across, part.right);
            if (from < to) return row * across + to - 1;
        }
        return -1;
    }

    bool read_mcu(int16_t* means, Plane* planes, long column, long row) {
        Bits bits = this->bits;  // in registers
        for (int c = 0; c < header.components; c++) {
            const Component& each = header.component[c];
            Plane& plane = planes[c];
            for (int v = 0; v < each.v; v++)
                for (int h = 0; h < each.h; h++) {
                    int difference;
                    bool any;
                    if (!dc_tables[c]->read(bits, difference)) return false;
                    means[c] = static_cast<uint16_t>(means[c]) + difference;
                    int16_t* block = waiting.coefficients + number_waiting * Pair::SECOND;
                    if (!ac_tables[c]->read(bits, block, any)) return false;
                    const long x = (column * each.h + h) * 8 - plane.left, y = (row * each.v + v) * 8 - plane.top;
                    const Place place{header.quantisation[each.quantisation], &plane.samples[x * plane.stride + y],
                                      plane.stride};
                    if (!any) {
                        inverse_dct_of_a_mean(means[c], place);
                        continue;
                    }
                    block[0] = means[c];
                    places[number_waiting] = place;
                    if (number_waiting == 1) inverse_dct(waiting, places[0], places[1]);
                    number_waiting ^= 1;
                }
        }
        this->bits = bits;
        return true;
    }

    bool skip_mcu(int16_t* means) {
        Bits bits = this->bits;
        for (int c = 0; c < header.components; c++)
            for (int b = header.component[c].h * header.component[c].v; b > 0; b--) {
                int difference;
                if (!dc_tables[c]->read(bits, difference)) return false;
                means[c] = static_cast<uint16_t>(means[c]) + difference;
                if (!ac_tables[c]->skip(bits)) return false;
            }
        this->bits = bits;
        return true;
    }
};

}  // namespace jpeg
