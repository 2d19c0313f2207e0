// A hierarchical navigable small world (Malkov & Yashunin, 2018) over the rows of a matrix that the
// caller owns and passes with each call: row `slot` never changes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
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

using Near = std::pair<float, Slot>;  // distance and slot

class Bits {
  public:
    void resize(size_t bits) { words_.resize((bits + 63) / 64, 0); }
    bool operator[](Slot i) const { return words_[i >> 6] >> (i & 63) & 1; }
    void set(Slot i) { words_[i >> 6] |= std::uint64_t{1} << (i & 63); }
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

class Graph {
  public:
    Graph(size_t dim, size_t M, size_t ef_construction, std::uint64_t seed, bool l2,
          size_t capacity)
        : dim_(dim), M_(M), ef_construction_(ef_construction), random_(seed),
          distances_(distances_function(l2)), lines_((2 * M + 15) / 16) {
        base_.reserve(capacity * lines_);
        upper_at_.reserve(capacity);
    }

    size_t size() const { return size_; }

    void add(const float* rows, Slot slot) {
        reserve(slot);
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
        const float* query = rows + slot * dim_;
        Near nearest = descend(rows, query, level, scratch_);
        for (int at = std::min(level, top_); at >= 0; at--) {
            begin(scratch_, nearest, !deleted_[nearest.second]);
            walk(rows, query, at, ef_construction_, scratch_, [&](Slot s) { return !deleted_[s]; });
            std::vector<Near>& found = scratch_.results;
            if (found.empty()) found.push_back(nearest);  // every row is deleted
            std::sort(found.begin(), found.end());
            nearest = found[0];
            select(rows, found, M_);
            Slot* links = links_of(slot, at);
            for (size_t i = 0; i < found.size(); i++) links[i] = found[i].second;
            for (const Near& other : std::vector<Near>(found))
                connect(rows, other.second, {other.first, slot}, at);
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
        const float* rows, const float* query, size_t k, size_t ef, const RowFilter* filter,
        Scratch& scratch
    ) const {
        scratch.start(upper_at_.size());
        if (top_ < 0) return;
        ef = std::max(k, ef);
        const Near nearest = descend(rows, query, 0, scratch);
        const auto reach = [&](const auto& allowed) {
            begin(scratch, nearest, allowed(nearest.second));
            walk(rows, query, 0, ef, scratch, allowed);
        };
        if (filter) {
            reach([&](Slot slot) { return !deleted_[slot] && (*filter)(slot); });
        } else {
            reach([&](Slot slot) { return !deleted_[slot]; });
        }
        std::sort(scratch.results.begin(), scratch.results.end());
        if (scratch.results.size() > k) scratch.results.resize(k);
    }

    void save(std::FILE* file) const {
        const std::uint64_t head[] = {MAGIC, dim_, M_, entry_, static_cast<std::uint64_t>(top_ + 1),
                                      upper_at_.size(), upper_.size()};
        write(file, head, 7);
        write(file, base_.data(), base_.size());
        write(file, upper_at_.data(), upper_at_.size());
        write(file, upper_.data(), upper_.size());
    }

    void load(std::FILE* file) {
        std::uint64_t head[7] = {};
        read(file, head, 7);
        if (head[0] != MAGIC || head[1] != dim_ || head[2] != M_)
            throw std::runtime_error("not a graph of these settings");
        entry_ = head[3], top_ = static_cast<int>(head[4]) - 1;
        base_.resize(head[5] * lines_);
        upper_at_.resize(head[5]);
        upper_.resize(head[6]);
        read(file, base_.data(), base_.size());
        read(file, upper_at_.data(), upper_at_.size());
        read(file, upper_.data(), upper_.size());
        check();
        deleted_.resize(head[5]);
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
    Distances distances_;
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
                    is_sound &= is_row(other) && (!level || (upper_at_[other] && upper_[upper_at_[other]] >= level));
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
    Near descend(const float* rows, const float* query, int above, Scratch& scratch) const {
        Near nearest{0, entry_};
        distances_(query, rows, dim_, &nearest.second, 1, &nearest.first);
        scratch.distances.resize(std::max(scratch.distances.size(), 2 * M_));
        for (int level = top_; level > above; level--) {
            scratch.start(upper_at_.size());
            for (bool moved = true; moved;) {
                moved = false;
                fresh_links(nearest.second, level, scratch);
                distances_(query, rows, dim_, scratch.fresh.data(), scratch.fresh.size(),
                           scratch.distances.data());
                for (size_t i = 0; i < scratch.fresh.size(); i++)
                    if (scratch.distances[i] < nearest.first)
                        nearest = {scratch.distances[i], scratch.fresh[i]}, moved = true;
            }
        }
        return nearest;
    }

    // The linked rows that have not been seen, into `scratch.fresh`.
    void fresh_links(Slot slot, int level, Scratch& scratch) const {
        scratch.fresh.clear();
        each_link(slot, level, [&](Slot other) {
            if (scratch.seen[other]) return;
            scratch.mark(other);
            scratch.fresh.push_back(other);
        });
    }

    void begin(Scratch& scratch, Near nearest, bool is_result) const {
        scratch.start(upper_at_.size());
        scratch.mark(nearest.second);
        scratch.candidates.push_back(nearest);
        if (is_result) scratch.results.push_back(nearest);
    }

    // Visit from the nearest candidate on, until the `ef` nearest results are nearer than it.
    template <class Allowed>
    void walk(
        const float* rows, const float* query, int level, size_t ef, Scratch& scratch,
        const Allowed& allowed
    ) const {
        Near next;
        while (pop(scratch, ef, next)) {
            fresh_links(next.second, level, scratch);
            push_fresh(rows, query, level, ef, scratch, allowed);
        }
    }

    // The next candidate, unless the results are complete.
    bool pop(Scratch& scratch, size_t ef, Near& next) const {
        if (scratch.candidates.empty()) return false;
        next = scratch.candidates.front();
        if (scratch.results.size() >= ef && next.first > scratch.results.front().first) return false;
        std::pop_heap(scratch.candidates.begin(), scratch.candidates.end(), std::greater<>());
        scratch.candidates.pop_back();
        return true;
    }

    template <class Allowed>
    void push_fresh(
        const float* rows, const float* query, int level, size_t ef, Scratch& scratch,
        const Allowed& allowed
    ) const {
        const std::vector<Slot>& fresh = scratch.fresh;
        std::vector<Near>&candidates = scratch.candidates, &results = scratch.results;
        scratch.distances.resize(std::max(scratch.distances.size(), fresh.size()));
        distances_(query, rows, dim_, fresh.data(), fresh.size(), scratch.distances.data());
        for (size_t i = 0; i < fresh.size(); i++) {
            const Near near{scratch.distances[i], fresh[i]};
            if (results.size() >= ef && near.first >= results.front().first) continue;
            candidates.push_back(near);
            std::push_heap(candidates.begin(), candidates.end(), std::greater<>());
            if (!level) prefetch(links_of(near.second, 0), lines_ * sizeof(Line));
            if (!allowed(near.second)) continue;
            if (results.size() >= ef) {
                std::pop_heap(results.begin(), results.end());
                results.pop_back();
            }
            results.push_back(near);
            std::push_heap(results.begin(), results.end());
        }
    }

    // Keep candidates, sorted, that are nearer to the row than to a candidate kept before.
    void select(const float* rows, std::vector<Near>& sorted, size_t limit) const {
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
                distances_(rows + near.second * dim_, rows, dim_, &slots[first], count, distances);
                for (size_t j = 0; j < count; j++) keep &= distances[j] >= near.first;
            }
            if (!keep) continue;
            slots.push_back(near.second);
            sorted[kept++] = near;
        }
        sorted.resize(kept);
    }

    // A link from one row to another; the worst go where all are taken.
    void connect(const float* rows, Slot from, Near to, int level) {
        Slot* links = links_of(from, level);
        const size_t count = limit(level);
        Slot* const end = std::find(links, links + count, NONE);
        if (end != links + count) {
            *end = to.second;
            return;
        }
        std::vector<float> distances(count);
        distances_(rows + from * dim_, rows, dim_, links, count, distances.data());
        std::vector<Near> sorted{to};
        for (size_t i = 0; i < count; i++) sorted.push_back({distances[i], links[i]});
        std::sort(sorted.begin(), sorted.end());
        select(rows, sorted, count);
        std::fill(links, links + count, NONE);
        for (size_t i = 0; i < sorted.size(); i++) links[i] = sorted[i].second;
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
