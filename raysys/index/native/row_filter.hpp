// Conditions on the columns of a row, evaluated for the rows that a search visits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "distance.hpp"

namespace raysys {

constexpr size_t BLOCK = 64;

// The slots of values between two bounds, ascending; room for one more.
template <class T>
__attribute__((always_inline)) inline size_t slots_between(
    const T* values, size_t count, T low, T high, Slot* slots
) {
    size_t kept = 0, slot = 0;
    for (; slot + BLOCK <= count; slot += BLOCK) {
        alignas(BLOCK) std::uint8_t holds[BLOCK];
        for (size_t i = 0; i < BLOCK; i++)
            holds[i] = (values[slot + i] >= low) & (values[slot + i] <= high);
        for (size_t i = 0; i < BLOCK; i += 8) {
            std::uint64_t eight;
            std::memcpy(&eight, holds + i, 8);
            for (; eight; eight &= eight - 1) slots[kept++] = slot + i + __builtin_ctzll(eight) / 8;
        }
    }
    for (; slot < count; slot++) {  // without a branch, which would be mispredicted
        slots[kept] = slot;
        kept += (values[slot] >= low) & (values[slot] <= high);
    }
    return kept;
}

template <class T>
size_t slots_default(const T* values, size_t count, T low, T high, Slot* slots) {
    return slots_between(values, count, low, high, slots);
}

#if defined(__x86_64__)
template <class T>
__attribute__((target("avx2"))) size_t slots_avx2(
    const T* values, size_t count, T low, T high, Slot* slots
) {
    return slots_between(values, count, low, high, slots);
}
#endif

// low <= column[slot] <= high, without a branch, which would be mispredicted. A bitmap is a column
// of bytes between 1 and 1.
struct Interval {
    const void* column;
    char type;  // of struct.pack
    std::int64_t low = 0, high = 0;
    double low_float = 0, high_float = 0;

    template <class T>
    bool holds(Slot slot) const {
        const T value = static_cast<const T*>(column)[slot];
        if constexpr (std::is_floating_point_v<T>) {
            return (value >= low_float) & (value <= high_float);
        } else {
            return (value >= low) & (value <= high);
        }
    }

    // The slots below `rows` for which it holds, ascending; room for one more.
    template <class T>
    size_t below(size_t rows, Slot* slots) const {
        auto* function = slots_default<T>;
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx2")) function = slots_avx2<T>;
#endif
        const T* values = static_cast<const T*>(column);
        if constexpr (std::is_floating_point_v<T>) {
            return function(values, rows, low_float, high_float, slots);
        } else {
            using Limits = std::numeric_limits<T>;
            const std::int64_t least = Limits::min(), most = Limits::max();
            if (low > most || high < least) return 0;
            return function(values, rows, std::max(low, least), std::min(high, most), slots);
        }
    }

    // Calls `use` with the column's type, as a null pointer.
    template <class Use>
    auto typed(Use use) const {
        switch (type) {
            case 'b': return use(static_cast<std::int8_t*>(nullptr));
            case 'h': return use(static_cast<std::int16_t*>(nullptr));
            case 'i': return use(static_cast<std::int32_t*>(nullptr));
            case '?':
            case 'B': return use(static_cast<std::uint8_t*>(nullptr));
            case 'H': return use(static_cast<std::uint16_t*>(nullptr));
            case 'I': return use(static_cast<std::uint32_t*>(nullptr));
            case 'f': return use(static_cast<float*>(nullptr));
            case 'd': return use(static_cast<double*>(nullptr));
            default: return use(static_cast<std::int64_t*>(nullptr));
        }
    }

    bool operator()(Slot slot) const {
        return typed([&](auto* type) { return holds<std::remove_pointer_t<decltype(type)>>(slot); });
    }
};

// All intervals hold; without any every row matches.
struct RowFilter {
    std::vector<Interval> intervals;

    bool operator()(Slot slot) const {
        for (const Interval& interval : intervals)
            if (!interval(slot)) return false;
        return true;
    }

    // The share of matching rows, from a sample.
    double share(size_t rows) const {
        constexpr size_t sample = 128;
        if (intervals.empty() || rows == 0) return 1;
        const size_t step = rows > sample ? rows / sample : 1;
        size_t matches = 0, seen = 0;
        for (size_t slot = step / 2; slot < rows; slot += step, seen++) matches += (*this)(slot);
        return static_cast<double>(matches) / seen;
    }

    // Whether finding all matching rows and comparing them with each of some queries costs less than
    // the graph, where a candidate costs that many comparisons.
    bool is_scan_cheaper(
        size_t rows, double share, size_t queries, size_t ef, double candidate_cost
    ) const {
        const double per_row = 0.015 * intervals.size();  // of a comparison of vectors
        const double scan = rows * (per_row / queries + share);
        return scan * share < candidate_cost * ef;  // the graph visits ef / share
    }

    // The matching ones of some slots, in the same order.
    std::vector<Slot> among(std::vector<Slot> slots) const { return narrowed(std::move(slots), 0); }

    // All matching slots below `rows`, ascending.
    std::vector<Slot> below(size_t rows) const {
        // Not a vector, which would touch all of its memory.
        const std::unique_ptr<Slot[]> slots(new Slot[rows + 1]);
        size_t kept = rows;
        if (intervals.empty()) {
            for (size_t slot = 0; slot < rows; slot++) slots[slot] = slot;
        } else {
            kept = intervals[0].typed([&](auto* type) {
                return intervals[0].below<std::remove_pointer_t<decltype(type)>>(rows, slots.get());
            });
        }
        return narrowed({slots.get(), slots.get() + kept}, 1);
    }

  private:
    std::vector<Slot> narrowed(std::vector<Slot> slots, size_t first) const {
        for (size_t i = first; i < intervals.size(); i++) {
            const auto fails = [&](Slot slot) { return !intervals[i](slot); };
            slots.erase(std::remove_if(slots.begin(), slots.end(), fails), slots.end());
        }
        return slots;
    }
};

}  // namespace raysys
