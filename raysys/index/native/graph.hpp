// A hierarchical navigable small world (Malkov & Yashunin, 2018) over the rows of a matrix that the
// caller owns and passes with each call: row `slot` never changes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "row_filter.hpp"

namespace raysys {

constexpr Slot NONE = 0xFFFFFFFF;

// A distance and a slot in one integer, in whose order they are: heaps need a single comparison.
class Near {
  public:
    Near() = default;
    Near(float distance, Slot slot) {
        std::uint32_t bits;
        std::memcpy(&bits, &distance, sizeof bits);
        key_ = std::uint64_t{bits ^ (bits >> 31 ? 0xFFFFFFFF : 0x80000000)} << 32 | slot;
    }

    Slot slot() const { return static_cast<Slot>(key_); }
    float distance() const {
        const std::uint32_t high = key_ >> 32, bits = high ^ (high >> 31 ? 0x80000000 : 0xFFFFFFFF);
        float distance;
        std::memcpy(&distance, &bits, sizeof distance);
        return distance;
    }
    bool operator<(const Near& other) const { return key_ < other.key_; }
    bool operator>(const Near& other) const { return key_ > other.key_; }

  private:
    std::uint64_t key_ = 0;
};

class Bits {
  public:
    void resize(size_t bits) { words_.resize((bits + 63) / 64, 0); }
    bool operator[](Slot i) const { return words_[i >> 6] >> (i & 63) & 1; }
    // True if it was not set.
    bool set(Slot i) {
        std::uint64_t& word = words_[i >> 6];
        const std::uint64_t before = word;
        word |= std::uint64_t{1} << (i & 63);
        return word != before;
    }
    void clear_word_of(Slot i) { words_[i >> 6] = 0; }

  private:
    std::vector<std::uint64_t> words_;
};

// Memory in huge pages where the system has them: links are read in no order.
template <class T>
struct HugePages {
    using value_type = T;
    static constexpr size_t PAGE = size_t{2} << 20;

    T* allocate(size_t count) {
        const size_t bytes = count * sizeof(T), page = bytes < PAGE ? 64 : PAGE;
        void* memory = std::aligned_alloc(page, (bytes + page - 1) / page * page);
        if (!memory) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
        if (page == PAGE) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
        return static_cast<T*>(memory);
    }
    void deallocate(T* memory, size_t) { std::free(memory); }
    bool operator==(const HugePages&) const { return true; }
    bool operator!=(const HugePages&) const { return false; }
};

// Working memory of a search in one thread.
struct Scratch {
    Bits seen;
    std::vector<std::int8_t> query;  // in codes
    Scale scale;
    std::vector<Slot> touched, fresh;
    std::vector<float> distances;
    std::vector<Near> candidates, results;  // heaps: the nearest, the farthest on top

    void start(size_t slots) {
        for (const Slot slot : touched) seen.clear_word_of(slot);
        seen.resize(slots);
        touched.clear();
        candidates.clear();
        results.clear();
    }

    void mark(Slot slot) {
        seen.set(slot);
        touched.push_back(slot);
    }
};

// Into a heap with the farthest on top, which makes room where it is full.
inline void push_nearest(std::vector<Near>& heap, Near near, size_t capacity) {
    if (heap.size() >= capacity) {
        std::pop_heap(heap.begin(), heap.end());
        heap.pop_back();
    }
    heap.push_back(near);
    std::push_heap(heap.begin(), heap.end());
}

// The k nearest of some slots that are allowed, into `heap`, the farthest on top.
template <class Allowed>
void nearest_of(
    const std::vector<Slot>& slots, const Rows& rows, const Rows& query, size_t dim, size_t k,
    Distances distances, const Allowed& allowed, std::vector<Near>& heap
) {
    constexpr size_t step = 256;
    float block[step];
    heap.clear();
    for (size_t first = 0; first < slots.size(); first += step) {
        const size_t count = std::min(step, slots.size() - first);
        distances(query, rows, dim, &slots[first], count, block);
        for (size_t i = 0; i < count; i++) {
            const Near near{block[i], slots[first + i]};
            if (heap.size() >= k && !(near < heap.front())) continue;
            if (!allowed(near.slot())) continue;
            push_nearest(heap, near, k);
        }
    }
}

class Graph {
  public:
    Graph(size_t dim, size_t M, size_t ef_construction, std::uint64_t seed, bool l2, bool coded,
          size_t capacity)
        : dim_(dim), M_(M), ef_construction_(ef_construction), random_(seed),
          exact_distances_(distances_function<float>(l2)),
          distances_(coded ? distances_function<std::int8_t>(l2) : exact_distances_),
          width_(coded ? code_bytes(dim) : 0), lines_((2 * M + 15) / 16) {
        base_.reserve(capacity * lines_);
        upper_at_.reserve(capacity);
        codes_.reserve(capacity * width_);
        scales_.reserve(width_ ? capacity : 0);
    }

