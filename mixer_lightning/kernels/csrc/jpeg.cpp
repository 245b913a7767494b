// Crops of JPEG files: of each file what a box needs is decoded, resized and converted to RGB.
//
// Baseline files of 8 bits are decoded, grey or YCbCr, with luma at one or two times the resolution of chroma. Components
// are resized as they are stored, and colour is converted on the result: resizing comes first because it is linear but for
// rounding. Whatever else comes is answered with a code.
#include <memory>
#include <mutex>

#include "jpeg_header.h"
#include "jpeg_scan.h"
#include "resample.h"

namespace {

using jpeg::Code;

// Which part of an image becomes a crop: as data/crops.py has it.
struct Crop {
    int64_t left, top, width, height, to_width, to_height, x, y, filter;
};

// Memory that is used again for the next file.
struct Context {
    jpeg::Tables tables;
    jpeg::Header header;
    std::vector<uint8_t> entropy;
    jpeg::Plane planes[3];
    resample::Taps across[2], down[2];  // of components at full and at half resolution
    std::vector<uint8_t> narrow, turned[3], rows;

    Code crop(const uint8_t* file, long length, const Crop& crop, long size, uint8_t* out);

  private:
    const resample::Taps& columns_of(int component) const { return across[header.component[component].h < header.h]; }
    const resample::Taps& lines_of(int component) const { return down[header.component[component].v < header.v]; }
    void narrow_plane(int component, long size);
    void write(long size, uint8_t* out);
    long turned_stride(long size) const { return (size + 63) / 64 * 64; }
};

Code Context::crop(const uint8_t* file, long length, const Crop& crop, long size, uint8_t* out) {
    header = jpeg::Header();
    if (const Code code = jpeg::HeaderReader(file, length, header).read()) return code;
    if (header.h > 1 && header.width <= 4) return jpeg::OTHER_KIND;  // libjpeg repeats chroma of one or two columns
    const resample::Axis x{crop.left, crop.width, crop.to_width, crop.x, size};
    const resample::Axis y{crop.top, crop.height, crop.to_height, crop.y, size};
    if (!resample::Taps::is_possible(x) || !resample::Taps::is_possible(y)) return jpeg::OTHER_KIND;
    if (crop.filter != resample::BILINEAR && crop.filter != resample::BICUBIC) return jpeg::OTHER_KIND;
    if (crop.left + crop.width > header.width || crop.top + crop.height > header.height) return jpeg::OTHER_KIND;

    jpeg::Scan scan(file + length, header, tables, entropy);
    if (const Code code = scan.find_segments()) return code;
    const auto filter = static_cast<resample::Filter>(crop.filter);
    jpeg::Part part{header.mcus_across(), 0, header.mcus_down(), 0};
    for (int i = 0; i < (header.components == 3 ? 2 : 1); i++) {
        const jpeg::Component& each = header.component[i];
        const bool is_narrow = each.h < header.h, is_low = each.v < header.v;
        if (i == 0 || is_narrow) across[is_narrow].set(x, filter, is_narrow, each.width);
        if (i == 0 || is_low) down[is_low].set(y, filter, is_low, each.height);
        const resample::Taps &columns = columns_of(i), &lines = lines_of(i);
        part.left = std::min(part.left, columns.first() / (8 * each.h));
        part.right = std::max(part.right, columns.last() / (8 * each.h) + 1);
        part.top = std::min(part.top, lines.first() / (8 * each.v));
        part.bottom = std::max(part.bottom, lines.last() / (8 * each.v) + 1);
    }
    for (int c = 0; c < header.components; c++) planes[c].set(header.component[c], part);
    if (const Code code = scan.decode(part, planes)) return code;
    for (int c = 0; c < header.components; c++) narrow_plane(c, size);
    write(size, out);
    return jpeg::DONE;
}

// Resize a plane across, and turn it so that its rows are rows: `turned` [rows that count, size].
void Context::narrow_plane(int component, long size) {
    const jpeg::Plane& plane = planes[component];
    const resample::Taps &columns = columns_of(component), &lines = lines_of(component);
    const long first = lines.first(), rows = lines.last() - first + 1;
    const long stride = (rows / 64 | 1) * 64 + 64, turned_to = turned_stride(size);
    const long wide = (size + 7) / 8 * 8;
    narrow.resize(std::max<size_t>(narrow.size(), wide * stride + jpeg::Plane::SLACK));
    for (long j = 0; j < size; j++) {
        const uint8_t* from = &plane.samples[(columns.begin[j] - plane.left) * plane.stride + first - plane.top];
        resample::weighted_sum(from, plane.stride, &columns.weight[j * columns.taps], columns.count[j], &narrow[j * stride], rows);
    }
    auto& to = turned[component];
    to.resize(std::max<size_t>(to.size(), (rows + 7) / 8 * 8 * turned_to + jpeg::Plane::SLACK));
    resample::transpose(narrow.data(), stride, size, rows, to.data(), turned_to);
}

// Resize down, row by row, and convert each to RGB [3, size, size].
void Context::write(long size, uint8_t* out) {
    using bytes::Words;
    const long stride = turned_stride(size);
    rows.resize(6 * stride + jpeg::Plane::SLACK);
    uint8_t* row[3] = {&rows[0], &rows[stride], &rows[2 * stride]};
    uint8_t* colour[3] = {&rows[3 * stride], &rows[4 * stride], &rows[5 * stride]};
    for (long i = 0; i < size; i++) {
        for (int c = 0; c < header.components; c++) {
            const resample::Taps& lines = lines_of(c);
            const uint8_t* from = &turned[c][(lines.begin[i] - lines.first()) * stride];
            resample::weighted_sum(from, stride, &lines.weight[i * lines.taps], lines.count[i], row[c], size);
        }
        if (header.components == 3)
            for (long j = 0; j < size; j += 16) {  // libjpeg's factors, of 16 bits: 91881, -22554, -46802 and 116130
                const Words y = bytes::words(row[0] + j);
                const Words cb = bytes::words(row[1] + j) - 128, cr = bytes::words(row[2] + j) - 128;
                const auto green = [](Words both) {
                    return bytes::shifted_right(bytes::products(both, -22554, 65536 - 46802) + 32768, 16);
                };
                bytes::store(y + cr + bytes::scaled(cr, 91881 - 65536), colour[0] + j);
                bytes::store(y - cr + bytes::packed(green(bytes::first_halves(cb, cr)), green(bytes::last_halves(cb, cr))),
                             colour[1] + j);
                bytes::store(y + cb + cb + bytes::scaled(cb, 116130 - 2 * 65536), colour[2] + j);
            }
        for (int c = 0; c < 3; c++)
            std::memcpy(out + (c * size + i) * size, header.components == 3 ? colour[c] : row[0], size);
    }
}

// Contexts of calls before: memory that has been touched is worth keeping.
class Pool {
  public:
    std::unique_ptr<Context> take() {
        const std::lock_guard<std::mutex> guard(lock);
        if (kept.empty()) return std::make_unique<Context>();
        auto context = std::move(kept.back());
        kept.pop_back();
        return context;
    }
    void give(std::unique_ptr<Context> context) {
        const std::lock_guard<std::mutex> guard(lock);
        kept.push_back(std::move(context));
    }

  private:
    std::mutex lock;
    std::vector<std::unique_ptr<Context>> kept;
};

Pool pool;

}  // namespace

// Crops [3, size, size] of n files; codes[i] is 0, or says why out[i] is not written.
extern "C" void jpeg_crops(long n, const uint8_t* const* files, const int64_t* lengths, const Crop* crops, long size,
                           uint8_t* const* out, int32_t* codes) {
    auto context = pool.take();
    for (long i = 0; i < n; i++) try {
            codes[i] = context->crop(files[i], lengths[i], crops[i], size, out[i]);
        } catch (const std::exception&) {  // no memory
            codes[i] = jpeg::OTHER_KIND;
        }
    pool.give(std::move(context));
}