    size_t size() const { return size_; }

    void add(const float* vectors, Slot slot) {
        reserve(slot);
        encode(vectors, slot);
        const Rows rows = rows_of(vectors);
        // Uniform in (0, 1], the same on every platform.
        const double uniform = ((random_() >> 11) + 1) * (1.0 / 9007199254740992.0);
        const int level = static_cast<int>(-std::log(uniform) / std::log(static_cast<double>(M_)));
        upper_at_[slot] = 0;
        if (level > 0) {
            upper_at_[slot] = upper_.size();
            upper_.push_back(level);
            upper_.resize(upper_.size() + level * M_, NONE);
        }
        size_++;
        if (top_ < 0) {
            entry_ = slot, top_ = level;
            return;
        }
        const Rows query = row_of(rows, slot);
        Near nearest = descend(rows, query, level, scratch_);
        for (int at = std::min(level, top_); at >= 0; at--) {
            begin(scratch_, nearest, !deleted_[nearest.slot()]);
            walk(rows, query, at, ef_construction_, scratch_, [&](Slot s) { return !deleted_[s]; });
            std::vector<Near>& found = scratch_.results;
            if (found.empty()) found.push_back(nearest);  // every row is deleted
            std::sort(found.begin(), found.end());
            nearest = found[0];
            select(rows, found, M_);
            Slot* links = links_of(slot, at);
            for (size_t i = 0; i < found.size(); i++) links[i] = found[i].slot();
            for (const Near& other : std::vector<Near>(found))
                connect(rows, other.slot(), {other.distance(), slot}, at);
        }
        if (level > top_) entry_ = slot, top_ = level;
    }

    // Leave a row out of answers; false if it is not in the graph, or left out already.
    bool remove(Slot slot) {
        if (slot >= upper_at_.size() || upper_at_[slot] == NONE || deleted_[slot]) return false;
        deleted_.set(slot);
        size_--;
        return true;
    }

    // The k nearest matching rows, into `scratch.results`, nearest first; fewer if fewer are reached.
    void search(
        const float* vectors, const float* query, size_t k, size_t ef, const RowFilter* filter,
        Scratch& scratch
    ) const {
        scratch.start(upper_at_.size());
        if (top_ < 0) return;
        ef = std::max(k, ef);
        const Rows rows = rows_of(vectors), from = query_of(query, scratch);
        const Near nearest = descend(rows, from, 0, scratch);
        const auto reach = [&](const auto& allowed) {
            begin(scratch, nearest, allowed(nearest.slot()));
            walk(rows, from, 0, ef, scratch, allowed);
        };
        if (filter) {
            reach([&](Slot slot) { return !deleted_[slot] && (*filter)(slot); });
        } else {
            reach([&](Slot slot) { return !deleted_[slot]; });
        }
        rank(vectors, query, k, scratch);
    }

    // The same by comparison with some slots that match; those not in the graph are left out.
    void search_among(
        const std::vector<Slot>& slots, const float* vectors, const float* query, size_t k,
        size_t ef, Scratch& scratch
    ) const {
        const Rows rows = rows_of(vectors), from = query_of(query, scratch);
        nearest_of(slots, rows, from, dim_, width_ ? std::max(4 * k, ef) : k, distances_,
                   [&](Slot slot) { return upper_at_[slot] != NONE && !deleted_[slot]; },
                   scratch.results);
        rank(vectors, query, k, scratch);
    }

    void save(std::FILE* file) const {
        const std::uint64_t head[] = {MAGIC, dim_, M_, entry_, static_cast<std::uint64_t>(top_ + 1),
                                      upper_at_.size(), upper_.size()};
        write(file, head, 7);
        write(file, base_.data(), base_.size());
        write(file, upper_at_.data(), upper_at_.size());
        write(file, upper_.data(), upper_.size());
    }

    // Of the same vectors.
    void load(std::FILE* file, const float* vectors, size_t count) {
        std::uint64_t head[7] = {};
        read(file, head, 7);
        if (head[0] != MAGIC || head[1] != dim_ || head[2] != M_)
            throw std::runtime_error("not a graph of these settings");
        if (head[5] > count) throw std::runtime_error("the file has more rows than there are vectors");
        entry_ = head[3], top_ = static_cast<int>(head[4]) - 1;
        base_.resize(head[5] * lines_);
        upper_at_.resize(head[5]);
        upper_.resize(head[6]);
        read(file, base_.data(), base_.size());
        read(file, upper_at_.data(), upper_at_.size());
        read(file, upper_.data(), upper_.size());
        check();
        deleted_.resize(head[5]);
        resize_codes(head[5]);
        for (Slot slot = 0; slot < head[5]; slot++) encode(vectors, slot);
        size_ = head[5] - std::count(upper_at_.begin(), upper_at_.end(), NONE);
        random_.seed(size_);
    }

    // The number of slots, in the graph or not.
    size_t slots() const { return upper_at_.size(); }

  private:
    static constexpr std::uint64_t MAGIC = 0x31574e5348595352;  // "RSYHSNW1"
    struct alignas(64) Line {
        Slot slots[16];
    };

    size_t dim_, M_, ef_construction_;
    std::mt19937_64 random_;
    Distances exact_distances_, distances_;  // of vectors; of what the graph compares
    size_t width_;                // of a row of codes; 0 where vectors are compared
    std::vector<std::int8_t, HugePages<std::int8_t>> codes_;
    std::vector<Scale, HugePages<Scale>> scales_;
    size_t lines_;                // of each slot's 2 M links
    std::vector<Line, HugePages<Line>> base_;      // links of the lowest level, NONE after the last
    std::vector<Slot> upper_at_;  // position in `upper_`, 0 without upper levels, NONE without a row
    std::vector<Slot> upper_{0};  // for each row there: its level, M links for each
    Bits deleted_;
    size_t size_ = 0;
    Slot entry_ = 0;
    int top_ = -1;
    Scratch scratch_;

    // Refuse a file that would lead a search out of the arrays.
    void check() const {
        const size_t slots = upper_at_.size();
        const auto is_row = [&](Slot slot) { return slot < slots && upper_at_[slot] != NONE; };
        bool is_sound = top_ < 0 || is_row(entry_);
        for (size_t slot = 0; slot < slots && is_sound; slot++) {
            const size_t at = upper_at_[slot] == NONE ? 0 : upper_at_[slot];
            const size_t levels = at < upper_.size() ? upper_[at] : NONE;
            is_sound = at + levels * M_ < std::max<size_t>(upper_.size(), 1);
            for (size_t level = 0; level <= levels && is_sound; level++)
                each_link(slot, level, [&](Slot other) {
                    is_sound &= is_row(other);
                    if (is_sound && level)
                        is_sound = upper_at_[other] && upper_[upper_at_[other]] >= level;
                });
        }
        if (!is_sound) throw std::runtime_error("the file of the graph is damaged");
    }

    void reserve(Slot slot) {
        if (slot < upper_at_.size()) return;
        Line empty;
        std::fill(empty.slots, empty.slots + 16, NONE);
        base_.resize((slot + size_t{1}) * lines_, empty);
        upper_at_.resize(slot + size_t{1}, NONE);
        deleted_.resize(slot + size_t{1});
        resize_codes(slot + size_t{1});
    }

    void resize_codes(size_t slots) {
        codes_.resize(slots * width_);
        scales_.resize(width_ ? slots : 0);
    }

    void encode(const float* vectors, Slot slot) {
        if (width_) scales_[slot] = raysys::encode(vectors + slot * dim_, dim_, &codes_[slot * width_]);
    }

    // What the graph compares: codes, or the vectors themselves.
    Rows rows_of(const float* vectors) const {
        return width_ ? Rows{codes_.data(), scales_.data()} : Rows{vectors};
    }

    Rows row_of(const Rows& rows, Slot slot) const {
        if (width_) return {static_cast<const std::int8_t*>(rows.data) + slot * width_, rows.scales + slot};
        return {static_cast<const float*>(rows.data) + slot * dim_};
    }

    Rows query_of(const float* query, Scratch& scratch) const {
        if (!width_) return {query};
        scratch.query.resize(width_);
        scratch.scale = raysys::encode(query, dim_, scratch.query.data());
        return {scratch.query.data(), &scratch.scale};
    }

    // Sort results by the distances of the vectors, and keep the k nearest.
    void rank(const float* vectors, const float* query, size_t k, Scratch& scratch) const {
        std::vector<Near>& results = scratch.results;
        if (width_) {
            const size_t count = results.size();
            scratch.fresh.clear();
            for (const Near& near : results) scratch.fresh.push_back(near.slot());
            scratch.distances.resize(std::max(scratch.distances.size(), count));
            exact_distances_({query}, {vectors}, dim_, scratch.fresh.data(), count,
                             scratch.distances.data());
            for (size_t i = 0; i < count; i++) results[i] = {scratch.distances[i], scratch.fresh[i]};
        }
        const auto end = results.begin() + std::min(k, results.size());
        std::partial_sort(results.begin(), end, results.end());
        results.erase(end, results.end());
    }

    size_t limit(int level) const { return level ? M_ : 2 * M_; }

    const Slot* links_of(Slot slot, int level) const {
        return level ? &upper_[upper_at_[slot] + 1 + (level - 1) * M_]
                     : base_[slot * lines_].slots;
    }
    Slot* links_of(Slot slot, int level) {
        return const_cast<Slot*>(std::as_const(*this).links_of(slot, level));
    }

    template <class Use>
    void each_link(Slot slot, int level, Use use) const {
        const Slot *links = links_of(slot, level), *end = links + limit(level);
        for (; links != end && *links != NONE; links++) use(*links);
    }

    // The row that a greedy walk from the top reaches above a level.
    Near descend(const Rows& rows, const Rows& query, int above, Scratch& scratch) const {
        float distance;
        distances_(query, rows, dim_, &entry_, 1, &distance);
        Near nearest{distance, entry_};
        scratch.distances.resize(std::max(scratch.distances.size(), 2 * M_));
        for (int level = top_; level > above; level--) {
            scratch.start(upper_at_.size());
            for (bool moved = true; moved;) {
                moved = false;
                fresh_links(nearest.slot(), level, scratch);
                distances_(query, rows, dim_, scratch.fresh.data(), scratch.fresh.size(),
                           scratch.distances.data());
                for (size_t i = 0; i < scratch.fresh.size(); i++) {
                    const Near near{scratch.distances[i], scratch.fresh[i]};
                    if (near < nearest) nearest = near, moved = true;
                }
            }
        }
        return nearest;
    }

    // The linked rows that have not been seen, into `scratch.fresh`.
    void fresh_links(Slot slot, int level, Scratch& scratch) const {
        std::vector<Slot>& fresh = scratch.fresh;
        fresh.resize(limit(level));
        size_t count = 0;  // without a branch, which would be mispredicted
        each_link(slot, level, [&](Slot other) {
            fresh[count] = other;
            count += scratch.seen.set(other);
        });
        fresh.resize(count);
        scratch.touched.insert(scratch.touched.end(), fresh.begin(), fresh.end());
    }

    void begin(Scratch& scratch, Near nearest, bool is_result) const {
        scratch.start(upper_at_.size());
        scratch.mark(nearest.slot());
        scratch.candidates.push_back(nearest);
        if (is_result) scratch.results.push_back(nearest);
    }

    // Visit from the nearest candidate on, until the `ef` nearest results are nearer than it.
    template <class Allowed>
    void walk(
        const Rows& rows, const Rows& query, int level, size_t ef, Scratch& scratch,
        const Allowed& allowed
    ) const {
        Near next;
        while (pop(scratch, ef, next)) {
            fresh_links(next.slot(), level, scratch);
            push_fresh(rows, query, level, ef, scratch, allowed);
        }
    }

    // The next candidate, unless the results are complete.
    bool pop(Scratch& scratch, size_t ef, Near& next) const {
        if (scratch.candidates.empty()) return false;
        next = scratch.candidates.front();
        if (scratch.results.size() >= ef && next > scratch.results.front()) return false;
        std::pop_heap(scratch.candidates.begin(), scratch.candidates.end(), std::greater<>());
        scratch.candidates.pop_back();
        return true;
    }

    template <class Allowed>
    void push_fresh(
        const Rows& rows, const Rows& query, int level, size_t ef, Scratch& scratch,
        const Allowed& allowed
    ) const {
        const std::vector<Slot>& fresh = scratch.fresh;
        std::vector<Near>&candidates = scratch.candidates, &results = scratch.results;
        scratch.distances.resize(std::max(scratch.distances.size(), fresh.size()));
        distances_(query, rows, dim_, fresh.data(), fresh.size(), scratch.distances.data());
        for (size_t i = 0; i < fresh.size(); i++) {
            const Near near{scratch.distances[i], fresh[i]};
            if (results.size() >= ef && near > results.front()) continue;
            candidates.push_back(near);
            std::push_heap(candidates.begin(), candidates.end(), std::greater<>());
            if (!level) prefetch(links_of(near.slot(), 0), lines_ * sizeof(Line));
            if (!allowed(near.slot())) continue;
            push_nearest(results, near, ef);
        }
    }

    // Keep candidates, sorted, that are nearer to the row than to a candidate kept before.
    void select(const Rows& rows, std::vector<Near>& sorted, size_t limit) const {
        if (sorted.size() < limit) return;
        constexpr size_t step = 4;
        float distances[step];
        std::vector<Slot> slots;
        size_t kept = 0;
        for (size_t i = 0; i < sorted.size() && kept < limit; i++) {
            const Near near = sorted[i];
            bool keep = true;
            for (size_t first = 0; keep && first < kept; first += step) {
                const size_t count = std::min(step, kept - first);
                distances_(row_of(rows, near.slot()), rows, dim_, &slots[first], count, distances);
                for (size_t j = 0; j < count; j++) keep &= distances[j] >= near.distance();
            }
            if (!keep) continue;
            slots.push_back(near.slot());
            sorted[kept++] = near;
        }
        sorted.resize(kept);
    }

    // A link from one row to another; the worst go where all are taken.
    void connect(const Rows& rows, Slot from, Near to, int level) {
        Slot* links = links_of(from, level);
        const size_t count = limit(level);
        Slot* const end = std::find(links, links + count, NONE);
        if (end != links + count) {
            *end = to.slot();
            return;
        }
        std::vector<float> distances(count);
        distances_(row_of(rows, from), rows, dim_, links, count, distances.data());
        std::vector<Near> sorted{to};
        for (size_t i = 0; i < count; i++) sorted.push_back({distances[i], links[i]});
        std::sort(sorted.begin(), sorted.end());
        select(rows, sorted, count);
        std::fill(links, links + count, NONE);
        for (size_t i = 0; i < sorted.size(); i++) links[i] = sorted[i].slot();
    }

    template <class T>
    static void write(std::FILE* file, const T* data, size_t count) {
        if (std::fwrite(data, sizeof(T), count, file) != count)
            throw std::runtime_error("cannot write the graph");
    }

    template <class T>
    static void read(std::FILE* file, T* data, size_t count) {
        if (std::fread(data, sizeof(T), count, file) != count)
            throw std::runtime_error("the file of the graph is cut short");
    }
};

}  // namespace raysys
